"""What a trial begins from: pretrained weights, a file for its fold, or its parent's checkpoint of the same fold."""

from imet_ray.errors import ConfigError, StoreError
from imet_ray.specs import TrialSpec, Variant, of_fold
from imet_ray.storage.results import standings
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory


def beginning(spec: TrialSpec, trial: TrialDirectory) -> str:
    """What `build_model` takes as `weights`. A parent's checkpoint is brought here from where the run lies.

    Raises:
        StoreError: if the parent's checkpoint is not there.
    """
    if trial.start.exists():
        return str(trial.start)
    weights = spec.recipe.weights
    if isinstance(weights, str):
        return of_fold(weights, spec.fold)
    parent = trial.run.trial(spec.after[weights.variant])
    parent.fetch(parent.best)
    if not parent.best.is_file():
        raise StoreError(
            f"{parent.best} is gone, from which {spec.title} begins: put it back, or move {parent.root} away and run "
            "the same command, which trains it again"
        )
    return str(parent.best)


def trained_before(store: RunDirectory, variant: Variant, fold: int) -> dict[str, str]:
    """The trials that a variant's own on this fold needs, by variant: of each one's best set of hparams.

    Raises:
        ConfigError: naming one that is not trained yet.
    """
    found = {}
    for name in variant.after:
        trials = {fold: trial for one in standings(store, [name]) for fold, trial in one.trials.items()}
        if fold not in trials:
            raise ConfigError(
                f"variant {variant.name!r} needs {name!r} of the same fold, which is not trained: first "
                f"--train --variant {name} --fold {fold}, or --sweep"
            )
        found[name] = trials[fold].trial_id
    return found
