"""Multi-label stratified folds, and the file that keeps them.

The pictures of each label are spread evenly over the folds, rarest labels first. Grouped folds
(all pictures of one object together) are left to a given folds.csv.
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
from imet_ray.storage.files import LOCAL, Files

logger = logging.getLogger(__name__)

SLOW = 30_000_000  # entries of the label table from which stratifying takes longer than some 15 s
MAX_PROBLEMS = 20  # named in one report; the rest is counted
NUMBER = re.compile(r"[0-9]{1,9}")  # int() takes other digits and refuses more than 4,300


def make_folds(labels: np.ndarray, *, n_folds: int, seed: int) -> np.ndarray:
    """Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), by the package of that name.

    Measured at 109,237 x 1,103 with 3.2 labels per row: 62 s on one core (80 s with a steeper tail), once per run;
    then each of the 1,088 labels with five pictures or more is in each of the five folds, within one of its fifth.

    Args:
        labels: (N, C) uint8, 0 or 1. Rows without a label are spread evenly, too.
        n_folds: at least 2, at most N.
        seed: the same seed gives the same folds.

    Returns:
        (N,) int64, the fold that holds each row out.

    Raises:
        ConfigError: if n_folds is impossible.
    """
    # Here: scikit-learn takes a second to import, and most commands make no folds.
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

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


def read_folds(path: Path, ids: Sequence[str]) -> np.ndarray:
    """Read a folds file, whatever its order, and bring it into the order of `ids`.

    Args:
        path: CSV with the columns id and fold; others are ignored.
        ids: all ids that it must have, and no more.

    Returns:
        (N,) int64, from 0 without gaps.

    Raises:
        DataError: naming all that is wrong with the file, by row.
    """
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
            problems.append(f"row {row}: id {name!r} is not in the data")
        elif not NUMBER.fullmatch(fold):
            problems.append(f"row {row}: fold of {name!r} must be 0, 1, 2, ..., got {fold!r}")
        else:
            folds[place[name]] = int(fold)
    problems += [f"id {name!r} is missing" for name in ids if name not in first]
    if not problems:
        problems = _wrong_numbering(folds)
    if problems:
        shown = problems[:MAX_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise DataError(f"{path} does not fit the data:\n  " + "\n  ".join(shown))
    return folds


def count_folds(path: Path) -> int:
    """How many folds a folds file has, from its largest number; `read_folds` checks it in full, by id.

    Raises:
        DataError: if it cannot be read.
    """
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


def _wrong_numbering(folds: np.ndarray) -> list[str]:
    """What is wrong with the numbers of the folds, if anything is."""
    found = set(folds.tolist())
    gap = next((fold for fold in range(len(found)) if fold not in found), None)
    if gap is not None:
        return [f"no image in fold {gap}: number the folds 0..{len(found) - 1}"]
    return [f"there must be at least 2 folds, got {len(found)}"] if len(found) < 2 else []


def folds_digest(ids: Sequence[str], folds: np.ndarray) -> str:
    """sha256 over which id is in which fold, in hex."""
    table = json.dumps([[str(name) for name in ids], folds.tolist()], separators=(",", ":"))
    return hashlib.sha256(table.encode()).hexdigest()
