"""A data directory that was read and checked: its pictures, their labels, and all that is wrong with it.

Which files hold the tables and the pictures is a matter of the data format (`imet_ray.data.formats`). Names are
compared here; `imet_ray.data.check` decodes every picture as well.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from imet_ray.data.contents import contents
from imet_ray.data.csv_tables import Problem, numbered
from imet_ray.data.images import HEIF_EXTRA

HEIF = frozenset({".heic", ".heif"})  # by an extra
SUFFIXES = HEIF | {
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".bmp",
    ".avif",
    ".jp2",
}
UNUSABLE = "picture cannot be used"


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
    test_labels: np.ndarray | None  # (n, C) uint8, where the test pictures have them
    label_groups: tuple[str, ...]  # (C,), given or from names such as culture::french; "" without
    digest: str  # of the training split: ids, labels, and the bytes of the pictures
    test_digest: str

    def summary(self) -> str:
        """One line for people."""
        mean = self.labels.sum() / len(self.labels)
        return (
            f"{len(self.train.ids):,} training and {len(self.test.ids):,} test pictures, "
            f"{len(self.label_ids):,} labels, {mean:.1f} per picture"
        )


@dataclass(frozen=True)
class Table:
    """The rows of one table. The index is the row's number in the file, each cell a string."""

    name: str  # of the file, for problems
    rows: pd.DataFrame


@dataclass(frozen=True)
class Tables:
    """What a data format finds in a directory."""

    train: Table  # id, attribute_ids (separated by spaces)
    labels: Table | None  # attribute_id, attribute_name, group; None: the labels are those of `train`
    test: Table  # id, in the submission's order
    test_labels: Table | None  # id, attribute_ids; None without
    train_pictures: dict[str, Path]  # by file name
    test_pictures: dict[str, Path]


@dataclass(frozen=True)
class Reading:
    """A directory as it was found, whether it may be trained on or not."""

    catalog: Catalog | None  # None where a problem forbids training
    problems: tuple[Problem, ...]
    pictures: tuple[Path, ...] = ()  # all that there is a reader for, used or not
    rows: dict[Path, tuple[str, int]] = field(default_factory=dict)  # picture -> table and row that name it


def assemble(root: Path, tables: Tables, problems: list[Problem], index: Path | None = None) -> Reading:
    """Match ids with pictures and label sets with labels; what is wrong is added to `problems`.

    Args:
        index: where the digests of files are remembered (`imet_ray.data.contents`).
    """
    known = _known_labels(tables, problems)
    known_from = (tables.labels or tables.train).name
    train, train_rows = _split(root / "train", tables.train, tables.train_pictures, problems)
    labelled = Table(tables.train.name, tables.train.rows.loc[list(train_rows.values())])
    labels = _label_sets(labelled, known, known_from, problems)
    test, test_rows = _split(root / "test", tables.test, tables.test_pictures, problems)
    tested = _test_table(tables.test_labels, test.ids, problems)
    test_labels = _label_sets(tested, known, known_from, problems) if tested is not None else None
    pictures = (*tables.train_pictures.values(), *tables.test_pictures.values())
    rows = {file: (tables.train.name, row) for file, row in train_rows.items()}
    rows |= {file: (tables.test.name, row) for file, row in test_rows.items()}
    if find_spec("pillow_heif") is None:
        _need_extra((*train.files, *test.files), problems)
        pictures = tuple(file for file in pictures if file.suffix.lower() not in HEIF)
    if not any(problem.forbids for problem in problems):
        train, test = _with_contents((train, test), rows, index, problems)
    if any(problem.forbids for problem in problems):
        return Reading(None, tuple(problems), pictures, rows)
    names = tuple(name for name, _ in known.values())
    catalog = Catalog(
        root=root.resolve(),
        label_ids=tuple(known),
        label_names=names,
        train=train,
        labels=labels,
        test=test,
        test_labels=test_labels,
        label_groups=label_groups(names, [group for _, group in known.values()]),
        digest=_digest(train, tuple(known), labels),
        test_digest=_digest(test, (), None),
    )
    return Reading(catalog, tuple(problems), pictures, rows)


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


def picture_files(folder: Path) -> dict[str, Path]:
    """The picture files of a folder by name: one directory listing, not a look-up per id.

    Hidden files are none, whatever their suffix: `._a.jpg` is what macOS keeps beside a.jpg.
    """
    if not folder.is_dir():
        return {}
    return {f.name: f for f in sorted(folder.iterdir()) if f.suffix.lower() in SUFFIXES and f.name[0] != "."}


class PictureNames:
    """Picture files by the ids that may name them. Unicode forms (NFC, NFD) are one, and so are .jpg and .JPG."""

    def __init__(self, pictures: dict[str, Path]) -> None:
        self._exact = pictures
        self._names: dict[str, list[Path]] = {}
        self._stems: dict[str, list[Path]] = {}
        for file in pictures.values():
            stem, suffix = _name(file.name)
            self._names.setdefault(stem + suffix, []).append(file)
            self._stems.setdefault(stem, []).append(file)

    def find(self, picture: str) -> list[Path]:
        """The files that an id may mean; more than one only where none has its very name."""
        if picture in self._exact:
            return [self._exact[picture]]
        stem, suffix = _name(picture)
        return self._names.get(stem + suffix) or self._stems.get(_composed(picture), [])

    def alike(self, picture: str) -> list[Path]:
        """Files that differ from an id in their suffix alone."""
        return self._stems.get(_name(picture)[0], [])


def _name(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(_composed(name))  # noqa: PTH122 (an id is no path)
    return stem, suffix.lower()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _need_extra(files: Sequence[Path], problems: list[Problem]) -> None:
    """One problem where pictures need a reader that is not installed."""
    counts = Counter((file.parent.name, file.suffix) for file in files if file.suffix.lower() in HEIF)
    if counts:
        found = ", ".join(f"{n:,} files of {folder}/ are {suffix}" for (folder, suffix), n in counts.items())
        problems.append(Problem("pictures without a reader", found, None, HEIF_EXTRA))


def _not_read(folder: Path) -> str:
    """What lies in a folder beside pictures: "24 files of train/ are .psd", or that it is not there."""
    if not folder.is_dir():
        return f"there is no folder {folder.name}/"
    inside = [
        file for file in folder.iterdir() if file.name[0] != "." and file.suffix.lower() not in SUFFIXES
    ]
    counts = Counter(file.suffix for file in inside if not file.is_dir())
    folders = sorted(file.name for file in inside if file.is_dir())
    found = [
        f"{n:,} files of {folder.name}/ are {kind or 'without a suffix'}" for kind, n in counts.most_common(3)
    ]
    if folders:
        found.append(f"{len(folders):,} folders lie in {folder.name}/, such as {folders[0]}/")
    return ", ".join(found)


def _known_labels(tables: Tables, problems: list[Problem]) -> dict[str, tuple[str, str]]:
    """Name and group of each label id, in order."""
    if tables.labels is None:
        used = {label for text in tables.train.rows["attribute_ids"] for label in text.split()}
        return {label: (label, "") for label in _ordered(used)}
    known: dict[str, tuple[str, str]] = {}
    for row, label, name, group in tables.labels.rows.itertuples(name=None):
        if not label:
            problems.append(Problem("empty label id", tables.labels.name, row, ""))
        elif label in known:
            problems.append(Problem("repeated label", tables.labels.name, row, repr(label)))
        known[label] = name, group
    return known


def _ordered(labels: set[str]) -> list[str]:
    """In the order of numbers if all are numbers."""
    if all(label.isdecimal() for label in labels):  # no int(): it refuses more than 4,300 digits
        return sorted(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label))
    return sorted(labels)


def _label_sets(table: Table, known: Iterable[str], known_from: str, problems: list[Problem]) -> np.ndarray:
    """The label sets of a table's rows: (n, C) uint8.

    Args:
        known: the labels' ids.
        known_from: the table that they are from.
    """
    place = {label: i for i, label in enumerate(known)}
    labels = np.zeros((len(table.rows), len(place)), np.uint8)
    for i, (row, text) in enumerate(numbered(table.rows, "attribute_ids")):
        for label in text.split():
            if label not in place:
                problems.append(Problem(f"label that {known_from} lacks", table.name, row, repr(label)))
            elif labels[i, place[label]]:
                problems.append(Problem("repeated label", table.name, row, repr(label)))
            else:
                labels[i, place[label]] = 1
        if not text:
            picture = table.rows["id"].iloc[i]
            problems.append(Problem("row without labels", table.name, row, repr(picture)))
    return labels


def _split(
    folder: Path, table: Table, pictures: dict[str, Path], problems: list[Problem]
) -> tuple[Split, dict[Path, int]]:
    """The pictures that a table's rows name, and the row of each."""
    read = f"pictures are {', '.join(sorted(SUFFIXES))}"
    if len(table.rows) and not pictures:
        text = f"{table.name} has {len(table.rows):,} ids; {_not_read(folder) or f'{folder.name}/ is empty'}; {read}"
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
            alike = [] if files else names.alike(picture)
            hint = f", but {alike[0].name} is there" if alike else ""
            problems.append(Problem(wrong[0], table.name, row, wrong[1] + hint))
            absent += not files
            continue
        taken[files[0]] = row
        ids.append(picture)
    if absent and (others := _not_read(folder)):
        problems.append(
            Problem("files that are not read", folder.name, None, f"{others}; {read}", forbids=False)
        )
    extra = len(pictures) - len(ids)
    if extra > 0 and 0 < len(table.rows) == len(ids):
        text = f"{extra:,} are not used"
        problems.append(Problem("files without an id", folder.name, None, text, forbids=False))
    return Split(tuple(ids), tuple(taken)), taken


def _wrong(
    picture: str, files: Sequence[Path], seen: dict[str, int], taken: dict[Path, int]
) -> tuple[str, str] | None:
    """Why an id, or the files that may be its picture, cannot be: the kind of problem and its text."""
    if not picture:
        return "empty id", ""
    if "/" in picture or "\\" in picture or picture in (".", ".."):
        return "id is a path", repr(picture)
    if picture in seen:
        return "duplicate id", f"{picture!r}, first in row {seen[picture]}"
    if not files:
        return "id without a file", f"no picture is called {picture!r}"
    if len(files) > 1:
        return (
            "several files for an id",
            f"{picture!r}: {', '.join(sorted(f'{f.parent.name}/{f.name}' for f in files))}",
        )
    if files[0] in taken:
        return "duplicate id", f"{picture!r} is the picture of row {taken[files[0]]}"
    if not files[0].is_file():  # a directory, or a link to nowhere
        return "not a file", f"{files[0].parent.name}/{files[0].name}"
    return None


def _test_table(table: Table | None, ids: Sequence[str], problems: list[Problem]) -> Table | None:
    """The labelled rows of the test pictures, in their order, if all have labels."""
    if table is None or not ids:
        return None
    rows = table.rows[table.rows["attribute_ids"] != ""].reset_index(names="row")
    rows = rows.drop_duplicates("id", keep="last").set_index("id", drop=False)
    missing = len(ids) - int(rows["id"].isin(ids).sum())
    if missing and len(rows):
        text = f"{missing:,} of {len(ids):,} test pictures have none: test labels are not used"
        problems.append(Problem("test labels are incomplete", table.name, None, text, forbids=False))
    return None if missing else Table(table.name, rows.loc[list(ids)].set_index("row"))


def _with_contents(
    splits: Sequence[Split], rows: dict[Path, tuple[str, int]], index: Path | None, problems: list[Problem]
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
