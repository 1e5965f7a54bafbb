"""Random crops for training: a rectangle of the picture, as y, x, height and width in pixels.

A new crop is a function and a line in `CROPS`.
"""

import random
from collections.abc import Callable

import numpy as np


def _square(height: int, width: int, numbers: random.Random) -> tuple[int, int, int, int]:
    """A square whose side is 0.8 to 1 of the short side: y, x, height, width."""
    side = max(1, round(min(height, width) * numbers.uniform(0.8, 1.0)))
    return numbers.randint(0, height - side), numbers.randint(0, width - side), side, side


def _rectangle(height: int, width: int, numbers: random.Random) -> tuple[int, int, int, int]:
    """A rectangle of 0.4 to 1 of the area and aspect 3/4 to 4/3, where it fits: y, x, height, width."""
    for _ in range(10):
        area = height * width * numbers.uniform(0.4, 1.0)
        aspect = np.exp(numbers.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return numbers.randint(0, height - h), numbers.randint(0, width - w), h, w
    return _square(height, width, numbers)  # a long thin picture


CROPS: dict[str, Callable[[int, int, random.Random], tuple[int, int, int, int]]] = {
    "random": _square,
    "rectangular": _rectangle,
}
