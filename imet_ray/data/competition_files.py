"""Where a competition's files lie, for a data directory and a kernel alike: its sample submission and its pictures."""

import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from imet_ray.data.csv_tables import Problem, header_of, read_table
from imet_ray.data.picture_names import picture_files

HEADER = ("id", "attribute_ids")  # of a submission, where no sample says otherwise
SAMPLE = re.compile(r"sample[ _-]?submission\.csv", re.IGNORECASE)
FOLDERS = {"train": ("train", "train_images"), "test": ("test", "test_images")}  # of pictures, by split


def is_sample(name: str) -> bool:
    """True for the name of a sample submission, such as sample_submission.csv or sampleSubmission.csv."""
    return SAMPLE.fullmatch(name) is not None


def sample_in(root: Path) -> Path | None:
    """The directory's sample submission."""
    return next((file for file in sorted(root.iterdir()) if is_sample(file.name)), None)


def sample_header(path: Path | None) -> tuple[str, str]:
    """The names of a sample's columns of ids and of labels: those that we know, else the first that are there."""
    names = header_of(path) if path is not None else []
    ids = HEADER[0] if HEADER[0] in names else next((n for n in names if n != HEADER[1]), HEADER[0])
    others = [name for name in names if name != ids]
    return ids, HEADER[1] if HEADER[1] in others else next(iter(others), HEADER[1])


def read_sample(path: Path, problems: list[Problem]) -> pd.DataFrame | None:
    """A sample submission's rows as `read_table` gives them, under the columns id and attribute_ids."""
    header = sample_header(path)
    rows = read_table(path, header[:1], problems, optional=header[1:])
    return rows if rows is None else rows.rename(columns=dict(zip(header, HEADER, strict=True)))


def picture_folder(root: Path, split: str) -> Path:
    """The folder of a split's pictures: one that is not empty, else one that is there, else where it should be."""
    places = [root / name for name in FOLDERS[split]]
    there = [place for place in places if place.is_dir()]
    return next((place for place in there if any(place.iterdir())), (there or places)[0])


def split_pictures(root: Path, split: str) -> dict[str, Path]:
    """A split's picture files by name; where its folder has none but sub-folders have, those of these.

    Where two of these have one name, their keys are their paths.
    """
    folder = picture_folder(root, split)
    if (found := picture_files(folder)) or not folder.is_dir():
        return found
    files = [file for below, _, _ in os.walk(folder) for file in picture_files(Path(below)).values()]
    names = Counter(file.name for file in files)
    return {
        file.name if names[file.name] == 1 else file.relative_to(folder).as_posix(): file
        for file in sorted(files)
    }


def archive_of(root: Path, split: str) -> Path | None:
    """The zip file that a split's pictures were left in."""
    return next((path for name in FOLDERS[split] if (path := root / f"{name}.zip").is_file()), None)
