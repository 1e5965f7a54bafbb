"""Views of a picture, for evaluation and prediction: uint8 in, uint8 out, the same each time.

A new view is a function and a line in `VIEWS`. `random:8` is eight views: training's random crops, each flipped with
probability 1/2, drawn from the picture's row and the view's number alone. They are those of the recipe's crop;
`random:8:rectangular` names another of `imet_ray.data.crops`.
"""

import random
import re
from collections.abc import Callable, Sequence

import numpy as np

from imet_ray.data import framing
from imet_ray.data.crops import AREA, ASPECT, CROPS, Cropping
from imet_ray.data.images import resize
from imet_ray.errors import ConfigError, unknown_name

NUMBER = r"\d+\.?\d*(?:e[-+]?\d+)?"
# how many, of which crop, and within which bounds of area and aspect, where these are the recipe's
RANDOM = re.compile(
    rf"random:(?P<n>[1-9][0-9]?)(?::(?P<crop>[^(]+)(?:\((?P<bounds>{NUMBER}(?:/{NUMBER}){{3}})\))?)?"
)
Bounds = tuple[float, float, float, float]  # of area, then of aspect
BOUNDS: Bounds = (*AREA, *ASPECT)


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
        n, crop, bounds = _random_parts(view)
        assert crop is not None, view
        how = Cropping(image_size, bounds[:2], bounds[2:])
        found += [_random_crop(image, crop, how, random.Random(f"{row}/{k}")) for k in range(n)]
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


def bound_view(view: str, crop: str, area: Sequence[float], aspect: Sequence[float]) -> str:
    """The view with the crop, and its bounds, that it has in a recipe."""
    if view in VIEWS:
        return view
    n, own, _ = _random_parts(view)
    bounds = (*area, *aspect)
    within = f"({'/'.join(map(repr, bounds))})"
    return f"random:{n}:{own or crop}{within if own in (None, crop) and bounds != BOUNDS else ''}"


def first_view(view: str) -> str:
    """One picture of a view."""
    if view in VIEWS:
        return view
    return re.sub(r"^random:\d+", "random:1", view)


def _random_parts(view: str) -> tuple[int, str | None, Bounds]:
    """How many, of which crop, if it is named, and within which bounds."""
    fits = RANDOM.fullmatch(view)
    if fits is None:
        if view.partition(":")[0] == "random":
            raise ConfigError(f"random views have a number in 1..99, such as random:8, got {view!r}")
        raise unknown_name("view", view, [*VIEWS, "random:8"])
    least, most, narrowest, widest = map(float, fits["bounds"].split("/")) if fits["bounds"] else BOUNDS
    return int(fits["n"]), fits["crop"], (least, most, narrowest, widest)


def _random_crop(image: np.ndarray, crop: str, how: Cropping, numbers: random.Random) -> np.ndarray:
    """Training's crop, flipped or not."""
    found = CROPS[crop](image, how, numbers)
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
