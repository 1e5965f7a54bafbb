"""The 2019 solution's level-1 files as members beside a run's own, for both splits; and a run's members in that form.

    level1_train_MODEL_f0_e14_0.5975.npy    p - t of fold 0's pictures, in train.csv's order
    level1_test_MODEL_f0_e14_0.5975.npy     p - t of all test pictures, in the sample submission's order
    MODEL_f0_e14_0.5975.yml                 `threshold`: t, which that solution writes beside them

With t the probabilities are had again, and blend with others. One fold's file is named, the others are found beside it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from imet_ray.blending.members import Member
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.predict import read_predictions
from imet_ray.prediction.view_sets import other_views
from imet_ray.storage.files import disk_error, write_text
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

Split = Literal["train", "test"]
NAME = re.compile(
    r"level1_(?P<split>train|test)_(?P<stem>(?P<model>.+)_f(?P<fold>[0-9]{1,3})_e[0-9]+_[0-9.]+)\.npy"
)
EDGE = 0.01  # p - t + t may be so far outside 0..1: float16 rounds


def is_level1(path: Path) -> bool:
    """True for a file that is named as that solution names them."""
    return NAME.fullmatch(path.name) is not None


def read_train_member(name: str, path: Path, ids: Sequence[str], n_labels: int, folds: np.ndarray) -> Member:
    """A model's out-of-fold probabilities.

    Args:
        path: of any fold's level1_train file.
        ids: (N,) of train.csv.
        n_labels: C.
        folds: (N,) int, of the run; they must be the model's.

    Raises:
        StoreError: for a file that is missing or damaged.
        DataError: for arrays that do not belong together.
    """
    found = _by_fold(name, path, "train")
    wanted = np.unique(folds).tolist()
    if sorted(found) != wanted:
        raise DataError(
            f"member {name} ({path}) has files of the folds {sorted(found)}, the run has {wanted}"
        )
    probs = np.empty((len(folds), n_labels), np.float32)
    for fold, file in found.items():
        rows = np.flatnonzero(folds == fold)
        probs[rows] = _probabilities(name, file, (len(rows), n_labels))
    return Member(name, probs, ids)


def read_test_member(name: str, path: Path, n: int, n_labels: int) -> np.ndarray:
    """A model's test probabilities, the mean over its folds: (n, C) float32; errors as of `read_train_member`."""
    found = _by_fold(name, path, "test")
    return np.asarray(np.mean([_probabilities(name, file, (n, n_labels)) for file in found.values()], axis=0))


def write_level1(
    out: Path, ensemble: Ensemble, store: RunDirectory, labels: np.ndarray, folds: np.ndarray, metric: str
) -> list[Path]:
    """Write the ensemble's members in that form, of the test split where it is predicted; and folds.npy.

    Args:
        out: a folder; it is made.
        labels: (N, C) uint8.
        folds: (N,) int64.

    Raises:
        StoreError: for predictions that are missing, or a full disk.
    """
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for member in ensemble.members:
            written += _write_member(out, member, ensemble, store, labels, folds, metric)
        np.save(out / "folds.npy", folds)
    except OSError as error:
        raise disk_error(Path(error.filename or out), error) from error
    return written


def _write_member(
    out: Path,
    member: EnsembleMember,
    ensemble: Ensemble,
    store: RunDirectory,
    labels: np.ndarray,
    folds: np.ndarray,
    metric: str,
) -> list[Path]:
    written = []
    for trial in map(store.trial, member.trials):
        views = other_views(trial, ensemble.views)
        oof, test = trial.oof_of(views), trial.test_of(views)
        trial.fetch(oof, test)
        probs = read_predictions(oof).probs
        fold = read_spec(trial).fold
        truth = labels[folds == fold]
        threshold, score = metric_named(metric).best_threshold(probs, truth)
        result = read_result(trial)
        epoch = result.epoch if result is not None and result.epoch is not None else 0
        stem = f"{member.variant}_f{fold}_e{epoch:02d}_{score:.4f}"
        splits = {"train": probs} | ({"test": read_predictions(test).probs} if test.exists() else {})
        for split, values in splits.items():
            written.append(out / f"level1_{split}_{stem}.npy")
            np.save(written[-1], values.astype(np.float32) - np.float32(threshold))
        write_text(out / f"{stem}.yml", yaml.safe_dump({"threshold": float(threshold)}))
    return written


def _by_fold(name: str, path: Path, split: Split) -> dict[int, Path]:
    """The model's files of a split, by fold."""
    fits = NAME.fullmatch(path.name)
    if fits is None or fits["split"] != split:
        raise ConfigError(
            f"member {name}: here it takes a file level1_{split}_MODEL_f0_e14_0.5975.npy, got {path}"
        )
    if not path.is_file():
        raise StoreError(f"member {name} ({path}) is missing: check the path")
    found: dict[int, Path] = {}
    for file in sorted(path.parent.iterdir()):
        beside = NAME.fullmatch(file.name)
        if beside is None or (beside["split"], beside["model"]) != (split, fits["model"]):
            continue
        fold = int(beside["fold"])
        if fold in found:
            raise DataError(f"member {name} has two files of fold {fold}, {found[fold]} and {file}: move one")
        found[fold] = file
    return found


def _probabilities(name: str, file: Path, shape: tuple[int, int]) -> np.ndarray:
    """p of p - t: float32."""
    fits = NAME.fullmatch(file.name)
    assert fits is not None
    where = f"member {name} ({file})"
    beside = file.with_name(f"{fits['stem']}.yml")
    try:
        known = yaml.safe_load(beside.read_text(encoding="utf-8"))
        threshold = float(known["threshold"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, ValueError):
        raise StoreError(
            f"{where} has its threshold subtracted, and {beside.name} beside it does not say which: put that file "
            "there, with `threshold: 0.12`"
        ) from None
    try:
        margins = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{where} cannot be read ({' '.join(str(error).split())}): make it again") from None
    if margins.shape != shape or margins.dtype.kind != "f":
        raise DataError(
            f"{where} must have numbers of shape {shape}, got {margins.dtype.name} {margins.shape}: use the model's "
            "own folds and labels"
        )
    probs = margins.astype(np.float32) + np.float32(threshold)
    if not (np.isfinite(probs).all() and probs.min(initial=0) >= -EDGE and probs.max(initial=0) <= 1 + EDGE):
        raise DataError(
            f"{where} with {beside.name}'s threshold {threshold:g} gives no probabilities: use its own"
        )
    return np.asarray(probs.clip(0, 1))
