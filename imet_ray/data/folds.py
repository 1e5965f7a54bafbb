"""Multi-label stratified folds, and the file that keeps them.

The pictures of each label are spread evenly over the folds, rarest labels first. Copies of one picture fall in one
fold. Other groups (all pictures of one object together) are left to a given folds.csv, or folds.npy: fold numbers in
the order of train.csv.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from imet_ray.data.csv_tables import Problem, read_table, write_table
from imet_ray.errors import ConfigError, DataError
from imet_ray.storage.checked_read import open_array
from imet_ray.storage.files import LOCAL, Files

logger = logging.getLogger(__name__)

SLOW = 30_000_000  # entries of the label table from which stratifying takes longer than some 15 s
MOST_FOLDS = 10**9  # what a folds.csv may number, too
MAX_PROBLEMS = 20  # named in one report; the rest is counted
NUMBER = re.compile(r"[0-9]{1,9}")  # int() takes other digits and refuses more than 4,300


def make_folds(
    labels: np.ndarray, *, n_folds: int, seed: int, copies: np.ndarray | None = None
) -> np.ndarray:
    """Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), by the package of that name.

    Measured at 109,237 x 1,103 with 3.2 labels per row: 62 s on one core (80 s with a steeper tail), once per run;
    then each of the 1,088 labels with five pictures or more is in each of the five folds, within one of its fifth.

    Args:
        labels: (N, C) uint8, 0 or 1. Rows without a label are spread evenly, too.
        n_folds: at least 2, at most N.
        seed: the same seed gives the same folds.
        copies: (N,) int64, the first row with the same picture (`imet_ray.data.copies`). They count as one picture
            with the labels of all. Without copies the folds are those without this argument.

    Returns:
        (N,) int64, the fold that holds each row out.

    Raises:
        ConfigError: if n_folds is impossible.
    """
    # Here: scikit-learn takes a second to import, and most commands make no folds.
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    if copies is not None and (copies != np.arange(len(labels))).any():
        kept, place = np.unique(copies, return_inverse=True)
        merged = labels[kept]
        for row in np.flatnonzero(copies != np.arange(len(labels))):
            merged[place[row]] |= labels[row]
        return make_folds(merged, n_folds=n_folds, seed=seed)[place]
    n = len(labels)
    if n_folds < 2:
        raise ConfigError(f"n_folds must be at least 2, got n_folds={n_folds}")
    if n_folds > n:
        raise ConfigError(f"n_folds must be at most the number of images={n}, got n_folds={n_folds}")
    if labels.size > SLOW:
        logger.warning("stratifying %d images over %d labels: about a minute, once per run", *labels.shape)
    none = ~np.any(labels, axis=1)[:, None]  # counts as a label of its own
    used = np.hstack([labels[:, labels.any(axis=0)], none[:, none.any(axis=0)]])
    # The package takes a table of fewer than two columns for single-label data.
    padded = np.pad(used, ((0, 0), (0, max(0, 2 - used.shape[1]))))
    splitter = MultilabelStratifiedKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    folds = np.full(n, -1, np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros((n, 1)), padded)):
        folds[held_out] = fold
    assert folds.min() == 0
    return folds


def write_folds(path: Path, ids: Sequence[str], folds: np.ndarray, files: Files = LOCAL) -> None:
    """Write a CSV file with the columns id and fold, atomically."""
    write_table(path, {"id": ids, "fold": folds}, files)


def read_folds(path: Path, ids: Sequence[str], *, extend: bool = False) -> np.ndarray:
    """Read a folds file, whatever its order, and bring it into the order of `ids`.

    Args:
        path: CSV with the columns id and fold, others are ignored; or .npy, in the order of `ids`.
        ids: all ids that it must have, and no more.
        extend: it may lack some, which get -1, and have others, which are left out.

    Returns:
        (N,) int64, from 0 without gaps.

    Raises:
        DataError: naming all that is wrong with the file, by row.
    """
    if _is_array(path):
        return _read_whole_array(path, len(ids))
    rows, problems = _read(path, ("id", "fold"))
    place = {name: i for i, name in enumerate(ids)}
    first: dict[str, int] = {}
    folds = np.full(len(ids), -1, np.int64)
    for row, name, fold in rows.itertuples(name=None):
        if name in first:
            problems.append(f"row {row}: id {name!r} is in row {first[name]} already")
            continue
        first[name] = row
        if name not in place:
            if extend:
                continue
            problems.append(f"row {row}: id {name!r} is not in the data")
        elif not NUMBER.fullmatch(fold):
            problems.append(f"row {row}: fold of {name!r} must be 0, 1, 2, ..., got {fold!r}")
        else:
            folds[place[name]] = int(fold)
    if not extend:
        problems += [f"id {name!r} is missing" for name in ids if name not in first]
    if not problems:
        problems = _wrong_numbering(folds)
    if problems:
        shown = problems[:MAX_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise DataError(f"{path} does not fit the data:\n  " + "\n  ".join(shown))
    return folds


def read_fold_array(path: Path, n: int | None = None, *, of: object = "train.csv") -> np.ndarray:
    """Read an array of fold numbers, in the order of a table's rows.

    Args:
        path: .npy of (n,) whole numbers.
        n: rows of the table; None: any number.
        of: what the table is called.

    Returns:
        (n,) int64, from 0.

    Raises:
        StoreError: if it is missing or no array.
        DataError: if it does not fit the table.
    """
    values = open_array(path)
    if values.ndim != 1 or (n is not None and len(values) != n):
        rows = f"the {n:,} rows" if n is not None else "the rows"
        raise DataError(
            f"{path} must have a fold for each of {rows} of {of}, in their order, got an array of {values.shape}"
        )
    if values.dtype.kind not in "iu" or (len(values) and not 0 <= values.min() <= values.max() < MOST_FOLDS):
        raise DataError(
            f"{path} must have whole numbers of at least 0, got {values.dtype}, {values[:5].tolist()}: the fold of "
            "each picture, 0, 1, 2, ..."
        )
    return np.array(values, dtype=np.int64)


def extend_folds(folds: np.ndarray, labels: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Folds for pictures that have none yet; the others keep theirs.

    A picture goes, rarest labels first, to the fold that has its rarest label least often; a copy to its like.

    Args:
        folds: (N,) int64; -1: none yet.
        labels: (N, C) uint8.
        copies: (N,) int64, the first row with the same picture as each row.

    Returns:
        (N,) int64.
    """
    found = folds.copy()
    everywhere, n_folds = labels.sum(0, dtype=np.int64), int(folds.max()) + 1
    have = np.stack([labels[folds == fold].sum(0, dtype=np.int64) for fold in range(n_folds)])  # (n_folds, C)
    sizes = np.bincount(folds[folds >= 0], minlength=n_folds)
    taken = {first: fold for first, fold in zip(copies.tolist(), folds.tolist(), strict=True) if fold >= 0}

    def rarest(row: int) -> int | None:
        own = np.flatnonzero(labels[row])
        return int(own[np.argmin(everywhere[own])]) if len(own) else None

    new = {row: rarest(row) for row in np.flatnonzero(folds < 0).tolist()}
    for row, label in sorted(
        new.items(), key=lambda item: np.inf if item[1] is None else everywhere[item[1]]
    ):
        counts = sizes if label is None else have[:, label]
        least = min(range(n_folds), key=lambda fold: (counts[fold], sizes[fold]))
        found[row] = fold = taken.setdefault(int(copies[row]), least)
        have[fold] += labels[row]
        sizes[fold] += 1
    return found


def folded_ids(path: Path) -> set[str]:
    """The ids that a folds file knows.

    Raises:
        DataError: if it cannot be read.
    """
    rows, _ = _read(path, ("id",))
    return set(rows["id"])


def count_folds(path: Path) -> int:
    """How many folds a folds file has, from its largest number; `read_folds` checks it in full, by id.

    Raises:
        ImetError: if it cannot be read.
    """
    if _is_array(path):
        return 1 + int(read_fold_array(path).max(initial=0))
    rows, _ = _read(path, ("fold",))
    return 1 + max((int(fold) for fold in rows["fold"] if NUMBER.fullmatch(fold)), default=0)


def _read(path: Path, columns: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """The usable rows of a folds file, and what is wrong with the others."""
    found: list[Problem] = []
    rows = read_table(path, columns, found)
    problems = [
        (f"row {problem.row}: " if problem.row else "") + f"{problem.kind}: {problem.text}"
        for problem in found
        if problem.forbids
    ]
    if rows is None:
        raise DataError(f"cannot read the folds file {path}: {problems[-1]}")
    return rows, problems


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _read_whole_array(path: Path, n: int) -> np.ndarray:
    """The folds of all n pictures: (n,) int64, from 0 without gaps."""
    folds = read_fold_array(path, n)
    if problems := _wrong_numbering(folds):
        raise DataError(f"{path} does not fit the data: {problems[0]}")
    return folds


def _wrong_numbering(folds: np.ndarray) -> list[str]:
    """What is wrong with the numbers of the folds, if anything is."""
    found = set(folds.tolist()) - {-1}
    gap = next((fold for fold in range(len(found)) if fold not in found), None)
    if gap is not None:
        return [f"no image in fold {gap}: number the folds 0..{len(found) - 1}"]
    return [f"there must be at least 2 folds, got {len(found)}"] if len(found) < 2 else []


def folds_digest(ids: Sequence[str], folds: np.ndarray) -> str:
    """sha256 over which id is in which fold, in hex."""
    table = json.dumps([[str(name) for name in ids], folds.tolist()], separators=(",", ":"))
    return hashlib.sha256(table.encode()).hexdigest()
