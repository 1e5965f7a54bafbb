"""Data formats: how the tables of a data directory are recognised and read.

Today there is one, Kaggle's layout. A format gives `Tables`; all checks are the same for every format
(`imet_ray.data.catalog`). Where a directory comes from is `imet_ray.data.sources`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from imet_ray.data.catalog import Catalog, Reading, Table, Tables, assemble
from imet_ray.data.competition_files import (
    FOLDERS,
    HEADER,
    archive_of,
    is_sample,
    picture_folder,
    read_sample,
    sample_in,
    split_pictures,
)
from imet_ray.data.csv_tables import TABLE_SUFFIXES, Problem, like_named, listed, read_table
from imet_ray.data.picture_names import picture_files
from imet_ray.errors import DataError
from imet_ray.storage.run_directory import Cache


class DataFormat(Protocol):
    """How a directory's tables are found."""

    def recognises(self, root: Path) -> bool:
        """True if this directory is of the format."""
        ...

    def read(self, root: Path, problems: list[Problem]) -> Tables:
        """The directory's tables; what is wrong with them is added to `problems`."""
        ...


class Kaggle:
    """Kaggle's layout.

    train.csv                id, attribute_ids (separated by spaces, or as `imet_ray.data.labels` tells)
    labels.csv               attribute_id, attribute_name, group; without it the labels are those of train.csv
    train/                   one picture per id: png, jpg, webp, tif, gif, bmp, avif, jp2, heic; or train_images/,
                             or in sub-folders
    test/                    likewise; may be missing
    sample_submission.csv    the test ids and their order, under any header; else test.csv; else the files of test/
    """

    def recognises(self, root: Path) -> bool:
        return (root / "train.csv").exists()

    def read(self, root: Path, problems: list[Problem]) -> Tables:
        train = _train_rows(root, problems)
        if train.empty and not any(problem.where == "train.csv" and problem.forbids for problem in problems):
            problems.append(Problem("empty table", "train.csv", None, "it has no rows"))
        labels = None
        if (root / "labels.csv").exists():
            columns = ("attribute_id", "attribute_name")
            labels = read_table(root / "labels.csv", columns, problems, optional=("group",))
        tests: dict[str, Table] = {}  # whose ids are the test split, the first of them that is there
        if (sample := sample_in(root)) is not None:
            tests[sample.name] = Table(sample.name, _or_none(read_sample(sample, problems), HEADER))
        if (root / "test.csv").exists():
            tests["test.csv"] = Table(
                "test.csv", _rows(root / "test.csv", ("id",), ("attribute_ids",), problems)
            )
        absent = ["labels.csv", "test.csv", *([] if sample else ["sample_submission.csv"])]
        for name in absent:
            if not (root / name).exists() and (others := like_named(root / name)):
                text = f"save it as {name}, a CSV file in UTF-8, or it is not read"
                problems.append(Problem("table in another form", others[0], None, text, forbids=False))
        pictures = {split: split_pictures(root, split) for split in ("train", "test")}
        for split, found in pictures.items():
            if not found and (archive := archive_of(root, split)) is not None:
                problems.append(
                    Problem("pictures in an archive", archive.name, None, f"unpack it into {split}/")
                )
        return Tables(
            train=Table("train.csv", train),
            labels=Table("labels.csv", labels) if labels is not None else None,
            test=next(iter(tests.values()), None),
            test_labels=tests.get("test.csv"),
            train_pictures=pictures["train"],
            test_pictures=pictures["test"],
        )


def _train_rows(root: Path, problems: list[Problem]) -> pd.DataFrame:
    path = root / "train.csv"
    if not path.exists() and not like_named(path):
        problems.append(Problem("no such file", path.name, None, _instead_of_train_csv(root)))
        return _or_none(None, HEADER)
    return _rows(path, HEADER, (), problems)


def _instead_of_train_csv(root: Path) -> str:
    """What to do where there is no table of labels: with another table that is there, or with folders by label."""
    columns = "the columns id (names of pictures) and attribute_ids (their labels)"
    tables = sorted(file.name for file in root.iterdir() if file.name.lower().endswith(TABLE_SUFFIXES))
    others = ("labels.csv", "test.csv")
    if tables := [n for n in tables if n not in others and not is_sample(n) and not n.endswith(".txt")]:
        return f"{tables[0]} is there: save it as train.csv, a CSV file in UTF-8 with {columns}"
    text = f"write one with {columns}, a row for each picture of train/"
    splits = {name for names in FOLDERS.values() for name in names}
    for parent in (picture_folder(root, "train"), root):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            if folder.name not in splits and picture_files(folder):
                return f"{text}; names of folders, such as {folder.name}/, are not read as labels"
    return text


def _rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...], problems: list[Problem]
) -> pd.DataFrame:
    """A table's rows; none if it cannot be read, for the problems of other tables are still to be found."""
    return _or_none(read_table(path, columns, problems, optional=optional), (*columns, *optional))


def _or_none(rows: pd.DataFrame | None, columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns), dtype=object) if rows is None else rows


def read_catalog(root: Path, cache: Cache | None = None, *, negatives: bool = False) -> Catalog:
    """Read and check a data directory, without decoding pictures.

    Args:
        cache: where the digests of pictures are remembered; None: all are read.
        negatives: pictures without labels have none of them; else they are refused.

    Raises:
        DataError: with all problems that forbid training.
    """
    return accepted(root, read_directory(root, cache, negatives=negatives))


def accepted(root: Path, reading: Reading) -> Catalog:
    """The catalog of a directory that may be trained on; raises as `read_catalog`."""
    if reading.catalog is None:
        forbidding = [problem for problem in reading.problems if problem.forbids]
        raise DataError(f"{root} must not be trained on:\n" + "\n".join(listed(forbidding)))
    return reading.catalog


def read_directory(root: Path, cache: Cache | None = None, *, negatives: bool = False) -> Reading:
    """Read a data directory and collect all that is wrong with it, without decoding pictures.

    The first format that recognises the directory reads it; if none does, Kaggle's says what is missing.

    Args:
        cache, negatives: as of `read_catalog`.
    """
    if not root.is_dir():
        text = "expected train.csv and train/ in it"
        return Reading(None, (Problem("no such directory", str(root), None, text),))
    root = root.resolve()  # digests are remembered by path, however it was typed
    problems: list[Problem] = []
    form = next((form for form in FORMATS.values() if form.recognises(root)), FORMATS["kaggle"])
    tables = form.read(root, problems)
    return assemble(root, tables, problems, cache.contents(root) if cache else None, negatives=negatives)


FORMATS: dict[str, DataFormat] = {"kaggle": Kaggle()}
