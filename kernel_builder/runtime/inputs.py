"""What lies under the input folder: all files, and among them the pictures to predict."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imet_ray.data.catalog import picture_files
from imet_ray.data.csv_tables import Problem, read_table
from imet_ray.errors import DataError

SAMPLE = "sample_submission.csv"
TABLES = (SAMPLE, "train.csv")  # beside these, folders of these names hold pictures
PICTURES = ("test", "train")


@dataclass(frozen=True)
class TestPictures:
    """The pictures to predict, in the submission's order."""

    __test__ = False  # pytest: not a test

    ids: tuple[str, ...]
    files: tuple[Path, ...]  # one that is missing is named all the same
    samples: tuple[Path, ...] = ()  # the sample submission, and others that have pictures beside them


def all_files(root: Path) -> list[Path]:
    """Every file below `root`, sorted; a competition's folders of pictures are not entered, no folder twice."""
    found: list[Path] = []
    been: set[tuple[int, int]] = set()  # links may lead in circles
    for folder, folders, names in os.walk(root, followlinks=True):
        known = Path(folder).stat()
        if (known.st_dev, known.st_ino) in been:
            folders.clear()
            continue
        been.add((known.st_dev, known.st_ino))
        skipped = PICTURES if any(table in names for table in TABLES) else ()
        folders[:] = sorted(name for name in folders if name not in skipped)
        found += [Path(folder) / name for name in sorted(names)]
    return found


def find_test(files: Sequence[Path]) -> TestPictures:
    """The pictures that the sample submission names: one with a folder `test` beside it, or else the nearest.

    Raises:
        DataError: if there is none, it cannot be read whole, or none of its pictures is there.
    """
    samples = sorted(
        (file for file in files if file.name == SAMPLE),
        key=lambda path: (not (path.parent / "test").is_dir(), len(path.parts), path),
    )
    if not samples:
        raise DataError(f"no {SAMPLE} under the input folder: attach the competition's data to the kernel")
    problems: list[Problem] = []
    rows = read_table(samples[0], ("id",), problems, optional=("attribute_ids",))
    fatal = [problem for problem in problems if problem.forbids]
    if fatal or rows is None or rows.empty:
        first = fatal[0] if fatal else None
        reason = f"{first.kind}, row {first.row} {first.text}".rstrip() if first else "it has no rows"
        raise DataError(f"{samples[0]} cannot be read: {reason}: a submission must have all of its rows")
    folder = samples[0].parent / "test"
    listing = picture_files(folder)
    by_stem = {file.stem: file for file in listing.values()}
    ids = tuple(rows["id"])
    known = [listing.get(i) or by_stem.get(i) for i in ids]
    if not any(known):
        raise DataError(
            f"none of the {len(ids):,} pictures of {samples[0]} is in {folder}: attach the competition's data"
        )
    paths = tuple(file or folder / i for i, file in zip(ids, known, strict=True))
    others = [sample for sample in samples[1:] if (sample.parent / "test").is_dir()]
    return TestPictures(ids, paths, (samples[0], *others))
