"""Fixed views of a picture, for evaluation and prediction: uint8 in, uint8 out.

A new view is a function and a line in `VIEWS`. Random crops for training are `imet_ray.data.crops`.
"""

from collections.abc import Callable

import numpy as np

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


def _squash(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture, its aspect given up."""
    return resize(image, size, size)


VIEWS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "centre": _centre,
    "flip": lambda image, size: _centre(image, size)[:, ::-1],
    "start": _start,
    "end": _end,
    "squash": _squash,
    "start-flip": lambda image, size: _start(image, size)[:, ::-1],
    "end-flip": lambda image, size: _end(image, size)[:, ::-1],
    "squash-flip": lambda image, size: _squash(image, size)[:, ::-1],
}
