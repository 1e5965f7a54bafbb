"""Names of picture files: which files of a folder are pictures, and which of them an id means."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from imet_ray.data.csv_tables import Problem
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
        self._alike: dict[str, list[Path]] = {}
        for file in pictures.values():
            stem, suffix = _name(file.name)
            self._names.setdefault(stem + suffix, []).append(file)
            self._stems.setdefault(stem, []).append(file)
            self._alike.setdefault(_loosely(stem), []).append(file)

    def find(self, picture: str) -> list[Path]:
        """The files that an id may mean; more than one only where none has its very name."""
        if picture in self._exact:
            return [self._exact[picture]]
        stem, suffix = _name(picture)
        return self._names.get(stem + suffix) or self._stems.get(_composed(picture), [])

    def alike(self, picture: str) -> list[Path]:
        """Files that differ from an id in their suffix, in capitals, or in zeros that spreadsheets drop, alone."""
        return self._alike.get(_loosely(_name(picture)[0])) or self._alike.get(_loosely(picture), [])


def _loosely(stem: str) -> str:
    return stem.casefold().lstrip("0")


def _name(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(_composed(name))  # noqa: PTH122 (an id is no path)
    return stem, suffix.lower()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def need_extra(files: Sequence[Path], problems: list[Problem]) -> None:
    """One problem where pictures need a reader that is not installed."""
    counts = Counter((file.parent.name, file.suffix) for file in files if file.suffix.lower() in HEIF)
    if counts:
        found = ", ".join(f"{n:,} files of {folder}/ are {suffix}" for (folder, suffix), n in counts.items())
        problems.append(Problem("pictures without a reader", found, None, HEIF_EXTRA))


def what_is_not_read(folder: Path) -> str:
    """What lies in a folder beside pictures: "24 files of train/ are .psd", or that it is not there."""
    if not folder.is_dir():
        others = sorted(f"{file.name}/" for file in folder.parent.iterdir() if file.is_dir())
        return f"there is no folder {folder.name}/" + (f", but {', '.join(others[:5])}" if others else "")
    inside = [
        file for file in folder.iterdir() if file.name[0] != "." and file.suffix.lower() not in SUFFIXES
    ]
    counts = Counter(file.suffix for file in inside if not file.is_dir())
    folders = sorted(file.name for file in inside if file.is_dir())
    found = [
        f"{n:,} files of {folder.name}/ are {kind or 'without a suffix'}" for kind, n in counts.most_common(3)
    ]
    if folders:
        found.append(f"{folder.name}/ has folders, such as {folders[0]}/")
    return ", ".join(found)
