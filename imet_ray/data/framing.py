"""How a picture of any shape fills a square: cut at its own size, framed, squashed, or cut only where it is too long.

Where the square lies is given, as shares of the free way: training draws them, views are at the centre.
"""

import cv2
import numpy as np

from imet_ray.data.images import resize

BARS = (124, 116, 104)  # ImageNet's mean colour: nearly 0 for a model


def native(image: np.ndarray, size: int, down: float, right: float) -> np.ndarray:
    """A square of the picture's own pixels; where it is smaller, it is mirrored at its edges, as often as it takes.

    Args:
        image: (H, W, 3) uint8.
        down, right: 0..1 of the free way.

    Returns:
        (size, size, 3) uint8.
    """
    image = _cut(image, min(image.shape[0], size), min(image.shape[1], size), down, right)
    above, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
    below, beside = size - image.shape[0] - above, size - image.shape[1] - left
    return np.asarray(cv2.copyMakeBorder(image, above, below, left, beside, cv2.BORDER_REFLECT_101))


def if_needed(image: np.ndarray, size: int, down: float, right: float, *, times: int = 1) -> np.ndarray:
    """Cut each side to `times` the size if it is longer, then scale what is left to the square, up or down.

    A side that is not cut is there whole; where one side is cut and the other is shorter, the aspect changes.
    """
    longest = times * size
    height, width = (min(side, longest) for side in image.shape[:2])
    return resize(_cut(image, height, width, down, right), size, size)


def letterbox(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture in its aspect, between bars of one colour."""
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    framed = np.full((size, size, 3), BARS, np.uint8)
    y, x = (size - height) // 2, (size - width) // 2
    framed[y : y + height, x : x + width] = resize(image, height, width)
    return framed


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture, its aspect given up."""
    return resize(image, size, size)


def _cut(image: np.ndarray, height: int, width: int, down: float, right: float) -> np.ndarray:
    """A rectangle of the picture, at shares of the free way."""
    y, x = (
        min(int(share * (free + 1)), free)
        for share, free in ((down, image.shape[0] - height), (right, image.shape[1] - width))
    )
    return image[y : y + height, x : x + width]
