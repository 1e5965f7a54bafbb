"""Spans of time, numbers of bytes and paths as people write them."""

import contextlib
import re
from pathlib import Path

from imet_ray.errors import ConfigError

LONGEST = 3653 * 86400  # seconds: ten years
LARGEST = 10**18  # bytes
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def duration(text: str, option: str) -> float:
    """Seconds in `2h`, `90m`, `8h40m`, `45s`.

    Args:
        option: that the text was given to, for the error.

    Raises:
        ConfigError: if it is no such text, or nothing, or beyond LONGEST.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not match or not text:
        raise ConfigError(f"{option} takes 2h, 90m or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total > LONGEST:
        raise ConfigError(f"{option} takes at most {LONGEST // 86400} days, got {text[:40]!r}")
    return total


def user_path(text: str) -> Path:
    """A path with its `~`, which a shell leaves as it is in `--runs=~/x`, and in all that is no argument."""
    with contextlib.suppress(RuntimeError):  # no such user: shells leave that, too
        return Path(text).expanduser()
    return Path(text)


def as_typed(path: Path) -> Path:
    """The path as a person would type it here: relative, where it lies in this folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def space_path(text: str) -> Path:
    """A file of a search space; `search_spaces/demo.yml` is also the one that came with this code, in any folder."""
    path = user_path(text)
    shipped = Path(__file__).resolve().parents[1] / path  # beside the package, in a clone or installed
    known = path.parts[:1] == ("search_spaces",) and not path.exists() and shipped.is_file()
    return shipped if known else path


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:05."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def ago(seconds: float) -> str:
    """How long ago something was by the clock here; by another machine's clock it may be to come."""
    return f"{clock(seconds)} ago" if round(seconds) >= 0 else f"{clock(-seconds)} ahead of the clock here"


def byte_size(text: str, option: str) -> int:
    """Bytes in `20GB`, `500MB`, or a plain number.

    Not pydantic's ByteSize: it reads `20GB/day` as 20 GB, and cannot tell a size that is too large from no size.

    Args:
        option: that the text was given to, for the error.

    Raises:
        ConfigError: if it is no such text, or nothing, or beyond LARGEST.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in BYTES or float(found[1]) <= 0:
        raise ConfigError(f"{option} takes a size such as 20GB or 500MB, got {text!r}")
    size = float(found[1]) * BYTES[found[2].upper()]
    if size > LARGEST:
        raise ConfigError(f"{option} takes at most {LARGEST:.0e} bytes, got {text[:40]!r}: check its unit")
    return int(size)
