"""A picture made ready for all members of an ensemble: decoded once, and seen as each of them sees it.

What the models see is what training and `--predict` would pack of the file. This needs no models, so that other threads
and processes can do it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from imet_ray.data.images import Encoded, read_rgb, rgb_of, scaled_down
from imet_ray.data.views import apply_views
from imet_ray.errors import DataError

# a path, a file's bytes, a picture, (H, W, 3) uint8
AnyPicture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray


class Sight(NamedTuple):
    """How some of an ensemble's models see pictures."""

    short_side: int  # that they are packed with, pixels
    image_size: int  # S, pixels
    views: tuple[str, ...]  # V pictures


@dataclass(frozen=True)
class Prepared:
    """A picture for all models."""

    seen: tuple[np.ndarray, ...]  # one per sight: (V, S, S, 3) uint8

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(one.nbytes for one in self.seen)


@dataclass(frozen=True)
class Preparer:
    """Makes pictures ready; cheap to pickle."""

    sights: tuple[Sight, ...]

    def __call__(self, picture: AnyPicture, *, name: str = "", row: int = 0) -> Prepared:
        """Decode a picture and cut its views.

        Args:
            picture: a path, a file's bytes, what Pillow has opened, or an array (H, W, 3) uint8.
            name: for errors; default: the path.
            row: that random views are drawn from: that of the picture in its split, where they shall be the same.

        Raises:
            DataError: naming the picture, if it cannot be decoded.
        """
        pixels = pixels_of(picture, name)
        packed = {side: scaled_down(pixels, side) for side in {sight.short_side for sight in self.sights}}
        return Prepared(
            tuple(
                np.stack(apply_views(packed[sight.short_side], sight.views, sight.image_size, row=row))
                for sight in self.sights
            )
        )


def pixels_of(picture: AnyPicture, name: str = "") -> np.ndarray:
    """Any picture as (H, W, 3) uint8; arguments and errors as of `Preparer`."""
    if isinstance(picture, str | os.PathLike):
        return read_rgb(Path(picture))
    name = name or "a picture"
    if isinstance(picture, bytes | bytearray | memoryview):
        return read_rgb(Encoded(bytes(picture), name))
    if isinstance(picture, Image.Image):
        return rgb_of(picture, name)
    if not isinstance(picture, np.ndarray):
        raise DataError(
            f"{name}: a picture is a path, bytes, a Pillow image or an array, got {type(picture).__name__}"
        )
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(f"{name}: an array must be (H, W, 3) uint8 RGB, got {picture.shape} {picture.dtype}")
    return picture


def sights_of(seen: Sequence[Sight]) -> tuple[Sight, ...]:
    """Each once, in their order."""
    return tuple(dict.fromkeys(seen))
