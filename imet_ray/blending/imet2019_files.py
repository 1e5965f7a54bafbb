"""The level-1 files of a solution of iMet 2019, read as members, and its description of an ensemble, written.

    level1_train_MODEL_f0_e14_0.5975.npy    fold 0's pictures in train.csv's order, epoch 14, F2 of that fold
    folds.npy                               (N,) ints, the fold of each picture of train.csv
    train.csv                               id, attribute_ids: numbers, and columns of the files above
    NAME_val_0.6397.yml                     a list of `predicts`, a model's file names by fold, and `weight`

The files hold p - t: each fold's threshold is already subtracted. One file per model is named, those of the other
folds are found beside it. Test predictions (level1_test_...) are not read.
"""

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from imet_ray.blending.disputed_cells import weighted_margin
from imet_ray.blending.members import Member
from imet_ray.data.csv_tables import Problem, numbered, read_table
from imet_ray.data.folds import read_fold_array
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.prediction.decode import at_least_one
from imet_ray.prediction.metrics import metric_named
from imet_ray.storage.checked_read import open_array
from imet_ray.storage.files import write_text
from imet_ray.storage.run_directory import EnsembleDirectory

METRIC = "f2"  # that competition's
ROWS = 4096  # pictures in one temporary array
NAME = re.compile(r"level1_train_(?P<model>.+)_f(?P<fold>[0-9]{1,3})_e[0-9]+_[0-9]+\.[0-9]+\.npy")
COLUMN = re.compile(r"[0-9]{1,9}")  # more digits are no column, and int() refuses more than 4,300


@dataclass(frozen=True)
class Blendable2019:
    """That solution's files, ready to be blended."""

    members: tuple[Member, ...]  # probs (N, C) float16 or float32, margins
    labels: np.ndarray  # (N, C) uint8
    folds: np.ndarray  # (N,) int64
    label_ids: tuple[str, ...]  # (C,) the columns' numbers
    files: tuple[tuple[Path, ...], ...]  # of each member, by fold


def read_2019(files: Sequence[Path], folds: Path, labels: Path) -> Blendable2019:
    """Read models of which one fold's file each is named.

    Args:
        files: one per model, of any fold.
        folds: the .npy of (N,) ints.
        labels: Kaggle's train.csv, N rows.

    Raises:
        ConfigError: for a name that does not fit, or two files of one model.
        StoreError: for a file that is missing or damaged.
        DataError: for a fold that is missing or comes twice, or arrays that do not belong together.
    """
    named = _named(files)
    rows = _rows(labels)
    of_picture = read_fold_array(folds, len(rows), of=labels)
    found = [_by_fold(model, file, np.unique(of_picture).tolist(), folds) for model, file in named.items()]
    # All headers first: a wrong file shows before gigabytes of the others are read.
    parts = [[open_array(file) for file in own] for own in found]
    n_labels = _check_shapes(found, parts, of_picture)
    hot = _multi_hot(rows, n_labels, labels)
    ids = tuple(rows["id"])
    models = tqdm(list(zip(named, parts, strict=True)), "reading", unit="model", disable=None)
    members = tuple(Member(model, _assembled(own, of_picture), ids, margins=True) for model, own in models)
    return Blendable2019(
        members=members,
        labels=hot,
        folds=of_picture,
        label_ids=tuple(str(column) for column in range(n_labels)),
        files=tuple(tuple(own) for own in found),
    )


def score_with_a_label_each(found: Blendable2019, weights: Sequence[float]) -> float:
    """F2 where a picture without a weighted sum of p - t above 0 gets its most probable label.

    That solution gives it none, and so does the blend of its files.

    Args:
        weights: (M,) of the members.
    """
    metric, scores = metric_named(METRIC), []
    for start in range(0, len(found.labels), ROWS):
        rows = slice(start, start + ROWS)
        total = weighted_margin([member.probs[rows] for member in found.members], np.array(weights))
        scores.append(metric.per_picture(at_least_one(total, total > 0), found.labels[rows]))
    return float(np.concatenate(scores).mean())


def write_2019(
    place: EnsembleDirectory, score: float, found: Blendable2019, weights: Sequence[float]
) -> Path:
    """Write the ensemble as that solution's inference reads it: `NAME_val_SCORE.yml`, in place of an earlier one.

    Args:
        score: F2 out of fold, by that solution's rule; its four digits are in the file's name.
        weights: (M,) of the members.

    Returns:
        The file's path.

    Raises:
        StoreError: if it cannot be written.
    """
    ensemble = [
        {"predicts": [file.name for file in files], "weight": float(weight)}
        for files, weight in zip(found.files, weights, strict=True)
    ]
    name = place.root.name
    path = place.root / f"{name}_val_{score:.4f}.yml"
    earlier = set(place.root.glob(f"{glob.escape(name)}_val_*.yml")) - {path}
    text = yaml.safe_dump(ensemble, default_flow_style=False, allow_unicode=True, width=math.inf)
    write_text(path, text, place.files)
    for other in earlier:  # its weights are not those of ensemble.json
        place.files.remove(other)
    return path


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """The named file of each model."""
    named: dict[str, Path] = {}
    for file in files:
        fits = NAME.fullmatch(file.name)
        if fits is None:
            raise ConfigError(
                f"a level-1 file is called level1_train_MODEL_f0_e14_0.5975.npy, got {str(file)!r}: name one of those"
            )
        model = fits["model"]
        if model in named:
            raise ConfigError(
                f"model {model} comes twice, as {named[model]} and {file}: name one fold's file, the others are "
                "found beside it"
            )
        named[model] = file
    if not named:
        raise ConfigError(
            "no level-1 file to blend: name level1_train_MODEL_f0_e14_0.5975.npy, one per model"
        )
    return named


def _by_fold(model: str, named: Path, wanted: Sequence[int], folds: Path) -> list[Path]:
    """The model's file of each fold."""
    try:
        beside = sorted(named.parent.iterdir())
    except OSError as error:
        raise StoreError(f"{named} cannot be read ({error.strerror}): check the path") from None
    if named not in beside:
        raise StoreError(f"{named} is missing: check the path")
    found: dict[int, Path] = {}
    almost = re.compile(re.escape(f"level1_train_{model}") + r"_f[0-9]+_.*\.npy")
    for file in beside:
        fits = NAME.fullmatch(file.name)
        if fits is None and almost.fullmatch(file.name):
            raise DataError(
                f"{file} may be of model {model}, but is not called level1_train_{model}_f0_e14_0.5975.npy: rename "
                "it or move it away"
            )
        if fits is None or fits["model"] != model:
            continue
        fold = int(fits["fold"])
        if fold in found:
            raise DataError(
                f"model {model} has two files of fold {fold}, {found[fold]} and {file}: move one away"
            )
        if fold not in wanted:
            raise DataError(f"{file} is of fold {fold}, which {folds} lacks: use the folds it was made with")
        found[fold] = file
    absent = [fold for fold in wanted if fold not in found]
    if absent:
        raise DataError(
            f"model {model} lacks fold {absent[0]}: put level1_train_{model}_f{absent[0]}_... beside {named}, or "
            "leave the model out"
        )
    return [found[fold] for fold in wanted]


def _check_shapes(
    files: Sequence[Sequence[Path]], parts: Sequence[Sequence[np.ndarray]], folds: np.ndarray
) -> int:
    """The number of columns, if each file has a row per picture of its fold and as many columns as the first."""
    n_rows = np.unique(folds, return_counts=True)[1].tolist()
    first = parts[0][0]
    for own, arrays in zip(files, parts, strict=True):
        for file, array, n in zip(own, arrays, n_rows, strict=True):
            if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
                raise DataError(
                    f"{file} must have a row per picture, a column per label, float16, float32 or float64, got "
                    f"{array.shape} {array.dtype.name}: make it again"
                )
            if len(array) != n:
                raise DataError(
                    f"{file} has {len(array):,} rows, but its fold has {n:,} pictures: use the folds and the "
                    "train.csv it was made with"
                )
            if array.shape[1] != first.shape[1]:
                raise DataError(
                    f"{file} has {array.shape[1]:,} columns, but {files[0][0]} has {first.shape[1]:,}: blend models "
                    "of one set of labels"
                )
    return int(first.shape[1])


def _assembled(parts: Sequence[np.ndarray], folds: np.ndarray) -> np.ndarray:
    """(N, C) in train.csv's order: float16 if all parts are, else float32."""
    narrow = all(part.dtype.itemsize == 2 for part in parts)
    whole = np.empty((len(folds), parts[0].shape[1]), np.float16 if narrow else np.float32)
    with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        for fold, part in zip(np.unique(folds), parts, strict=True):
            whole[folds == fold] = part
    return whole


def _rows(labels: Path) -> pd.DataFrame:
    """The rows of train.csv by their numbers, each with an id of its own."""
    problems: list[Problem] = []
    rows = read_table(labels, ("id", "attribute_ids"), problems)
    for problem in problems:
        if problem.forbids:
            raise _refusal(labels, problem.row, f"{problem.kind}, {problem.text}")
    if rows is None or rows.empty:
        raise DataError(f"{labels} has no rows: use Kaggle's train.csv")
    seen: dict[str, int] = {}
    for row, picture in numbered(rows, "id"):
        if not picture:
            raise _refusal(labels, row, "the id is empty")
        if seen.setdefault(picture, row) != row:
            raise _refusal(labels, row, f"{picture!r} was in row {seen[picture]} already")
    return rows


def _multi_hot(rows: pd.DataFrame, n_labels: int, labels: Path) -> np.ndarray:
    """(N, C) uint8."""
    hot = np.zeros((len(rows), n_labels), np.uint8)
    for i, (row, picture, text) in enumerate(rows.itertuples(name=None)):
        if not text:
            raise _refusal(labels, row, f"{picture!r} has no labels")
        for label in text.split():
            if not COLUMN.fullmatch(label) or int(label) >= n_labels:
                raise DataError(
                    f"{labels} row {row}: attribute {label[:40]!r} is no column of the level-1 files, which "
                    f"have 0..{n_labels - 1}: use the train.csv they were made with"
                )
            hot[i, int(label)] = 1
    return hot


def _refusal(labels: Path, row: int | None, what: str) -> DataError:
    place = f"{labels} row {row}" if row is not None else str(labels)
    return DataError(f"{place}: {what}: use Kaggle's train.csv")
