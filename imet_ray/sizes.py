"""Numbers of bytes as people write them."""

import re

from imet_ray.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LARGEST = 10**18


def byte_size(text: str, option: str) -> int:
    """Bytes in `20GB`, `500MB`, or a plain number.

    Args:
        option: that the text was given to, for the error.

    Raises:
        ConfigError: if it is no such text, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise ConfigError(f"{option} takes a size such as 20GB or 500MB, got {text!r}")
    size = float(found[1]) * UNITS[found[2].upper()]
    if size > LARGEST:
        raise ConfigError(f"{option} takes at most {LARGEST:.0e} bytes, got {text[:40]!r}: check its unit")
    return int(size)
