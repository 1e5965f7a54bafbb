"""The frozen result: which checkpoints, with what weights, decoded how.

Made by the blend, read by the prediction of test pictures. The members' probabilities are averaged over the
folds of a variant, then over variants with the blend's weights; or a model of level 2 makes the ensemble's of them.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import AliasChoices, Field, model_validator

from imet_ray.command_line import pasted
from imet_ray.errors import DataError, StoreError
from imet_ray.prediction.calibration import Calibration
from imet_ray.prediction.decode import AnyDecoder
from imet_ray.prediction.level2 import Level2
from imet_ray.prediction.pooling import Scale, add_share, as_probability
from imet_ray.prediction.predict import Predictions, read_predictions
from imet_ray.prediction.view_sets import ViewSet, other_views
from imet_ray.specs import Frozen
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.files import disk_error
from imet_ray.storage.run_directory import EnsembleDirectory, RunDirectory, TrialDirectory

TrialId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # names a folder, and none outside
Score = Annotated[float, Field(validation_alias=AliasChoices("score", "f2"))]  # earlier versions wrote `f2`


class EnsembleMember(Frozen):
    """One variant's fold checkpoints and its weight."""

    variant: str
    weight: float
    threshold: float  # the variant's own best, over its out-of-fold predictions
    trials: list[TrialId]  # one per fold; none where another tool made the predictions
    checkpoints: list[str]  # sha256 of each one's weights
    score: Score  # as a single member, out of fold, nested, under the ensemble's decoder
    seconds: float | None = None  # a test picture takes, through all its checkpoints and views
    size: int | None = None  # bytes of its checkpoints


class Prefix(Frozen):
    """The first members in the order of prediction, and how to decode when there is no time for more."""

    members: list[str]
    decoder: AnyDecoder
    score: Score  # own, out of fold


class Ensemble(Frozen):
    """What `ensemble.json` holds."""

    name: str
    data_digest: str = ""  # unknown where only other tools' files are blended
    folds_digest: str = ""
    label_ids: list[str]
    members: list[EnsembleMember]
    views: ViewSet | None = None  # that members are predicted in; None: each recipe's own
    scale: Scale = "probability"  # on which members are averaged
    decoder: AnyDecoder
    # the k-th has the first k members; the last one is the whole ensemble, by its weights
    prefixes: list[Prefix] = []
    level2: Level2 | None = None  # what predicts instead of the weights, where all members are predicted
    calibration: Calibration | None = (
        None  # of the probabilities that people see; decoding knows nothing of it
    )
    report: dict[str, Any]  # the blend's scores, own and nested

    @model_validator(mode="after")
    def _level2_fits(self) -> Self:
        if self.level2 is not None:
            if self.level2.members != [member.variant for member in self.members]:
                raise ValueError("level 2 is of other members")
            if self.level2.model.shape()[1] != len(self.label_ids):
                raise ValueError(f"level 2 is of {self.level2.model.shape()[1]} labels")
        return self

    @property
    def needed(self) -> list[EnsembleMember]:
        """The members that must be predicted: those of weight above 0, or all for level 2."""
        return [member for member in self.members if member.weight > 0 or self.level2 is not None]


def write_ensemble(store: EnsembleDirectory, ensemble: Ensemble) -> None:
    """Write `ensemble.json`; what an earlier ensemble of that name predicted goes, once there is room for this one."""
    text = ensemble_text(ensemble)
    with store.files.writing(store.ensemble) as temporary:
        temporary.write_text(text, encoding="utf-8")
        for path in (
            store.oof,
            store.test,
            store.submission,
            store.report,
            store.half,
            *store.of_other_views,
        ):
            store.files.remove(path)


def ensemble_text(ensemble: Ensemble) -> str:
    """What `ensemble.json` says; earlier versions know nothing of what is left out where it is None."""
    new = ("level2", "views", "calibration")
    absent = {name for name in new if getattr(ensemble, name) is None}
    return json.dumps(ensemble.model_dump(mode="json", exclude=absent), indent=2, allow_nan=False) + "\n"


def read_ensemble(store: EnsembleDirectory) -> Ensemble:
    """Read `ensemble.json`.

    Raises:
        StoreError: if there is none of that name, naming those that exist.
    """
    if not store.ensemble.exists():
        make = pasted("python", "blend.py", *store.run.options)
        known = ", ".join(sorted(p.parent.name for p in store.root.parent.glob("*/ensemble.json")))
        raise StoreError(
            f"no ensemble {store.root.name!r} in {store.root.parent}: "
            + (f"choose one of: {known}" if known else f"make one with `{make}`")
        )
    return read_model(store.ensemble, Ensemble)


def gather_oof(
    trials: Sequence[TrialDirectory], ids: Sequence[str], variant: str, views: ViewSet | None = None
) -> tuple[np.ndarray, list[str]]:
    """A variant's out-of-fold probabilities in the order of train.csv.

    Args:
        trials: one per fold.
        ids: (N,) training ids, in order.
        variant: its name, for the errors.
        views: None: each recipe's own.

    Returns:
        probs: (N, C) float16, each row predicted by the one checkpoint that never saw it, mapped from a nameless file
        beside the trials; and the digest of each trial's checkpoint.

    Raises:
        DataError: if a picture is covered twice, not at all, or is no training picture.
        StoreError: if a fold's predictions are missing, damaged, or of other labels than another's.
    """
    position = {picture: i for i, picture in enumerate(ids)}
    seen = np.zeros(len(ids), dtype=np.int64)
    probs: np.ndarray | None = None
    digests = []
    for trial in trials:
        found = _read_oof(trial, views)
        try:
            rows = np.array([position[str(picture)] for picture in found.ids], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"{trial.oof} predicts picture {error}, which train.csv lacks") from None
        if probs is None:
            probs = _mapped((len(ids), found.probs.shape[1]), trial.root)
        if found.probs.shape[1] != probs.shape[1]:
            raise StoreError(
                f"the predictions of variant {variant} are of {probs.shape[1]} labels, but {trial.oof} is of "
                f"{found.probs.shape[1]}: run `{_oof_command(views, trial)}`, which predicts again what does not fit"
            )
        probs[rows] = found.probs
        np.add.at(seen, rows, 1)
        digests.append(found.checkpoint)
    if probs is None or (seen != 1).any():
        wrong = int(np.flatnonzero(seen != 1)[0])
        raise DataError(
            f"variant {variant}: picture {ids[wrong]!r} is predicted {seen[wrong]} times out of fold, "
            f"must be once: run `{_oof_command(views, *trials[:1])}`"
        )
    return probs, digests


def _read_oof(trial: TrialDirectory, views: ViewSet | None) -> Predictions:
    path = trial.oof_of(other_views(trial, views))
    trial.fetch(path)
    try:
        return read_predictions(path)
    except StoreError as error:
        state = "damaged" if path.exists() else "missing"
        again = "which predicts it again" if path == trial.oof else "which predicts it with these views"
        raise StoreError(f"{path} is {state}: run `{_oof_command(views, trial)}`, {again}") from error


def _oof_command(views: ViewSet | None, *trials: TrialDirectory) -> str:
    options = [word for trial in trials for word in trial.run.options]
    return pasted("python", "launch.py", "--oof", *options, *(views.options if views is not None else ()))


def _mapped(shape: tuple[int, int], folder: Path) -> np.ndarray:
    """Zeros of float16, in a nameless file: several members of iMet do not fit into the memory of a laptop."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it; no name is left behind
            # a mapped file that the disk has no room for would end the process
            os.posix_fallocate(file.fileno(), 0, max(1, 2 * shape[0] * shape[1]))
            return np.memmap(file, dtype=np.float16, mode="r+", shape=shape)
    except OSError as error:
        raise disk_error(folder, error) from error


def cost_of(trials: Sequence[TrialDirectory], views: ViewSet | None = None) -> tuple[float, int]:
    """Seconds per test picture through all of a member's checkpoints, and their bytes, as the OOF pass measured."""
    found = [_read_oof(trial, views) for trial in trials]
    seconds = sum(predictions.seconds / max(1, len(predictions.ids)) for predictions in found)
    total = 0
    for trial in trials:
        size = trial.files.size_of(trial.best)
        if size is None:
            where = trial.files.address(trial.best)
            raise StoreError(
                f"{where} is missing: the ensemble could not predict; sweep again, or put it back"
            )
        total += size
    return seconds, total


def blend_oof(
    ensemble: Ensemble,
    store: RunDirectory,
    ids: Sequence[str],
    external: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """What the ensemble makes of the members' out-of-fold probabilities: (N, C) float32.

    Args:
        external: (N, C) out-of-fold probabilities of members that another tool predicts, by name.
    """

    def read(member: EnsembleMember) -> np.ndarray:
        trials = [store.trial(trial_id) for trial_id in member.trials]
        probs, digests = gather_oof(trials, ids, member.variant, ensemble.views)
        if digests != member.checkpoints:
            raise StoreError(
                f"variant {member.variant} was predicted by other weights than {ensemble.name} was "
                "fitted with: blend again"
            )
        return probs

    return _blended(ensemble, read, external)


def blend_test(
    ensemble: Ensemble,
    store: RunDirectory,
    ids: Sequence[str],
    external: Mapping[str, np.ndarray] | None = None,
    views: ViewSet | None = None,
) -> np.ndarray:
    """What the ensemble makes of the members' test probabilities.

    A member's folds are averaged as probabilities, members on the ensemble's scale or by level 2. The views are the
    ensemble's, or those that are given.

    Args:
        external: (n, C) test probabilities of members that another tool predicts, by name.

    Returns:
        (n, C) float32, in the order of `ids`.

    Raises:
        StoreError: if predictions are missing or come from other weights than the ensemble's.
    """
    wanted = np.array(ids)

    def read(member: EnsembleMember) -> np.ndarray:
        probs: np.ndarray | None = None
        for trial_id, checkpoint in zip(member.trials, member.checkpoints, strict=True):
            trial = store.trial(trial_id)
            path = trial.test_of(other_views(trial, views or ensemble.views))
            trial.fetch(path)
            found = read_predictions(path)
            if found.checkpoint != checkpoint:
                raise StoreError(
                    f"{path} comes from other weights than the ensemble was fitted with: blend again"
                )
            if not np.array_equal(found.ids, wanted):
                raise StoreError(
                    f"{path} holds other pictures than the test split: delete it and predict again"
                )
            probs = add_share(probs, 1 / len(member.trials), found.probs, "probability")
        assert probs is not None
        return probs

    return _blended(ensemble, read, external)


def _blended(
    ensemble: Ensemble,
    read: Callable[[EnsembleMember], np.ndarray],
    external: Mapping[str, np.ndarray] | None,
) -> np.ndarray:
    """`combined` of what is read of each member, or given; members that are not needed were not predicted."""

    def probs(member: EnsembleMember) -> np.ndarray:
        if member.trials:
            return read(member)
        if external is None or member.variant not in external:
            raise StoreError(
                f"member {member.variant} comes from another tool: its predictions are not kept here"
            )
        return external[member.variant]

    return combined(ensemble, ((member, probs(member)) for member in in_order(ensemble)))


def in_order(ensemble: Ensemble) -> list[EnsembleMember]:
    """The needed members in the kernel's order: sums of float32 depend on it, and all decide each cell alike."""
    order = {name: i for i, name in enumerate(ensemble.prefixes[-1].members if ensemble.prefixes else ())}
    return sorted(ensemble.needed, key=lambda member: order.get(member.variant, 0))


def combined(ensemble: Ensemble, predicted: Iterable[tuple[EnsembleMember, np.ndarray]]) -> np.ndarray:
    """All needed members' probabilities, (n, C) each, as the ensemble's: (n, C) float32."""
    if ensemble.level2 is not None:
        # as level 2 sees them, and a kernel keeps them
        by_name = {member.variant: probs.astype(np.float16, copy=False) for member, probs in predicted}
        return ensemble.level2.predict(by_name)
    total: np.ndarray | None = None
    for member, probs in predicted:
        total = add_share(total, member.weight, probs, ensemble.scale)
    assert total is not None
    return as_probability(total, ensemble.scale, out=total)
