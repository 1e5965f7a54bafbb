"""Other tools' predictions join the blend: one .npz file per member, its rows in any order.

    ids             (n,) str: those of train.csv (or of the test set), each once
    probs           (n, C) float16, float32 or float64: out of fold (or of the test set), the columns in the order of
                    labels.csv
    folds_digest    str, may be missing: of the folds.csv that they were made with
    seconds         float, may be missing: that a test picture takes
    size            int, may be missing: bytes of its checkpoints

Nothing is unpickled.
"""

import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.blending.members import Member, check_numbers
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.units import user_path

NEEDED = ("ids", "probs")
KNOWN = (*NEEDED, "folds_digest", "seconds", "size")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # as variants are named
HOW = "write it with np.savez(FILE, ids=np.array(IDS, dtype=str), probs=PROBS)"


def parse_member(text: str) -> tuple[str, Path]:
    """The name and the file of `NAME=FILE`.

    Raises:
        ConfigError: if it is not of that form.
    """
    name, equals, file = text.partition("=")
    if not equals or not file.strip():
        raise ConfigError(f"--member takes NAME=FILE, got {text!r}: write --member mine=oof.npz")
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a member's name has letters, digits and . _ + - and begins with a letter or a digit, got {name!r}: "
            "choose another before the ="
        )
    # bash leaves the ~ of 2b=~/oof.npz as it is: 2b is no name of a variable
    return name, user_path(file)


def read_member(
    name: str, path: Path, ids: Sequence[str], n_labels: int, *, whose: str = "train.csv"
) -> Member:
    """Read another tool's predictions: out of fold, or of the test set.

    Args:
        path: of the .npz file.
        ids: (N,) of the pictures; the rows are brought into their order.
        n_labels: C.
        whose: the ids are, for errors.

    Returns:
        The member, with probs (N, C) float16 or float32; float64 becomes float32.

    Raises:
        StoreError: if the file is missing, damaged, or no .npz.
        DataError: if its arrays are not those above, are no probabilities, or do not cover each picture once.
    """
    where = f"member {name} ({path})"
    arrays = _load(where, path)
    missing = [key for key in NEEDED if key not in arrays]
    if missing:
        raise DataError(f"{where} lacks {' and '.join(missing)}: {HOW}")
    found, probs = arrays["ids"], arrays["probs"]
    if found.ndim != 1 or found.dtype.kind != "U":
        raise DataError(
            f"{where} must have ids (n,) str, got {_described(found)}: save those of {whose} as strings"
        )
    if probs.dtype.kind != "f" or probs.dtype.itemsize not in (2, 4, 8) or probs.ndim != 2:
        raise DataError(
            f"{where} must have probs (n, C) float16, float32 or float64, got {_described(probs)}: "
            "save a row per picture, a column per label"
        )
    if len(probs) != len(found):
        raise DataError(f"{where} has {len(found):,} ids for {len(probs):,} rows of probs: save one per row")
    if probs.shape[1] != n_labels:
        raise DataError(
            f"{where} has {probs.shape[1]:,} columns, but there are {n_labels:,} labels: save a column for each, "
            "in the order of labels.csv"
        )
    places = _places(where, found.tolist(), ids, whose)
    seconds = _scalar(where, arrays, "seconds", "fiu")
    with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        probs = probs.astype(np.float16 if probs.dtype.itemsize == 2 else np.float32, copy=False)
    member = Member(
        name,
        # a fancy index copies, which 480 MB that are in order already need not
        probs if places == list(range(len(places))) else probs[places],
        ids,
        folds_digest=_scalar(where, arrays, "folds_digest", "U"),
        seconds=None if seconds is None else float(seconds),
        size=_scalar(where, arrays, "size", "iu"),
    )
    check_numbers(member)
    return member


def _load(where: str, path: Path) -> dict[str, np.ndarray]:
    """The known arrays of the file."""
    try:
        with path.open("rb") as raw:
            if not zipfile.is_zipfile(raw):  # a pickle, an .npy, or the beginning of an .npz
                raise StoreError(f"{where} is no .npz file, or only a part of one: {HOW}")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                arrays = {key: file[key] for key in KNOWN if key in file.files}
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{where} cannot be read ({error.strerror or error}): check the path") from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own, for a pickle too
        raise StoreError(
            f"{where} is damaged or has pickled arrays ({' '.join(str(error).split())}): {HOW}"
        ) from None
    # what is in the archive and is no array comes as bytes
    return {key: array for key, array in arrays.items() if isinstance(array, np.ndarray)}


def _places(where: str, found: Sequence[str], ids: Sequence[str], whose: str) -> list[int]:
    """The row of each of `ids`."""
    rows: dict[str, int] = {}
    for row, picture in enumerate(found):
        if rows.setdefault(picture, row) != row:
            raise DataError(
                f"{where} has {picture!r} twice, in rows {rows[picture]} and {row}: keep one of them"
            )
    known = set(ids)
    unknown = [picture for picture in found if picture not in known]
    if unknown:
        raise DataError(
            f"{where} has {len(unknown):,} ids that {whose} lacks, the first is {unknown[0]!r}: leave them out, "
            f"and spell ids as {whose} does"
        )
    missing = [picture for picture in ids if picture not in rows]
    if missing:
        raise DataError(
            f"{where} lacks {len(missing):,} of {len(ids):,} pictures, the first is {missing[0]!r}: predict all of "
            f"{whose}"
        )
    return [rows[picture] for picture in ids]


def _scalar(where: str, arrays: dict[str, np.ndarray], key: str, kinds: str) -> Any:
    """One string, or one number of at least 0, of the given kinds of dtype; None where the file has none."""
    if key not in arrays:
        return None
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in kinds:
        what = {"U": "string", "iu": "whole number"}.get(kinds, "number")
        raise DataError(f"{where} must have one {what} as {key}, got {_described(array)}: save one, or none")
    value = array.item()
    if kinds != "U" and not 0 <= value < math.inf:
        raise DataError(f"{where} must have {key} of at least 0, got {value}: save the right one, or none")
    return value


def _described(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype.name}"
