"""Copies: pictures that have the same pixels. Files of the same bytes are among them."""

import hashlib
from collections import defaultdict

import numpy as np

from imet_ray.data.packed_images import Pack

GLIMPSE = 4096  # bytes from the middle of a picture: few share them that are not copies


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Of a picture's shape and pixels: 16 bytes."""
    found = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(pixels).data)
    return found.digest()


def first_copies(pack: Pack) -> np.ndarray:
    """The first row with the same packed pixels as each row: (N,) int64, a row's own number where it is the first.

    Only pictures that share a glimpse are read whole.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    for row in range(len(pack)):
        pixels = pack[row].reshape(-1)
        middle = max(0, (len(pixels) - GLIMPSE) // 2)
        alike[pixel_digest(pack.shapes[row]) + pixel_digest(pixels[middle : middle + GLIMPSE])].append(row)
    first = np.arange(len(pack), dtype=np.int64)
    for rows in alike.values():
        seen: dict[bytes, int] = {}
        for row in rows if len(rows) > 1 else ():
            first[row] = seen.setdefault(pixel_digest(pack[row]), row)
    return first
