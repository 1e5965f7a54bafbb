"""Data formats: how the tables of a data directory are recognised and read.

Today there is one, Kaggle's layout. A format gives `Tables`; all checks are the same for every format
(`imet_ray.data.catalog`). Where a directory comes from is `imet_ray.data.sources`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from imet_ray.data.catalog import Catalog, Reading, Table, Tables, assemble
from imet_ray.data.competition_files import HEADER, archive_of, read_sample, sample_in, split_pictures
from imet_ray.data.csv_tables import Problem, listed, read_table
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

    train.csv                id, attribute_ids (separated by spaces)
    labels.csv               attribute_id, attribute_name, group; without it the labels are those of train.csv
    train/                   one picture per id: png, jpg, webp, tif, gif, bmp, avif, jp2, heic; or train_images/,
                             or in sub-folders
    test/                    likewise; may be missing
    sample_submission.csv    the test ids and their order, under any header; else test.csv; else the files of test/
    """

    def recognises(self, root: Path) -> bool:
        return (root / "train.csv").exists()

    def read(self, root: Path, problems: list[Problem]) -> Tables:
        train = _rows(root / "train.csv", ("id", "attribute_ids"), (), problems)
        if train.empty and not any(problem.where == "train.csv" and problem.forbids for problem in problems):
            problems.append(Problem("empty table", "train.csv", None, "it has no rows"))
        labels = None
        if (root / "labels.csv").exists():
            columns = ("attribute_id", "attribute_name")
            labels = read_table(root / "labels.csv", columns, problems, optional=("group",))
        tests: dict[str, Table] = {}
        if (sample := sample_in(root)) is not None:
            tests[sample.name] = Table(sample.name, _or_none(read_sample(sample, problems), HEADER))
        if (root / "test.csv").exists():
            tests["test.csv"] = Table(
                "test.csv", _rows(root / "test.csv", ("id",), ("attribute_ids",), problems)
            )
        pictures = {split: split_pictures(root, split) for split in ("train", "test")}
        for split, found in pictures.items():
            if not found and (archive := archive_of(root, split)) is not None:
                problems.append(
                    Problem("pictures in an archive", archive.name, None, f"unpack it into {split}/")
                )
        files = pd.DataFrame({"id": [Path(name).stem for name in sorted(pictures["test"])]}, dtype=object)
        files.index += 1  # of a listing, which has no header
        test = next(iter(tests.values()), Table("test", files))
        return Tables(
            train=Table("train.csv", train),
            labels=Table("labels.csv", labels) if labels is not None else None,
            test=test,
            test_labels=tests.get("test.csv"),
            train_pictures=pictures["train"],
            test_pictures=pictures["test"],
        )


def _rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...], problems: list[Problem]
) -> pd.DataFrame:
    """A table's rows; none if it cannot be read, for the problems of other tables are still to be found."""
    return _or_none(read_table(path, columns, problems, optional=optional), (*columns, *optional))


def _or_none(rows: pd.DataFrame | None, columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns), dtype=object) if rows is None else rows


def read_catalog(root: Path, cache: Cache | None = None) -> Catalog:
    """Read and check a data directory, without decoding pictures.

    Args:
        cache: where the digests of pictures are remembered; None: all are read.

    Raises:
        DataError: with all problems that forbid training.
    """
    reading = read_directory(root, cache)
    if reading.catalog is None:
        forbidding = [problem for problem in reading.problems if problem.forbids]
        raise DataError(f"{root} must not be trained on:\n" + "\n".join(listed(forbidding)))
    return reading.catalog


def read_directory(root: Path, cache: Cache | None = None) -> Reading:
    """Read a data directory and collect all that is wrong with it, without decoding pictures.

    The first format that recognises the directory reads it; if none does, Kaggle's says what is missing.
    """
    if not root.is_dir():
        text = "expected train.csv and train/ in it"
        return Reading(None, (Problem("no such directory", str(root), None, text),))
    root = root.resolve()  # digests are remembered by path, however it was typed
    problems: list[Problem] = []
    form = next((form for form in FORMATS.values() if form.recognises(root)), FORMATS["kaggle"])
    tables = form.read(root, problems)
    return assemble(root, tables, problems, cache.contents(root) if cache else None)


FORMATS: dict[str, DataFormat] = {"kaggle": Kaggle()}
