"""Which pictures are to be tagged: files, folders, globs, a list on stdin, and folders of buckets.

Folders give what looks like a picture by its suffix, sorted, without hidden files. A file that is named is taken.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imet_ray.data.picture_names import SUFFIXES
from imet_ray.errors import ConfigError, DataError
from imet_ray.units import user_path

if TYPE_CHECKING:
    from imet_ray.storage.object_store import Bucket

LIST = "-"  # on stdin
MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Found:
    """A picture, wherever it lies."""

    path: str  # as the user would type it, or a URL
    base: str = ""  # the folder that it is typed in, for who runs elsewhere

    @property
    def name(self) -> str:
        """The path as text that can be written anywhere: bytes that are no UTF-8 as \\xNN."""
        return os.fsencode(self.path).decode(errors="backslashreplace")

    @property
    def is_local(self) -> bool:
        return "://" not in self.path

    def read(self) -> Path | bytes:
        """The file, or the bytes that a bucket has.

        Raises:
            DataError: if the object is gone.
        """
        if self.is_local:
            return Path(self.base, self.path)
        bucket, key = _object(self.path)
        data = bucket.read(key)
        if data is None:
            raise DataError(f"{self.path}: no such object")
        return data


def find_pictures(given: Sequence[str], stdin: BinaryIO) -> list[Found]:
    """All pictures, each once, in the order of the arguments.

    Args:
        given: files, folders, globs, URLs of buckets' folders or objects, or `-` for a list of paths on stdin.

    Raises:
        ConfigError: for an argument that leads to nothing.
    """
    paths: dict[str, str] = {}
    for text in given:
        for path in _listed(stdin) if text == LIST else _pictures_at(text):
            paths.setdefault(path if "://" in path else os.path.abspath(path), path)  # noqa: PTH100  # `..` stays text
    return [Found(path) for path in paths.values()]


def _listed(stdin: BinaryIO) -> Iterator[str]:
    """Paths that stand in lines, or are separated by NUL; one that is not there is told of at the end."""
    data = stdin.read()
    lines = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    for line in filter(None, lines):
        path = os.fsdecode(line)
        if "://" in path or Path(path).is_dir():
            yield from _pictures_at(path)
        else:
            yield path


def _pictures_at(text: str) -> Iterator[str]:
    if "://" in text:
        yield from _objects_at(text)
        return
    path = user_path(text)
    if path.is_dir():
        yield from _in_folder(path)
    elif os.path.lexists(path):
        yield str(path)
    elif not MAGIC.isdisjoint(text):
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # absolute ones, too
        if not found:
            raise ConfigError(f"--tag: nothing is like {text}")
        for one in found:
            yield from _in_folder(Path(one)) if Path(one).is_dir() else _if_picture(one)
    else:
        raise ConfigError(f"--tag: there is no {text}")


def _in_folder(root: Path) -> Iterator[str]:
    """Picture files below a folder, sorted; links to other folders are not followed, for they may lead back."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield from _if_picture(os.path.join(folder, name))  # noqa: PTH118


def _if_picture(path: str) -> Iterator[str]:
    name = path.rpartition("/")[2]
    if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
        yield path


def _objects_at(url: str) -> Iterator[str]:
    """The pictures below a folder of a bucket, or the object itself."""
    bucket, key = _object(url)
    found = [entry.key for entry in bucket.listing(f"{key}/" if key else "")]
    if not found and key and bucket.head(key) is not None:
        yield f"{bucket.url}/{key}"
        return
    pictures = [path for key in sorted(found) for path in _if_picture(f"{bucket.url}/{key}")]
    if not pictures:
        raise ConfigError(f"--tag: there is no picture below {url}")
    yield from pictures


def _object(url: str) -> "tuple[Bucket, str]":
    from imet_ray.storage.object_store import open_bucket, split_url  # its clients, which few need

    scheme, name, parts = split_url(url)
    return open_bucket(scheme, name), "/".join(parts)
