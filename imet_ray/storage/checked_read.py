"""Artefacts read back: what a run directory holds, or one line that says what is wrong with it.

A file may come from a killed process, a full disk or a stranger: nothing in it is believed, and nothing is unpickled.
"""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from imet_ray.errors import StoreError

Model = TypeVar("Model", bound=BaseModel)
DELETE_IT = ": delete it and run the same command"
TEXT_LIMIT = 1 << 28  # bytes: what has more is none of ours


def regular(path: Path, *, limit: int | None = None) -> Path:
    """The path itself, if a file of bounded size is there: a pipe or a device could be read for ever.

    Args:
        limit: bytes.

    Raises:
        StoreError: if something else is there, or nothing, or too much.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except OSError as error:
        raise damaged(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, "it is no file")
    if limit is not None and found.st_size > limit:
        raise damaged(path, f"{found.st_size:,} bytes are too many")
    return path


def damaged(path: Path, why: object) -> StoreError:
    """What to say of an artefact that cannot be read."""
    short = " ".join(str(why).split())[:300]
    return StoreError(f"{path} is damaged ({short}){DELETE_IT}")


def read_text(path: Path) -> str:
    """Read a text artefact.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        return regular(path, limit=TEXT_LIMIT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from None


def read_json(path: Path) -> Any:
    """Read a JSON artefact.

    Raises:
        StoreError: if it is missing or damaged.
    """
    return _parsed(path, read_text(path))


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a JSON artefact that holds one of our frozen models.

    Raises:
        StoreError: if it is missing, damaged, or of another version.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise damaged(path, f"or of another version: {where}: {first['msg']}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read what `write_json_lines` wrote; nothing if there is no file.

    Raises:
        StoreError: if it is damaged.
    """
    if not path.exists():
        return []
    rows = [_parsed(path, line) for line in read_text(path).splitlines()]
    if not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "a line is no object")
    return rows


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file whole.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        with regular(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except StoreError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise damaged(path, error) from None


def open_array(file: Path) -> np.ndarray:
    """An .npy file, memory-mapped; objects are refused, not unpickled."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except OSError as error:
        raise StoreError(f"{file} cannot be read ({error.strerror or error}): check the path") from None
    except Exception as error:  # numpy raises several kinds for a header it cannot read
        raise StoreError(
            f"{file} is damaged or no .npy of numbers ({' '.join(str(error).split())}): fetch or make it again"
        ) from None


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
