"""A data directory that was read and checked: its pictures, their labels, and all that is wrong with it.

Which files hold the tables and the pictures is a matter of the data format (`imet_ray.data.formats`). Names are
compared here; `imet_ray.data.check` decodes every picture as well.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from imet_ray.data.competition_files import picture_folder
from imet_ray.data.contents import contents
from imet_ray.data.csv_tables import Problem, numbered
from imet_ray.data.labels import always_together, read_cells
from imet_ray.data.picture_names import HEIF, SUFFIXES, PictureNames, need_extra, what_is_not_read

UNUSABLE = "picture cannot be used"
NO_FILE = "id without a file"


@dataclass(frozen=True)
class Split:
    """The pictures of the training or the test split."""

    ids: tuple[str, ...]  # as the table spells them
    files: tuple[Path, ...]
    contents: tuple[str, ...] = ()  # sha256 of each file's bytes, in hex: equal ones are copies


@dataclass(frozen=True)
class Catalog:
    """A data directory that may be trained on."""

    root: Path
    label_ids: tuple[str, ...]
    label_names: tuple[str, ...]
    train: Split
    labels: np.ndarray  # (N, C) uint8
    test: Split
    test_labels: np.ndarray | None  # (n, C) uint8, where test pictures have them
    test_labelled: np.ndarray  # (n,) bool: which of them have
    label_groups: tuple[str, ...]  # (C,), given or from names such as culture::french; "" without
    digest: str  # of the training split: ids, labels, and the bytes of the pictures
    test_digest: str

    def summary(self) -> str:
        """One line for people."""
        mean, none = self.labels.sum() / len(self.labels), len(self.labels) - self.labels.any(axis=1).sum()
        without = f", {none:,} pictures have none" if none else ""
        return (
            f"{len(self.train.ids):,} training and {len(self.test.ids):,} test pictures, "
            f"{len(self.label_ids):,} labels, {mean:.1f} per picture{without}"
        )


@dataclass(frozen=True)
class Table:
    """The rows of one table. The index is the row's number in the file, each cell a string."""

    name: str  # of the file, for problems
    rows: pd.DataFrame


@dataclass(frozen=True)
class Tables:
    """What a data format finds in a directory."""

    train: Table  # id, attribute_ids (see `imet_ray.data.labels`)
    labels: Table | None  # attribute_id, attribute_name, group; None: the labels are those of `train`
    test: Table | None  # id, in the submission's order; None: that of the files' names
    test_labels: Table | None  # id, attribute_ids; None without
    train_pictures: dict[str, Path]  # by file name
    test_pictures: dict[str, Path]


@dataclass(frozen=True)
class Reading:
    """A directory as it was found, whether it may be trained on or not."""

    catalog: Catalog | None  # None where a problem forbids training
    problems: tuple[Problem, ...]
    pictures: tuple[Path, ...] = ()  # all that there is a reader for, used or not
    # picture -> table and row that name it; without a table the folder, and no row
    rows: dict[Path, tuple[str, int | None]] = field(default_factory=dict)
    readable: Catalog | None = None  # what there is to look at, whatever is wrong; without digests


def assemble(
    root: Path,
    tables: Tables,
    problems: list[Problem],
    index: Path | None = None,
    *,
    negatives: bool = False,
) -> Reading:
    """Match ids with pictures and label sets with labels; what is wrong is added to `problems`.

    Args:
        index: where the digests of files are remembered (`imet_ray.data.contents`).
        negatives: a training picture without labels has none of them; else it is a problem.
    """
    known, labels = _train_labels(tables, problems, negatives=negatives)
    train, train_rows = _split(picture_folder(root, "train"), tables.train, tables.train_pictures, problems)
    labels = labels[_places(tables.train, train_rows, train.files)]
    rows: dict[Path, tuple[str, int | None]] = {
        file: (tables.train.name, row) for file, row in train_rows.items()
    }
    if tables.test is None:
        test = _listed(tables.test_pictures, problems)
        rows |= dict.fromkeys(test.files, ("test", None))
    else:
        test, test_rows = _split(picture_folder(root, "test"), tables.test, tables.test_pictures, problems)
        rows |= {file: (tables.test.name, row) for file, row in test_rows.items()}
    truth, labelled = _test_labels(root, tables, test, known, problems, negatives=negatives)
    pictures = (*tables.train_pictures.values(), *tables.test_pictures.values())
    if find_spec("pillow_heif") is None:
        need_extra((*train.files, *test.files), problems)
        pictures = tuple(file for file in pictures if file.suffix.lower() not in HEIF)
    names, kind = tuple(known.names.values()), "labels that always come together"
    readable = Catalog(
        root=root.resolve(),
        label_ids=tuple(known.names),
        label_names=names,
        train=train,
        labels=labels,
        test=test,
        test_labels=truth,
        test_labelled=labelled,
        label_groups=label_groups(names, known.groups),
        digest="",
        test_digest="",
    )
    if not any(problem.forbids for problem in problems):
        train, test = _with_contents((train, test), rows, index, problems)
    if any(problem.forbids for problem in problems):
        return Reading(None, tuple(problems), pictures, rows, readable)
    together = (
        Problem(kind, tables.train.name, None, text, forbids=False) for text in always_together(labels, names)
    )
    digest, test_digest = _digest(train, tuple(known.names), labels), _digest(test, (), None)
    catalog = replace(readable, train=train, test=test, digest=digest, test_digest=test_digest)
    return Reading(catalog, (*problems, *together), pictures, rows, catalog)


def part_of(catalog: Catalog, train_rows: np.ndarray, test_rows: np.ndarray) -> Catalog:
    """Some of the pictures, with digests of their own; all labels stay.

    Args:
        train_rows: (n,) int64, in the order that they are to have.
        test_rows: (m,) int64.
    """
    train, labels = _rows_of(catalog.train, train_rows), catalog.labels[train_rows]
    test, labelled = _rows_of(catalog.test, test_rows), catalog.test_labelled[test_rows]
    truth = catalog.test_labels[test_rows] if catalog.test_labels is not None and labelled.any() else None
    return replace(
        catalog,
        train=train,
        labels=labels,
        test=test,
        test_labels=truth,
        test_labelled=labelled,
        digest=_digest(train, catalog.label_ids, labels),
        test_digest=_digest(test, (), None),
    )


def _rows_of(split: Split, rows: np.ndarray) -> Split:
    ids, files, contents = (
        tuple(column[row] for row in rows.tolist()) if column else ()
        for column in (split.ids, split.files, split.contents)
    )
    return Split(ids, files, contents)


def earlier_digest(catalog: Catalog) -> str:
    """What versions before 2 took for the digest of the training split: names and sizes of files, not their bytes."""
    split, found = catalog.train, hashlib.sha256()
    for picture, file in zip(split.ids, split.files, strict=True):
        found.update(f"{picture}\0{file.name}\0{file.stat().st_size}\n".encode(errors="surrogateescape"))
    found.update("\0".join(catalog.label_ids).encode())
    found.update(np.ascontiguousarray(catalog.labels).tobytes())
    return found.hexdigest()


def label_groups(names: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """The group of each label: the given ones, else the prefix where all names are such as culture::french."""
    if not any(given) and names and all("::" in name for name in names):
        return tuple(name.partition("::")[0] for name in names)
    return tuple(given)


@dataclass(frozen=True)
class _Known:
    """The labels that there are."""

    names: dict[str, str]  # by id, in the order of columns
    groups: tuple[str, ...]
    table: str  # that they are from


def _train_labels(tables: Tables, problems: list[Problem], *, negatives: bool) -> tuple[_Known, np.ndarray]:
    """The labels that there are, and those of each row of the training table: (n, C) uint8."""
    table = tables.train
    if tables.labels is None:
        sets = _cells(table, None, problems)
        used = _ordered({label for found in sets for label in found})
        known = _Known(dict(zip(used, used, strict=True)), ("",) * len(used), table.name)
    else:
        known = _listed_labels(tables.labels, problems)
        sets = _cells(table, known.names, problems)
    labels = _multi_hot(table, sets, known, problems)
    if negatives:
        if len(sets) and not labels.any():
            problems.append(Problem("no labels", table.name, None, "no picture has one"))
        return known, labels
    out = "give it labels, or --negatives where such pictures have none of them"
    problems += [
        Problem("row without labels", table.name, row, f"{picture!r}: {out}")
        for (row, picture), found in zip(numbered(table.rows, "id"), sets, strict=True)
        if not found
    ]
    return known, labels


def _listed_labels(table: Table, problems: list[Problem]) -> _Known:
    """The labels of labels.csv."""
    known: dict[str, tuple[str, str]] = {}
    for row, label, name, group in table.rows.itertuples(name=None):
        if not label:
            problems.append(Problem("empty label id", table.name, row, ""))
        elif label in known:
            problems.append(Problem("repeated label", table.name, row, repr(label)))
        known[label] = name, group
    names = {label: name for label, (name, _) in known.items()}
    return _Known(names, tuple(group for _, group in known.values()), table.name)


def _cells(table: Table, known: dict[str, str] | None, problems: list[Problem]) -> list[list[str]]:
    """The labels that each row names; arguments as of `read_cells`."""
    sets, doubts = read_cells(table.rows["attribute_ids"].tolist(), known)
    rows = table.rows.index.tolist()
    problems += [Problem(doubt.kind, table.name, rows[doubt.cell], doubt.text) for doubt in doubts]
    return sets


def _ordered(labels: set[str]) -> list[str]:
    """In the order of numbers if all are numbers."""
    if all(label.isdecimal() for label in labels):  # no int(): it refuses more than 4,300 digits
        return sorted(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label))
    return sorted(labels)


def _multi_hot(
    table: Table, sets: Sequence[Sequence[str]], known: _Known, problems: list[Problem]
) -> np.ndarray:
    """The label sets of a table's rows: (n, C) uint8.

    Args:
        sets: the labels that each row names.
    """
    place = {label: i for i, label in enumerate(known.names)}
    labels = np.zeros((len(sets), len(place)), np.uint8)
    for i, (row, found) in enumerate(zip(table.rows.index.tolist(), sets, strict=True)):
        for label in found:
            if label not in place:
                problems.append(Problem(f"label that {known.table} lacks", table.name, row, repr(label)))
            elif labels[i, place[label]]:
                problems.append(Problem("repeated label", table.name, row, repr(label)))
            else:
                labels[i, place[label]] = 1
    return labels


def _split(
    folder: Path, table: Table, pictures: dict[str, Path], problems: list[Problem]
) -> tuple[Split, dict[Path, int]]:
    """The pictures that a table's rows name, and the row of each."""
    read = f"pictures are {', '.join(sorted(SUFFIXES))}"
    if len(table.rows) and not pictures:
        there = what_is_not_read(folder) or f"{folder.name}/ is empty"
        text = f"{table.name} has {len(table.rows):,} ids; {there}; {read}"
        problems.append(Problem("no pictures", folder.name, None, text))
        return Split((), ()), {}
    names = PictureNames(pictures)
    seen: dict[str, int] = {}
    taken: dict[Path, int] = {}  # a and a.png are one picture
    ids, absent = [], 0
    for row, picture in numbered(table.rows, "id"):
        wrong = _wrong(picture, files := names.find(picture), seen, taken)
        seen.setdefault(picture, row)
        if wrong is not None:
            alike = names.alike(picture) if wrong[0] == NO_FILE else []
            hint = f", but {alike[0].name} is there" if alike else ""
            problems.append(Problem(wrong[0], table.name, row, wrong[1] + hint))
            absent += wrong[0] == NO_FILE
            continue
        taken[files[0]] = row
        ids.append(picture)
    below = any(file.parent != folder for file in pictures.values())  # sub-folders are read
    if absent and not below and (others := what_is_not_read(folder)):
        problems.append(
            Problem("files that are not read", folder.name, None, f"{others}; {read}", forbids=False)
        )
    extra = len(pictures) - len(ids)
    if extra > 0 and 0 < len(table.rows) == len(ids):
        other = next(file.name for file in pictures.values() if file not in taken)
        text = f"{extra:,} are not used, such as {other}"
        problems.append(Problem("files without an id", folder.name, None, text, forbids=False))
    return Split(tuple(ids), tuple(taken)), taken


def _wrong(
    picture: str, files: Sequence[Path], seen: dict[str, int], taken: dict[Path, int]
) -> tuple[str, str] | None:
    """Why an id, or the files that may be its picture, cannot be: the kind of problem and its text."""
    if not picture:
        return "empty id", ""
    if "/" in picture or "\\" in picture or picture in (".", ".."):
        alone = re.split(r"[/\\\\]", picture)[-1]
        return (
            "id is a path",
            f"{picture!r}: write the file's name alone, {alone!r}; sub-folders are searched for it",
        )
    if picture in seen:
        return "duplicate id", f"{picture!r}, first in row {seen[picture]}: write all its labels in one row"
    if not files:
        return NO_FILE, f"no picture is called {picture!r}"
    if len(files) > 1:
        return (
            "several files for an id",
            f"{picture!r}: {', '.join(sorted(f'{f.parent.name}/{f.name}' for f in files))}: give each its own name",
        )
    if files[0] in taken:
        return "duplicate id", f"{picture!r} is the picture of row {taken[files[0]]}"
    if not files[0].is_file():  # a directory, or a link to nowhere
        return "not a file", f"{files[0].parent.name}/{files[0].name}"
    return None


def _listed(pictures: dict[str, Path], problems: list[Problem]) -> Split:
    """A folder's pictures; two of one name, such as 7.jpg and 7.png, are told apart by their suffixes."""
    ids = []
    stems = Counter(file.stem for file in pictures.values())
    for name, file in sorted(pictures.items()):
        if not file.is_file():
            problems.append(Problem("not a file", "test", None, name))
        ids.append(name if stems[file.stem] > 1 else file.stem)
    return Split(tuple(ids), tuple(pictures[name] for name in sorted(pictures)))


def _test_labels(
    root: Path,
    tables: Tables,
    test: Split,
    known: _Known,
    problems: list[Problem],
    *,
    negatives: bool,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels of the test pictures, (n, C) uint8 or None if none has any; and which pictures have them, (n,) bool.

    Args:
        negatives: a row without labels tells that its picture has none; else it tells nothing.
    """
    table, n = tables.test_labels, len(test.ids)
    if table is None or not n or not table.rows["attribute_ids"].any():
        return None, np.zeros(n, bool)
    sets = _cells(table, known.names, problems)
    labels = _multi_hot(table, sets, known, problems)
    found: list[Problem] = []
    _, rows = _split(picture_folder(root, "test"), table, tables.test_pictures, found)
    if tables.test is None or tables.test.name != table.name:  # else they are named already
        problems += [problem for problem in found if problem.kind == "duplicate id"]
    at = _places(table, rows, test.files)
    has_some = np.array([bool(labels) for labels in sets])
    labelled = (at >= 0) & (negatives | has_some[at])
    missing = n - int(labelled.sum())
    if missing:
        text = f"{missing:,} of {n:,}: the test score is that of the others"
        problems.append(Problem("test labels are incomplete", table.name, None, text, forbids=False))
    return (labels[at] * labelled[:, None] if labelled.any() else None), labelled


def _places(table: Table, rows: dict[Path, int], files: Sequence[Path]) -> np.ndarray:
    """The place in the table of each file's row, -1 where it has none: (n,) int."""
    place = {row: i for i, row in enumerate(table.rows.index.tolist())}
    return np.array([place[rows[file]] if file in rows else -1 for file in files], dtype=int)


def _with_contents(
    splits: Sequence[Split],
    rows: Mapping[Path, tuple[str, int | None]],
    index: Path | None,
    problems: list[Problem],
) -> list[Split]:
    """The splits with the digests of their files; a file that cannot be read is a problem."""
    files = [file for split in splits for file in split.files]
    found = contents(files, index)
    for file in files:
        if file not in found:
            name = f"{file.parent.name}/{file.name}"
            problems.append(Problem(UNUSABLE, *rows[file], f"{name}: it cannot be read"))
    return [replace(split, contents=tuple(found.get(file, "") for file in split.files)) for split in splits]


def _digest(split: Split, label_ids: tuple[str, ...], labels: np.ndarray | None) -> str:
    """sha256 of ids, bytes of pictures, and labels; not of where the files lie, nor of how they are called."""
    found = hashlib.sha256()
    for picture, content in zip(split.ids, split.contents, strict=True):
        found.update(f"{picture}\0{content}\n".encode(errors="surrogateescape"))
    found.update("\0".join(label_ids).encode())
    if labels is not None:
        found.update(np.ascontiguousarray(labels).tobytes())
    return found.hexdigest()
