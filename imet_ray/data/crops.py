"""Crops for training: from a packed picture of any shape to a square of the model's size.

A new crop is a function and a line in `CROPS`. Most are random; views that match them are `imet_ray.data.views`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imet_ray.data import framing
from imet_ray.data.images import resize

AREA = (0.4, 1.0)  # of the picture's
ASPECT = (3 / 4, 4 / 3)  # width over height


@dataclass(frozen=True)
class Cropping:
    """What a recipe says of its crop."""

    size: int  # S, pixels
    area: tuple[float, float] = AREA  # of the picture's area, where the crop has bounds
    aspect: tuple[float, float] = ASPECT  # width over height


Crop = Callable[[np.ndarray, Cropping, random.Random], np.ndarray]  # (H, W, 3) uint8 to (S, S, 3) uint8
Rectangle = tuple[int, int, int, int]  # y, x, height, width; pixels


def square(height: int, width: int, numbers: random.Random) -> Rectangle:
    """A square whose side is 0.8 to 1 of the short side."""
    side = max(1, round(min(height, width) * numbers.uniform(0.8, 1.0)))
    return numbers.randint(0, height - side), numbers.randint(0, width - side), side, side


def rectangle(height: int, width: int, how: Cropping, numbers: random.Random) -> Rectangle:
    """A rectangle within the bounds of area and aspect; where ten did not fit, a square."""
    for _ in range(10):
        area = height * width * numbers.uniform(*how.area)
        aspect = np.exp(numbers.uniform(np.log(how.aspect[0]), np.log(how.aspect[1])))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return numbers.randint(0, height - h), numbers.randint(0, width - w), h, w
    return square(height, width, numbers)  # a long thin picture


def _scaled(image: np.ndarray, place: Rectangle, how: Cropping) -> np.ndarray:
    y, x, height, width = place
    return resize(image[y : y + height, x : x + width], how.size, how.size)


def _random(image: np.ndarray, how: Cropping, numbers: random.Random) -> np.ndarray:
    height, width = image.shape[:2]
    return _scaled(image, square(height, width, numbers), how)


def _rectangular(image: np.ndarray, how: Cropping, numbers: random.Random) -> np.ndarray:
    height, width = image.shape[:2]
    return _scaled(image, rectangle(height, width, how, numbers), how)


def _native(image: np.ndarray, how: Cropping, numbers: random.Random) -> np.ndarray:
    return framing.native(image, how.size, numbers.random(), numbers.random())


def _if_needed(image: np.ndarray, how: Cropping, numbers: random.Random) -> np.ndarray:
    return framing.if_needed(image, how.size, numbers.random(), numbers.random())


def _if_needed_2x(image: np.ndarray, how: Cropping, numbers: random.Random) -> np.ndarray:
    return framing.if_needed(image, how.size, numbers.random(), numbers.random(), times=2)


CROPS: dict[str, Crop] = {
    "random": _random,
    "rectangular": _rectangular,
    "native": _native,
    "if-needed": _if_needed,
    "if-needed-2x": _if_needed_2x,
    "letterbox": lambda image, how, numbers: framing.letterbox(image, how.size),
    "squash": lambda image, how, numbers: framing.squash(image, how.size),
}
BOUNDED = ("rectangular",)  # those that `crop_area` and `crop_aspect` are for
