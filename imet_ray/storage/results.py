"""What a trial came to: its result, and the leaderboard that all of a run's results make.

Reads and writes `result.json`; does not train.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import AliasChoices, Field

from imet_ray.errors import StoreError
from imet_ray.specs import Frozen, Hparam, TrialSpec
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.files import write_json
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory

# runs of earlier versions say `f2`
Score = Annotated[float | None, Field(validation_alias=AliasChoices("score", "f2"))]
ExpectedScore = Annotated[float | None, Field(validation_alias=AliasChoices("expected_score", "expected_f2"))]


class TrialResult(Frozen):
    """How a trial ended. `stopped` is early stopping: it may still be promoted and go on."""

    trial_id: str
    status: Literal["complete", "stopped", "failed"]
    reason: str = ""
    score: Score = None  # at `threshold`, on the held-out fold, of the epoch whose weights are kept
    threshold: float | None = None
    expected_score: ExpectedScore = None  # the same epoch decoded without a threshold
    epoch: int | None = None
    epochs: int = 0  # how many were trained
    seconds: float = 0.0  # in training and evaluation, over all attempts
    images_per_s: float = 0.0
    batch_splits: int = 1  # parts each batch was cut into to fit the GPU
    checkpoint_digest: str = ""  # sha256 of best.safetensors


def read_result(trial: TrialDirectory) -> TrialResult | None:
    """The trial's result, or None while it is not done.

    Raises:
        StoreError: if the file is damaged.
    """
    if not trial.result.exists():
        return None
    return read_model(trial.result, TrialResult)


def own_result(trial: TrialDirectory) -> TrialResult | None:
    """As `read_result`, of a directory whose spec is the one that its name stands for.

    Raises:
        StoreError: if the file is damaged, or `spec.json` tells of another trial.
    """
    result = read_result(trial)
    if result is not None and read_spec(trial).trial_id != trial.trial_id:
        raise another_trial(trial)
    return result


def another_trial(trial: TrialDirectory) -> StoreError:
    """The error for a directory that holds another trial than the one asked for."""
    return StoreError(
        f"{trial.spec} tells of another trial than {trial.trial_id}: it was altered, or copied from elsewhere. "
        "Move the directory away, then run the same command"
    )


def write_result(trial: TrialDirectory, result: TrialResult) -> None:
    """Mark the trial as done."""
    write_json(trial.result, result.model_dump(mode="json"), trial.files)


def read_spec(trial: TrialDirectory) -> TrialSpec:
    """What the trial was asked to be."""
    return read_model(trial.spec, TrialSpec)


@dataclass(frozen=True)
class Standing:
    """One set of hparams of one variant on the leaderboard."""

    variant: str
    hparams: dict[str, Hparam]
    trials: dict[int, TrialDirectory]  # fold -> its complete trial
    score: dict[int, float]
    expected_score: dict[int, float | None]  # None where the metric cannot maximise its expectation
    n_folds: int

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.score.values())))

    @property
    def spread(self) -> float:
        """Standard deviation over folds."""
        return float(np.std(list(self.score.values())))

    @property
    def whole(self) -> bool:
        """True if every fold has been trained: the set has out-of-fold predictions of all images."""
        return len(self.trials) == self.n_folds


def standings(store: RunDirectory, variants: Iterable[str]) -> list[Standing]:
    """The best set of hparams of each variant, best variant first: whole ones before those with folds missing.

    A soup of several sets is one of its own, under the best one's hparams.

    A variant without a complete trial is left out.

    Raises:
        StoreError: if a trial is damaged or altered.
    """
    groups: dict[tuple[str, str], list[tuple[TrialDirectory, TrialSpec, TrialResult]]] = {}
    ended = _ended(store)
    specs = {spec.trial_id: spec for _, spec, _ in ended}
    for trial, spec, result in ended:
        if result.status == "complete":
            key = spec.variant.name, _recipes(spec, specs)
            groups.setdefault(key, []).append((trial, spec, result))
    best: dict[str, Standing] = {}
    for (variant, _), members in sorted(groups.items()):
        standing = Standing(
            variant=variant,
            hparams=members[0][1].told_hparams,
            trials={spec.fold: trial for trial, spec, _ in members},
            score={spec.fold: result.score or 0.0 for _, spec, result in members},
            expected_score={spec.fold: result.expected_score for _, spec, result in members},
            n_folds=members[0][1].n_folds,
        )
        rival = best.get(variant)
        if rival is None or (standing.whole, standing.mean) > (rival.whole, rival.mean):
            best[variant] = standing
    wanted = [best[name] for name in variants if name in best]
    return sorted(wanted, key=lambda s: (s.whole, s.mean), reverse=True)


def _recipes(spec: TrialSpec, specs: Mapping[str, TrialSpec]) -> str:
    """The recipe of a trial, and of those that it mixes or came after: all folds of one set have the same."""
    mixed = spec.soup_of.trials if spec.soup_of is not None else ()
    others = (*mixed, *(trial_id for _, trial_id in sorted(spec.after.items())))
    told = (_recipes(specs[one], specs) if one in specs else one for one in others)
    return "\n".join((spec.recipe.model_dump_json(), *told))


def left_out(found: Iterable[Standing], variants: Iterable[str]) -> list[str]:
    """The variants that are not trained on all folds, each with the folds that it lacks.

    Args:
        found: their `standings`.
    """
    known = {standing.variant: standing for standing in found}
    lines = []
    for variant in variants:
        standing = known.get(variant)
        if standing is None:
            lines.append(f"{variant} (no fold is trained)")
        elif not standing.whole:
            lacks = sorted(set(range(standing.n_folds)) - standing.trials.keys())
            lines.append(f"{variant} (not trained on fold {', '.join(map(str, lacks))})")
    return lines


def failures(store: RunDirectory) -> list[tuple[TrialSpec, str]]:
    """Failed trials and their reasons."""
    return [(spec, result.reason) for _, spec, result in _ended(store) if result.status == "failed"]


def _ended(store: RunDirectory) -> list[tuple[TrialDirectory, TrialSpec, TrialResult]]:
    """Trials that have a result.

    Raises:
        StoreError: if a file is damaged, or tells of another trial. In a run of an earlier version all ids are others.
    """
    found = [
        (trial, read_spec(trial), result)
        for trial in store.begun_trials()
        if (result := read_result(trial)) is not None
    ]
    altered = [trial for trial, spec, _ in found if spec.trial_id != trial.trial_id]
    if 0 < len(altered) < len(found):
        raise another_trial(altered[0])
    return found
