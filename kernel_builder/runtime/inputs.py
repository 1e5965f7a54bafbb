"""What lies under the input folder: all files, and the pictures to predict."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imet_ray.data.competition_files import (
    FOLDERS,
    HEADER,
    archive_of,
    is_sample,
    picture_folder,
    read_sample,
    sample_header,
    split_pictures,
)
from imet_ray.data.csv_tables import Problem
from imet_ray.data.picture_names import PictureNames, what_is_not_read
from imet_ray.errors import DataError

logger = logging.getLogger(__name__)

# folders of these names hold pictures, if a sample submission or train.csv lies beside them
PICTURES = {name for names in FOLDERS.values() for name in names}


@dataclass(frozen=True)
class TestPictures:
    """The pictures to predict, in the submission's order."""

    __test__ = False  # pytest: not a test

    ids: tuple[str, ...]
    files: tuple[Path, ...]  # also those that are missing
    header: tuple[str, str] = HEADER  # of the sample submission


def all_files(root: Path) -> list[Path]:
    """Every file below `root`, sorted. Folders of pictures are left out, and no folder is entered twice."""
    found: list[Path] = []
    entered: set[str] = set()  # links may lead in circles
    for folder, folders, names in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in entered:
            folders.clear()
            continue
        entered.add(place)
        skipped = PICTURES if any(name == "train.csv" or is_sample(name) for name in names) else ()
        folders[:] = sorted(name for name in folders if name not in skipped)
        found += [Path(folder) / name for name in sorted(names)]
    return found


def find_test(files: Sequence[Path], competition: str | None = None) -> TestPictures:
    """The pictures that the sample submission names.

    One with their folder beside it is preferred, then the competition's, then the nearest.

    Args:
        competition: its slug, as which Kaggle mounts its data.

    Raises:
        DataError: if there is no sample submission, it cannot be read whole, or none of its pictures is there.
    """

    def worse(sample: Path) -> tuple[bool, bool]:
        return not picture_folder(sample.parent, "test").is_dir(), competition not in sample.parts

    samples = sorted(
        (file for file in files if is_sample(file.name)),
        key=lambda path: (*worse(path), len(path.parts), path),
    )
    if not samples:
        raise DataError(
            "no sample_submission.csv under the input folder: attach the competition's data to the kernel"
        )
    sample = samples[0]
    problems: list[Problem] = []
    rows = read_sample(sample, problems)
    fatal = [f"{one.kind}, row {one.row} {one.text}".rstrip() for one in problems if one.forbids]
    if fatal or rows is None or rows.empty:
        reason = fatal[0] if fatal else "it has no rows"
        raise DataError(f"{sample} cannot be read: {reason}: a submission must have all of its rows")
    folder = picture_folder(sample.parent, "test")
    pictures = split_pictures(sample.parent, "test")
    names = PictureNames(pictures)
    ids = tuple(rows["id"])
    known = [next(iter(names.find(i)), None) for i in ids]
    if not any(known):
        archive = archive_of(sample.parent, "test")
        where = "attach the competition's data"
        if not folder.is_dir():
            where = f"{what_is_not_read(folder)}: {where}"
        if archive:
            where = f"but {archive.name} is there: unpack it"
        elif pictures:
            where = f"it has {len(pictures):,} others, such as {min(pictures)}, and the sample's are such as {ids[0]!r}"
        raise DataError(f"none of the {len(ids):,} pictures of {sample} is in {folder}: {where}")
    others = [str(other.parent) for other in samples[1:] if worse(other) <= worse(sample)]
    if others:
        logger.warning("the pictures of %s, not those of %s", sample.parent, ", ".join(others))
    paths = tuple(file or folder / i for i, file in zip(ids, known, strict=True))
    return TestPictures(ids, paths, sample_header(sample))
