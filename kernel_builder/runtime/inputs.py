"""What lies under the input folder: all files, and the pictures to predict."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imet_ray.data.catalog import PictureNames, picture_files
from imet_ray.data.csv_tables import Problem, read_table
from imet_ray.errors import DataError

logger = logging.getLogger(__name__)

SAMPLE = "sample_submission.csv"
TABLES = (SAMPLE, "train.csv")
PICTURES = ("test", "train")  # folders of these names hold pictures, if one of the tables lies beside them


@dataclass(frozen=True)
class TestPictures:
    """The pictures to predict, in the submission's order."""

    __test__ = False  # pytest: not a test

    ids: tuple[str, ...]
    files: tuple[Path, ...]  # also those that are missing


def all_files(root: Path) -> list[Path]:
    """Every file below `root`, sorted. Folders of pictures are left out, and no folder is entered twice."""
    found: list[Path] = []
    entered: set[str] = set()  # links may lead in circles
    for folder, folders, names in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in entered:
            folders.clear()
            continue
        entered.add(place)
        skipped = PICTURES if any(table in names for table in TABLES) else ()
        folders[:] = sorted(name for name in folders if name not in skipped)
        found += [Path(folder) / name for name in sorted(names)]
    return found


def find_test(files: Sequence[Path]) -> TestPictures:
    """The pictures that the sample submission names. One with a folder `test` beside it is preferred, then the nearest.

    Raises:
        DataError: if there is no sample submission, it cannot be read whole, or none of its pictures is there.
    """
    samples = sorted(
        (file for file in files if file.name == SAMPLE),
        key=lambda path: (not (path.parent / "test").is_dir(), len(path.parts), path),
    )
    if not samples:
        raise DataError(f"no {SAMPLE} under the input folder: attach the competition's data to the kernel")
    sample = samples[0]
    problems: list[Problem] = []
    rows = read_table(sample, ("id",), problems)
    fatal = [f"{one.kind}, row {one.row} {one.text}".rstrip() for one in problems if one.forbids]
    if fatal or rows is None or rows.empty:
        reason = fatal[0] if fatal else "it has no rows"
        raise DataError(f"{sample} cannot be read: {reason}: a submission must have all of its rows")
    folder = sample.parent / "test"
    names = PictureNames(picture_files(folder))
    ids = tuple(rows["id"])
    known = [next(iter(names.find(i)), None) for i in ids]
    if not any(known):
        raise DataError(
            f"none of the {len(ids):,} pictures of {sample} is in {folder}: attach the competition's data"
        )
    others = [str(other.parent) for other in samples[1:] if (other.parent / "test").is_dir()]
    if others:
        logger.warning("the pictures of %s, not those of %s", sample.parent, ", ".join(others))
    paths = tuple(file or folder / i for i, file in zip(ids, known, strict=True))
    return TestPictures(ids, paths)
