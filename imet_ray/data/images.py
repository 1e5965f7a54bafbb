"""Pictures from files: any mode is read as 8-bit RGB. A damaged or oversized file is refused by its name."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imet_ray.errors import DataError

MAX_PIXELS = 178_000_000  # just below the limit of Pillow itself
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the picture by a quarter
TURNS = range(2, 9)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # not PostScript: Pillow starts Ghostscript for it
WHITE = (255, 255, 255, 255)


def read_rgb(path: Path, *, short_side: int | None = None) -> np.ndarray:
    """Decode a picture.

    Transparent pixels are composed over white, 16-bit ones scaled to 8, and the EXIF orientation is applied.

    Args:
        short_side: scale down to this many pixels (by area); smaller pictures keep their size.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: naming the file, if it cannot be decoded whole or is larger than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        turned = _orientation(image) in TURNS
        pixels = _to_rgb(ImageOps.exif_transpose(image) if turned else image)
    if short_side is None:
        return pixels
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], short_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the header only, after the EXIF orientation.

    Raises:
        DataError: naming the file, if the header cannot be read or announces more than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> object:
    """From the header only. The PNG reader's own `getexif` would decode the picture, to look behind its pixels."""
    return Image.Image.getexif(image).get(ORIENTATION)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after scaling down to a short side; never up."""
    scale = short_side / min(height, width)
    if scale >= 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Read the header, and refuse a decompression bomb before anything is decoded; each fault names the file."""
    try:
        with warnings.catch_warnings():  # Pillow warns from half our bound on
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width} x {image.height}")
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, "it") from None
    except Exception as error:  # each decoder raises its own
        raise _undecodable(path, error) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits per pixel, in one of several modes
        values = np.asarray(image).astype(np.float32)
        top = 65535 if image.mode != "F" or values.max(initial=0) > 255 else 255
        grey = np.clip(values * (255 / top) + 0.5, 0, 255).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"{path}: {size} has more than {MAX_PIXELS:,} pixels: a decompression bomb?")


def _undecodable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path}: not a picture")
    if isinstance(error, struct.error | SyntaxError | ValueError | OSError):
        return DataError(f"{path}: cannot be decoded: {error or type(error).__name__}")
    return DataError(f"{path}: cannot be decoded: {type(error).__name__}: {error}")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale; by area when shrinking to less than two thirds, so that nothing aliases.

    Nearer to 1 two-point interpolation aliases hardly at all and takes 130 us for 288 px instead of 800.
    """
    if image.shape[:2] == (height, width):
        return image.copy()
    shrinks = 2 * image.shape[0] > 3 * height or 2 * image.shape[1] > 3 * width
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=filter_))
