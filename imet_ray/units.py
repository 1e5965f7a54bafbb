"""Spans of time as people write them."""

import re

from imet_ray.errors import ConfigError

LONGEST = 3653 * 86400  # ten years


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


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:05."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
