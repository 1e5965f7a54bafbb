"""Files of runs: written whole or not at all, on this machine; and `Files`, what else a run asks of where it lies.

Writes go to a temporary name beside the target and are put in place by `os.replace`, so a file that exists is whole.
Runs in a bucket are `imet_ray.storage.bucket_mirror`, which this module knows nothing of.
"""

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.errors import StoreError


class SupersededError(Exception):
    """Another process has taken over this trial; this one must stop writing and leave quietly."""


@dataclass(frozen=True)
class Files:
    """Files that lie on this machine alone. Handed in where a run is opened, and pickled to its workers with it.

    `imet_ray.storage.bucket_mirror.MirroredFiles` is the other implementation.
    """

    def writing(self, path: Path) -> AbstractContextManager[Path]:
        """A temporary path beside `path`, put in its place when the block ends well.

        Raises:
            StoreError: if the disk is full or the place cannot be written.
            SupersededError: if a newer writer of the trial has written the file.
        """
        return writing(path)

    def remove(self, path: Path) -> None:
        """Delete a file, if it is there."""
        path.unlink(missing_ok=True)

    def size_of(self, path: Path) -> int | None:
        """Bytes of a file, on this machine or not; None if there is none."""
        return path.stat().st_size if path.exists() else None

    def address(self, path: Path) -> str:
        """The path as the user would type it: a URL, where the file lies in a bucket."""
        here = Path.cwd()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    def read_now(self, path: Path) -> str | None:
        """The text of a small file as it is now for all machines; None if there is none."""
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def folders(self, path: Path) -> list[str]:
        """Names of the folders in a folder."""
        return [one.name for one in path.glob("*") if one.is_dir()]

    def fetch(self, folder: Path, names: Collection[str], *, owner: bool = False) -> set[Path]:
        """Bring the files of these names, down to two folders below one, to this machine.

        Returns all files that lie elsewhere, of any name, as their places here.

        Args:
            owner: nobody else on this machine writes here. Files that were deleted elsewhere go, and the caller is from
                now on the writer of those that only the newest writer may replace.
        """
        return set()

    def fetch_file(self, path: Path) -> None:
        """Bring one file."""

    def fetch_log(self, path: Path, target: Path) -> Path:
        """Bring a file that only grows to `target`, if it lies elsewhere; where it is now. A longer one there stays."""
        return path

    def publish(self, path: Path) -> None:
        """Send a file that was not written through `writing`."""

    @contextlib.contextmanager
    def leased(self, lease: Path, who: str) -> Iterator[None]:
        """Keep drivers on other machines away.

        Raises:
            ConfigError: if one of them lives.
        """
        yield

    def leaseholder(self, lease: Path) -> str:
        """Who drives the run on another machine; empty: nobody does."""
        return ""

    def share(self, source: Path, path: Path) -> None:
        """Give a large file to other machines, if it is not there yet."""

    def copy_shared(self, target: Path, path: Path) -> bool:
        """Put what another machine shared into place, checked; False if there is none."""
        return False

    def check_set_aside(self) -> None:
        """Raise ConfigError where directories cannot be renamed."""


LOCAL = Files()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`Files.writing` on this machine."""
    with beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, gone when the block ends.

    Raises:
        StoreError: if the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # such as a folder that is a file: said above
            temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Delete what processes that were killed while they wrote a file have left beside it.

    The caller sees to it that nobody writes it now.
    """
    clear_leftovers_like(path.parent, re.escape(path.name))


def clear_leftovers_like(folder: Path, name: str) -> None:
    """As `clear_leftovers`, of all files of a folder whose names fit.

    Args:
        name: a regular expression.
    """
    left = re.compile(rf"\.{name}\.\d+\.[0-9a-f]{{6}}\.tmp", re.DOTALL)
    with contextlib.suppress(OSError):  # such as a folder that cannot be listed: they do no harm
        for found in os.listdir(folder):  # noqa: PTH208
            if left.fullmatch(found):
                (folder / found).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def disk_error(path: Path, error: OSError) -> StoreError:
    """The one line for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"disk full while writing {path}: free some space, then run the same command")
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def write_text(path: Path, text: str, files: Files = LOCAL) -> None:
    """Write a whole text file, atomically."""
    with files.writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, files: Files = LOCAL) -> None:
    """Write JSON that a person can read, atomically. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", files)


def write_json_lines(path: Path, rows: list[dict[str, Any]], files: Files = LOCAL) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), files)


def write_arrays(path: Path, files: Files = LOCAL, **arrays: np.ndarray) -> None:
    """Write an .npz file, atomically."""
    with files.writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
