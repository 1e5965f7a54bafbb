"""Takes trials that kernels trained into a run, where the next sweep finds them as its own.

Each is checked before anything is copied: its data, folds and recipe are the run's, its weights those of its result.
"""

import os
from pathlib import Path

from imet_ray.commands.setup import Run
from imet_ray.errors import ConfigError, StoreError
from imet_ray.models.checkpoint import load_state, read_info
from imet_ray.prediction.predict import read_predictions
from imet_ray.specs import TrialSpec
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import TrialDirectory
from kernel_builder.runtime.find_training import copy_trial, epochs_of, found_trials


def take(run: Run, folder: Path) -> list[str]:
    """Copy the trials under a folder into the run; a line about each. What the run has is left as it is.

    Raises:
        ConfigError: if there is none.
        StoreError: if one is damaged, or of another run; nothing is copied then.
    """
    files = [Path(below) / name for below, _, names in os.walk(folder) for name in sorted(names)]
    found = list(found_trials(sorted(files)))
    if not found:
        raise ConfigError(f"no trial under {folder}: name the folder that the kernel's output was fetched to")
    for trial, spec in found:
        _check(run, trial, spec)
    with only_driver(run.store):
        return [_take(run, trial, spec) for trial, spec in found]


def _check(run: Run, trial: TrialDirectory, spec: TrialSpec) -> None:
    """Refuse what a sweep of this run could not have trained."""
    space = run.experiment.space
    expected = {
        "data": (spec.data_digest, run.data.split.digest),
        "folds": (spec.folds_digest, run.data.folds_digest),
        "n_folds": (spec.n_folds, space.n_folds),
        "seed": (spec.seed, space.seed),
        "metric": (spec.metric, space.metric),
    }
    for what, (theirs, ours) in expected.items():
        if theirs != ours:
            raise StoreError(
                f"{trial.root} was trained with other {what} than {run.store.root}: name its own run"
            )
    known = {variant.name: variant for variant in space.variants}
    if known.get(spec.variant.name) != spec.variant:
        raise StoreError(
            f"{run.store.root} has no such variant {spec.variant.name!r} as {trial.root}: name its own run"
        )
    result = read_result(trial)
    if result is None:
        if load_state(trial.last) is None:
            raise StoreError(
                f"{trial.root} has neither a result nor a state to go on from: fetch the output again"
            )
        return
    if result.trial_id != spec.trial_id:
        raise StoreError(f"{trial.result} tells of another trial than {trial.spec}: fetch the output again")
    if result.status != "complete":
        return
    if not trial.best.exists() or file_digest(trial.best) != result.checkpoint_digest:
        raise StoreError(f"{trial.best} is not the file that {trial.result} tells of: fetch the output again")
    info = read_info(trial.best)
    if not info.spec.same_trial(spec) or info.label_ids != run.data.label_ids:
        raise StoreError(f"{trial.best} is of another trial, or of other labels: fetch the output again")
    if trial.oof.exists() and read_predictions(trial.oof).checkpoint != result.checkpoint_digest:
        raise StoreError(
            f"{trial.oof} was not predicted by {trial.best}: delete it, the sweep predicts it again"
        )


def _take(run: Run, trial: TrialDirectory, spec: TrialSpec) -> str:
    target = run.store.trial(spec.trial_id)
    target.fetch_all()
    if target.spec.exists() and not read_spec(target).same_trial(spec):
        raise StoreError(
            f"{target.spec} tells of another trial than {spec.trial_id}: move the directory away"
        )
    epochs = epochs_of(trial)
    if epochs <= epochs_of(target):
        return f"{spec.title}: the run has it, as far or further"
    target.acquire()  # whoever writes there still is superseded
    target.files.remove(target.result)  # of early stopping, whose state is older
    copy_trial(trial, target)
    result = read_result(trial)
    if result is None:
        return f"{spec.title}: goes on after epoch {epochs}"
    return f"{spec.title}: {result.status}" + (f", {result.score:.4f}" if result.score is not None else "")
