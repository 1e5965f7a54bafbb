"""Views of a picture, for evaluation and prediction: uint8 in, uint8 out, the same each time.

A new view is a function and a line in `VIEWS`. `random:8` is eight views: training's random crops, each flipped with
probability 1/2, drawn from the picture's row and the view's number alone. They are those of the recipe's crop;
`random:8:rectangular` names another of `imet_ray.data.crops`.
"""

import random
import re
from collections.abc import Callable, Sequence

import numpy as np

from imet_ray.data.crops import CROPS
from imet_ray.data.images import resize
from imet_ray.errors import ConfigError, unknown_name

RANDOM = re.compile(r"random:(?P<n>[1-9][0-9]?)(?::(?P<crop>.+))?")


def apply_view(image: np.ndarray, view: str, image_size: int) -> np.ndarray:
    """One fixed view of a picture: (H, W, 3) uint8 to (image_size, image_size, 3) uint8.

    Raises:
        ConfigError: for an unknown view.
    """
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    return np.ascontiguousarray(VIEWS[view](image, image_size))


def apply_views(image: np.ndarray, views: Sequence[str], image_size: int, *, row: int) -> list[np.ndarray]:
    """A picture in all views, as many as `count_views` says: (image_size, image_size, 3) uint8 each.

    Args:
        views: names; random ones with their crop.
        row: of the picture in its split.
    """
    found = []
    for view in views:
        if view in VIEWS:
            found.append(apply_view(image, view, image_size))
            continue
        n, crop = _random_parts(view)
        assert crop is not None, view
        found += [_random_crop(image, crop, image_size, random.Random(f"{row}/{k}")) for k in range(n)]
    return found


def count_views(views: Sequence[str]) -> int:
    """How many pictures the views of one picture are."""
    return sum(1 if view in VIEWS else _random_parts(view)[0] for view in views)


def check_view(view: str) -> None:
    """Refuse what is no view.

    Raises:
        ConfigError: for an unknown view or crop.
    """
    if view not in VIEWS:
        crop = _random_parts(view)[1]
        if crop is not None and crop not in CROPS:
            raise unknown_name("crop", crop, CROPS)


def bound_view(view: str, crop: str) -> str:
    """The view with the crop that it has in a recipe."""
    if view in VIEWS:
        return view
    n, own = _random_parts(view)
    return f"random:{n}:{own or crop}"


def first_view(view: str) -> str:
    """One picture of a view."""
    if view in VIEWS:
        return view
    crop = _random_parts(view)[1]
    return "random:1" + (f":{crop}" if crop else "")


def _random_parts(view: str) -> tuple[int, str | None]:
    """How many, and of which crop, if it is named."""
    fits = RANDOM.fullmatch(view)
    if fits is None:
        if view.partition(":")[0] == "random":
            raise ConfigError(f"random views have a number in 1..99, such as random:8, got {view!r}")
        raise unknown_name("view", view, [*VIEWS, "random:8"])
    return int(fits["n"]), fits["crop"]


def _random_crop(image: np.ndarray, crop: str, size: int, numbers: random.Random) -> np.ndarray:
    """Training's crop, flipped or not."""
    y, x, height, width = CROPS[crop](image.shape[0], image.shape[1], numbers)
    found = resize(image[y : y + height, x : x + width], size, size)
    return np.ascontiguousarray(found[:, ::-1] if numbers.random() < 0.5 else found)


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
