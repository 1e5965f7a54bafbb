"""Which pictures are to be tagged: files, folders, globs, a list on stdin, and folders of buckets.

Folders give what looks like a picture by its suffix, sorted, without hidden files. A file that is named is taken.
"""

import codecs
import contextlib
import glob
import os
import stat
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
            DataError: if the object is gone, or the file is a pipe or a device, which could be read for ever.
        """
        if self.is_local:
            path = Path(self.base, self.path)
            with contextlib.suppress(OSError, ValueError):  # whoever opens it says so
                if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{path}: it is a pipe or a device, and no file")
            return path
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
    data = stdin.read().removeprefix(codecs.BOM_UTF8)
    lines = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    for line in filter(None, lines):
        path = os.fsdecode(line)
        if "://" in path and not _is_picture(path):
            yield from _objects_at(path)
        elif Path(path).is_dir():
            yield from _in_folder(Path(path))  # which may be empty
        else:
            yield path


def _pictures_at(text: str) -> Iterator[str]:
    if "://" in text:
        yield from _objects_at(text)
        return
    path = user_path(text)
    if path.is_dir():
        pictures = list(_in_folder(path))
    elif os.path.lexists(path):
        pictures = [str(path)]
    elif not MAGIC.isdisjoint(text):
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # absolute ones, too
        if not found:
            raise ConfigError(f"--tag: nothing matches {text}")
        pictures = [
            picture
            for one in found
            for picture in (_in_folder(Path(one)) if Path(one).is_dir() else filter(_is_picture, [one]))
        ]
    else:
        raise ConfigError(f"--tag: there is no {text}")
    if not pictures:
        raise ConfigError(f"--tag: there is no picture in {text}: {', '.join(sorted(SUFFIXES))} are read")
    yield from pictures


def _in_folder(root: Path) -> Iterator[str]:
    """Picture files below a folder, sorted; links to other folders are not followed, for they may lead back.

    A folder that cannot be listed comes itself, and is told of at the end as all that cannot be read.
    """
    closed: list[str] = []
    for folder, folders, names in os.walk(root, onerror=lambda error: closed.append(error.filename)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from filter(_is_picture, (os.path.join(folder, name) for name in sorted(names)))  # noqa: PTH118
    yield from closed


def _is_picture(path: str) -> bool:
    """By its name."""
    name = path.rpartition("/")[2]
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _objects_at(url: str) -> Iterator[str]:
    """The pictures below a folder of a bucket, or the object itself."""
    from imet_ray.storage.object_store import split_url

    scheme, name, parts = split_url(url)
    bucket, key = _object("/".join((f"{scheme}://{name}", *parts)))
    found = [entry.key for entry in bucket.listing(f"{key}/" if key else "")]
    if not found and key and bucket.head(key) is not None:
        yield f"{bucket.url}/{key}"
        return
    pictures = [path for key in sorted(found) if _is_picture(path := f"{bucket.url}/{key}")]
    if not pictures:
        raise ConfigError(f"--tag: there is no picture below {url}")
    yield from pictures


def _object(url: str) -> "tuple[Bucket, str]":
    """A bucket, and the key of an object in it, which may have an @, a ? or a #."""
    from imet_ray.storage.object_store import open_bucket, split_url  # its clients, which few need

    scheme, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    split_url(f"{scheme}://{name}")
    return open_bucket(scheme, name), key
