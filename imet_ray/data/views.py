"""Fixed views of a picture, for evaluation and prediction: uint8 in, uint8 out.

A new view is a function and a line in `VIEWS`. Crops for training are `imet_ray.data.crops`.
"""

from collections.abc import Callable

import numpy as np

from imet_ray.data import framing
from imet_ray.data.images import resize
from imet_ray.errors import unknown_name


def apply_view(image: np.ndarray, view: str, image_size: int) -> np.ndarray:
    """One fixed view of a picture: (H, W, 3) uint8 to (image_size, image_size, 3) uint8.

    Raises:
        ConfigError: for an unknown view.
    """
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    return np.ascontiguousarray(VIEWS[view](image, image_size))


def _short_side_crop(image: np.ndarray, size: int, where: float) -> np.ndarray:
    """The square of the short side, at a share of the free way along the long side, scaled to `size`."""
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = round((height - side) * where), round((width - side) * where)
    return resize(image[y : y + side, x : x + side], size, size)


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    return _short_side_crop(image, size, 0.5)


def _start(image: np.ndarray, size: int) -> np.ndarray:
    """The left or upper end of the long side."""
    return _short_side_crop(image, size, 0.0)


def _end(image: np.ndarray, size: int) -> np.ndarray:
    """The right or lower end of the long side."""
    return _short_side_crop(image, size, 1.0)


def _native(image: np.ndarray, size: int) -> np.ndarray:
    """The centre at the picture's own size."""
    return framing.native(image, size, 0.5, 0.5)


def _if_needed(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of what exceeds the size."""
    return framing.if_needed(image, size, 0.5, 0.5)


def _if_needed_2x(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of what exceeds twice the size."""
    return framing.if_needed(image, size, 0.5, 0.5, times=2)


VIEWS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "centre": _centre,
    "flip": lambda image, size: _centre(image, size)[:, ::-1],
    "start": _start,
    "end": _end,
    "squash": framing.squash,
    "start-flip": lambda image, size: _start(image, size)[:, ::-1],
    "end-flip": lambda image, size: _end(image, size)[:, ::-1],
    "squash-flip": lambda image, size: framing.squash(image, size)[:, ::-1],
    "native": _native,
    "native-flip": lambda image, size: _native(image, size)[:, ::-1],
    "letterbox": framing.letterbox,
    "letterbox-flip": lambda image, size: framing.letterbox(image, size)[:, ::-1],
    "if-needed": _if_needed,
    "if-needed-flip": lambda image, size: _if_needed(image, size)[:, ::-1],
    "if-needed-2x": _if_needed_2x,
    "if-needed-2x-flip": lambda image, size: _if_needed_2x(image, size)[:, ::-1],
}
