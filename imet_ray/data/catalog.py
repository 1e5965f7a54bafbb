"""A data directory in Kaggle's layout: read, checked, and refused with all its problems at once.

    train.csv                id, attribute_ids (separated by spaces)
    labels.csv               attribute_id, attribute_name; without it the labels are those of train.csv
    train/                   one picture an id: png, jpg, jpeg, webp
    test/                    likewise; may be missing
    sample_submission.csv    the test ids and their order; else test.csv; else the files of test/

Reading compares names only; `imet_ray.data.check` decodes every picture as well.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imet_ray.data.csv_tables import Problem, Row, listed, read_table
from imet_ray.data.labels import multi_hot
from imet_ray.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Split:
    """The pictures of the training or the test split."""

    ids: tuple[str, ...]  # as the CSV spells them
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Catalog:
    """A data directory that may be trained on."""

    root: Path
    label_ids: tuple[str, ...]
    label_names: tuple[str, ...]
    train: Split
    labels: np.ndarray  # (N, C) uint8
    test: Split
    test_labels: np.ndarray | None  # (n, C) uint8, where test.csv has them
    label_groups: tuple[str, ...]  # (C,), of labels.csv or of names such as culture::french; "" without
    digest: str  # of the training split: ids, labels, names and sizes of files, not their bytes
    test_digest: str

    def summary(self) -> str:
        """One line for people."""
        mean = self.labels.sum() / len(self.labels)
        return (
            f"{len(self.train.ids):,} training and {len(self.test.ids):,} test pictures, "
            f"{len(self.label_ids):,} labels, {mean:.1f} a picture"
        )


@dataclass(frozen=True)
class Reading:
    """A directory as it was found, whether it may be trained on or not."""

    catalog: Catalog | None  # None where a problem forbids training
    problems: tuple[Problem, ...]
    rows: dict[Path, tuple[str, int]]  # picture file -> table and row that name it


def read_catalog(root: Path) -> Catalog:
    """Read and check a data directory, without decoding pictures.

    Raises:
        DataError: with all problems that forbid training.
    """
    reading = read_directory(root)
    if reading.catalog is None:
        forbidding = [problem for problem in reading.problems if problem.forbids]
        raise DataError(f"{root} must not be trained on:\n" + "\n".join(listed(forbidding)))
    return reading.catalog


def read_directory(root: Path) -> Reading:
    """Read a data directory and collect all that is wrong with it, without decoding pictures."""
    problems: list[Problem] = []
    if not root.is_dir():
        text = "expected train.csv and train/ in it"
        return Reading(None, (Problem("no such directory", str(root), None, text),), {})
    rows = read_table(root / "train.csv", ("id", "attribute_ids"), problems)
    names, groups = _label_names(root, problems)
    if rows is None:
        rows = []  # its problem forbids training; the others are still to be found
    elif not rows:
        problems.append(Problem("empty table", "train.csv", None, "it has no rows"))
    known = names if names is not None else _labels_in_use(rows)
    known_from = "labels.csv" if names is not None else "train.csv"
    index = {label: i for i, label in enumerate(known)}
    train, kept = _split(root, "train", "train.csv", rows, problems)
    labels = _label_rows("train.csv", kept, index, known_from, problems, may_be_empty=False)
    test_rows, test_table = _test_rows(root, problems)
    test, test_kept = _split(root, "test", test_table, test_rows, problems)
    test_labels = _test_labels(root, test_table, test_kept, index, known_from, problems)
    places = {
        file: (table, row.number)
        for split, table, found in ((train, "train.csv", kept), (test, test_table, test_kept))
        for file, row in zip(split.files, found, strict=True)
    }
    if any(problem.forbids for problem in problems):
        return Reading(None, tuple(problems), places)
    label_ids = tuple(known)
    hot = multi_hot(labels, len(label_ids))
    catalog = Catalog(
        root=root.resolve(),
        label_ids=label_ids,
        label_names=tuple(known.values()),
        train=train,
        labels=hot,
        test=test,
        test_labels=test_labels,
        label_groups=label_groups(tuple(known.values()), [groups.get(label, "") for label in known]),
        digest=_digest(train, label_ids, hot),
        test_digest=_digest(test, (), None),
    )
    return Reading(catalog, tuple(problems), places)


def label_groups(names: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """The group of each label: the given ones, else the prefix where all names are such as culture::french."""
    if not any(given) and names and all("::" in name for name in names):
        return tuple(name.partition("::")[0] for name in names)
    return tuple(given)


def _label_names(root: Path, problems: list[Problem]) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Label id to name, in the order of labels.csv, None without that file; and label id to group."""
    if not (root / "labels.csv").exists():
        return None, {}
    rows = read_table(root / "labels.csv", ("attribute_id", "attribute_name"), problems, optional=("group",))
    if rows is None:
        return None, {}
    groups = {row.values[0]: row.values[2] for row in rows}
    names: dict[str, str] = {}
    for row in rows:
        if not row.values[0]:
            problems.append(Problem("empty label id", "labels.csv", row.number, ""))
        elif row.values[0] in names:
            problems.append(Problem("repeated label", "labels.csv", row.number, repr(row.values[0])))
        names[row.values[0]] = row.values[1]
    return names, groups


def _labels_in_use(rows: list[Row]) -> dict[str, str]:
    """The labels of train.csv as their own names: in the order of numbers if all are numbers."""
    used = {label for row in rows for label in row.values[1].split()}
    if all(label.isdecimal() for label in used):  # no int(): it refuses more than 4,300 digits
        ordered = sorted(used, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label))
    else:
        ordered = sorted(used)
    return {label: label for label in ordered}


def _split(
    root: Path, folder: str, table: str, rows: list[Row], problems: list[Problem]
) -> tuple[Split, list[Row]]:
    """Find the file of each id; the split and the rows that have one."""
    listing = picture_files(root / folder)
    by_stem: dict[str, list[Path]] = {}
    for file in listing.values():
        by_stem.setdefault(file.stem, []).append(file)
    if rows and not (root / folder).is_dir():
        problems.append(Problem("no such directory", folder, None, f"{table} has {len(rows):,} ids"))
        return Split((), ()), []
    seen: dict[str, int] = {}
    taken: dict[Path, int] = {}  # a and a.png are one picture
    ids, files, kept = [], [], []
    for row in rows:
        picture = row.values[0]
        if not picture:
            problems.append(Problem("empty id", table, row.number, ""))
            continue
        if "/" in picture or "\\" in picture or picture in (".", ".."):
            problems.append(Problem("id is a path", table, row.number, repr(picture)))
            continue
        if picture in seen:
            problems.append(
                Problem("duplicate id", table, row.number, f"{picture!r}, first in row {seen[picture]}")
            )
            continue
        seen[picture] = row.number
        exact = listing.get(picture)
        found = [exact] if exact is not None else by_stem.get(picture, [])
        if len(found) != 1:
            kind = "several files for an id" if found else "id without a file"
            text = repr(picture) + (f": {', '.join(sorted(f.name for f in found))}" if found else "")
            problems.append(Problem(kind, table, row.number, f"{text} in {folder}/"))
            continue
        if found[0] in taken:
            text = f"{picture!r} is the picture of row {taken[found[0]]}"
            problems.append(Problem("duplicate id", table, row.number, text))
            continue
        if not found[0].is_file():  # a directory, or a link to nowhere
            problems.append(Problem("not a file", table, row.number, f"{folder}/{found[0].name}"))
            continue
        taken[found[0]] = row.number
        ids.append(picture)
        files.append(found[0])
        kept.append(row)
    extra = len(listing) - len(set(files))
    if rows and extra > 0 and len(files) == len(rows):
        problems.append(
            Problem("files without an id", folder, None, f"{extra:,} are not used", forbids=False)
        )
    return Split(tuple(ids), tuple(files)), kept


def _label_rows(
    table: str,
    rows: list[Row],
    index: dict[str, int],
    known_from: str,
    problems: list[Problem],
    *,
    may_be_empty: bool,
) -> list[list[int]]:
    """Label indices of each row."""
    found = []
    for row in rows:
        labels: list[int] = []
        for label in row.values[1].split():
            position = index.get(label)
            if position is None:
                problems.append(Problem(f"label that {known_from} lacks", table, row.number, repr(label)))
            elif position in labels:
                problems.append(Problem("repeated label", table, row.number, repr(label)))
            else:
                labels.append(position)
        if not row.values[1].split() and not may_be_empty:
            problems.append(Problem("row without labels", table, row.number, repr(row.values[0])))
        found.append(labels)
    return found


def _test_rows(root: Path, problems: list[Problem]) -> tuple[list[Row], str]:
    """The test ids in order, and where they stand."""
    for table in ("sample_submission.csv", "test.csv"):
        if (root / table).exists():
            rows = read_table(root / table, ("id",), problems, optional=("attribute_ids",))
            return rows or [], table
    files = sorted(picture_files(root / "test"))
    return [Row(i + 1, (Path(name).stem, "")) for i, name in enumerate(files)], "test"


def _test_labels(
    root: Path, table: str, kept: list[Row], index: dict[str, int], known_from: str, problems: list[Problem]
) -> np.ndarray | None:
    """Labels of the test pictures, where test.csv has them: (n, C) uint8."""
    if not kept or not (root / "test.csv").exists():
        return None
    rows = read_table(
        root / "test.csv", ("id",), problems, optional=("attribute_ids",), quiet=table == "test.csv"
    )
    by_id = {row.values[0]: row for row in rows or [] if row.values[1]}
    if not by_id:
        return None
    missing = [row for row in kept if row.values[0] not in by_id]
    if missing:
        text = f"{len(missing):,} of {len(kept):,} test pictures have none: test labels are not used"
        problems.append(Problem("test labels are incomplete", "test.csv", None, text, forbids=False))
        return None
    ordered = [by_id[row.values[0]] for row in kept]
    return multi_hot(
        _label_rows("test.csv", ordered, index, known_from, problems, may_be_empty=True), len(index)
    )


def picture_files(folder: Path) -> dict[str, Path]:
    """The picture files of a folder by name: one directory listing, not a look-up an id."""
    if not folder.is_dir():
        return {}
    return {f.name: f for f in sorted(folder.iterdir()) if f.suffix.lower() in SUFFIXES}


def _digest(split: Split, label_ids: tuple[str, ...], labels: np.ndarray | None) -> str:
    """sha256 of ids, labels and each file's name and size; not of 25 GB of bytes, nor of where they lie."""
    found = hashlib.sha256()
    for picture, file in zip(split.ids, split.files, strict=True):
        found.update(f"{picture}\0{file.name}\0{file.stat().st_size}\n".encode(errors="surrogateescape"))
    found.update("\0".join(label_ids).encode())
    if labels is not None:
        found.update(np.ascontiguousarray(labels).tobytes())
    return found.hexdigest()
