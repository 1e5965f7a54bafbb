"""Artefacts written: whole or not at all, and first to the bucket, where the run lies in one.

Writes go to a temporary name beside the target and are put in place by `os.replace`, so a file that exists is whole.
"""

import contextlib
import errno
import importlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.errors import StoreError

SCHEMES = ("s3", "gs")  # of stores that hold buckets
FENCED = ("last.pt", "best.safetensors")  # large: an older twin's write may come late
TOKEN = "writer.token"  # of a trial's directory


def url_parts(path: Path) -> tuple[str, ...]:
    """Scheme, bucket and folders that a path is the local twin of; nothing if it is none."""
    for i, part in enumerate(path.parts):
        if part.endswith(":") and part[:-1] in SCHEMES:
            return part[:-1], *path.parts[i + 1 :]
    return ()


def is_twin(path: Path) -> bool:
    """True if the path is the local twin of an object in a bucket."""
    return bool(url_parts(path))


def shown(path: Path) -> str:
    """A path as the user gave it: a twin's URL."""
    if is_twin(path):
        scheme, *rest = url_parts(path)
        return f"{scheme}://{'/'.join(rest)}"
    return str(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, put in its place when the block ends well.

    Raises:
        StoreError: one line, if the disk is full or the place cannot be written.
    """
    with beside(path) as temporary:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if is_twin(path):
            _publish(temporary, path)
        os.replace(temporary, path)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, gone when the block ends.

    Raises:
        StoreError: one line, if the disk is full or the place cannot be written.
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


def remove(path: Path) -> None:
    """Delete an artefact, if it is there; in the bucket, too."""
    if is_twin(path):
        remote().delete(path)
    path.unlink(missing_ok=True)


def size_of(path: Path) -> int | None:
    """Bytes of an artefact, here or in the bucket; None if there is none."""
    if is_twin(path):
        found = remote().head(path)
        return found.size if found else None
    return path.stat().st_size if path.exists() else None


def _publish(source: Path, path: Path) -> None:
    token = path.with_name(TOKEN) if path.name in FENCED else None
    if not remote().publish(source, path, token=token):
        raise SupersededError(str(path.parent))


def remote() -> Any:
    """`storage.bucket_mirror`: by a name made here, so that a kernel, which has no bucket, is built without it."""
    return importlib.import_module("imet_ray" + ".storage.bucket_mirror")


def disk_error(path: Path, error: OSError) -> StoreError:
    """The one line for an artefact that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"disk full while writing {path}: free some space, then run the same command")
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, atomically. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file, atomically."""
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


class SupersededError(Exception):
    """Another process has taken over this trial; this one must stop writing and leave quietly."""
