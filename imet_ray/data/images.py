"""Pictures from files: what OpenCV, a browser and GIMP show is read, as 8-bit RGB; all else is refused by its name.

Of the metadata the EXIF orientation alone is looked at. What is wrong with the rest is no reason to refuse a picture.
"""

import contextlib
import functools
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from imet_ray.data.image_metadata import JPEG, JPEG_MARKER, PNG, exif_of_png, orientation_in, without_metadata
from imet_ray.errors import DataError

MAX_PIXELS = 178_000_000  # just below the limit of Pillow itself
MAX_MISSING = 0.1  # of the pixels, where a file was cut off
END_OF_JPEG = b"\xff\xd9"
# not PostScript: it would start Ghostscript
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
WHITE = (255, 255, 255, 255)
HEIF_EXTRA = "a HEIC picture needs the package pillow-heif: `uv sync --extra heic`"
QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: np.ndarray  # (H, W, 3) uint8
    missing: float  # the share of pixels that are not there, for the file was cut off; they are black or grey


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture's file that lies in no folder."""

    data: bytes
    name: str  # for errors

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BytesIO:
        """As that of a path."""
        return io.BytesIO(self.data)

    def read_bytes(self) -> bytes:
        """As that of a path."""
        return self.data

    def __str__(self) -> str:
        return self.name


Source = Path | Encoded


class TooLargeError(DataError):
    """A picture that would take too much memory."""


def read_rgb(path: Source, *, short_side: int | None = None) -> np.ndarray:
    """The pixels of `read_picture`: (H, W, 3) uint8."""
    return read_picture(path, short_side=short_side).pixels


def read_picture(path: Source, *, short_side: int | None = None) -> Picture:
    """Decode a picture.

    Transparent pixels are composed over white, 16-bit ones scaled to 8, and the EXIF orientation is applied.

    Args:
        short_side: scale down to this many pixels (by area); smaller pictures keep their size.

    Raises:
        DataError: naming the file, if it cannot be decoded, more than `MAX_MISSING` of it is missing, or it is
            larger than `MAX_PIXELS`.
    """
    with _faults_of(path):
        with _opened(path) as image:
            turn = _orientation(image, path)
            try:
                image.load()
                picture = Picture(_to_rgb(image), 0.0)
            except Exception as error:
                picture = _salvaged(path, error)
        pixels = TURNS.get(turn, np.asarray)(picture.pixels)
    if short_side is not None:
        pixels = scaled_down(pixels, short_side)
    return Picture(pixels, picture.missing)


def scaled_down(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """A picture, (H, W, 3) uint8, scaled to a short side by area; a smaller one as it is."""
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], short_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def rgb_of(image: Image.Image, name: str) -> np.ndarray:
    """A picture that Pillow has opened as `read_rgb` would read its file: (H, W, 3) uint8.

    Raises:
        DataError: by that name, if it cannot be decoded or is larger than `MAX_PIXELS`.
    """
    source = Encoded(b"", name)
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(source, f"{image.width} x {image.height}")
    with _faults_of(source):
        turn = 1 if image.format in TURNED_BY_THEIR_READERS else orientation_in(image.info.get("exif") or b"")
        return np.asarray(TURNS.get(turn, np.asarray)(_to_rgb(image)))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width after the EXIF orientation, from the header only where that is beyond doubt.

    Raises:
        DataError: naming the file, if the header cannot be read or announces more than `MAX_PIXELS`.
    """
    with _faults_of(path), _opened(path) as image:
        if image.format not in TURNED_BY_THEIR_READERS:
            width, height = image.size
            return (width, height) if _orientation(image, path) in (5, 6, 7, 8) else (height, width)
    height, width, _ = read_rgb(path).shape
    return height, width


def announced_size(path: Source) -> tuple[int, int]:
    """Height and width as the file's header announces them. Nothing is decoded.

    Raises:
        TooLargeError: naming the file, if it announces more than `MAX_PIXELS`.
        DataError: naming the file, if the header cannot be read.
    """
    with _faults_of(path), _opened(path) as image:
        return image.height, image.width


# From what is stored to what is seen. Pillow's exif_transpose writes EXIF anew, and not all can be written.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: cv2.flip(stored, 1),
    3: lambda stored: cv2.flip(stored, -1),
    4: lambda stored: cv2.flip(stored, 0),
    5: cv2.transpose,
    6: lambda stored: cv2.rotate(stored, cv2.ROTATE_90_CLOCKWISE),
    7: lambda stored: cv2.flip(cv2.transpose(stored), -1),
    8: lambda stored: cv2.rotate(stored, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
# while decoding: some versions give the size before, some after it
TURNED_BY_THEIR_READERS = ("TIFF", "HEIF")


def _orientation(image: Image.Image, path: Source) -> int:
    """The EXIF orientation that is still to be applied; 1 where there is none."""
    if image.format in TURNED_BY_THEIR_READERS:
        return 1
    exif = image.info.get("exif") or b""
    if not exif and image.format == "PNG":
        with path.open("rb", buffering=0) as file:
            exif = exif_of_png(file)
    return orientation_in(exif)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after scaling down to a short side; never up."""
    scale = short_side / min(height, width)
    if scale >= 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


@contextlib.contextmanager
def _faults_of(path: Source) -> Iterator[None]:
    """Each fault of a picture becomes one line that names the file."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, "it") from None
    except Exception as error:  # each decoder raises its own
        raise _undecodable(path, error) from error


def _opened(path: Source) -> ImageFile.ImageFile:
    """Read the header, and refuse a decompression bomb before anything is decoded."""
    if QUIET not in warnings.filters:  # of Pillow, on tags and sizes; `catch_warnings` is not for threads
        warnings.filterwarnings("ignore", module=QUIET[3].pattern)
    try:
        image = Image.open(_file(path), formats=_formats())
    except (OSError, ValueError):
        with path.open("rb") as file:
            head = file.read(12)
        if head[4:8] == b"ftyp":
            image = _heif(path, head[8:])
        elif head.startswith((PNG, JPEG)) or head[8:] == b"WEBP":
            image = _image(without_metadata(path.read_bytes()))
        else:
            raise
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, f"{image.width} x {image.height}")
    if image.format == "TIFF":  # else it may be mapped, and Pillow maps a turned one in the wrong shape
        image.filename = ""
    return image


def _file(path: Source) -> Path | io.BytesIO:
    """What Pillow opens."""
    return path.open() if isinstance(path, Encoded) else path


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this version of Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _image(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=_formats())


def _heif(path: Source, brand: bytes) -> ImageFile.ImageFile:
    if brand in (b"avif", b"avis"):
        raise DataError(f"{path}: an AVIF picture, damaged or not read by Pillow {PIL.__version__}")
    try:
        import pillow_heif
    except ImportError:
        raise DataError(f"{path}: {HEIF_EXTRA}") from None
    image: ImageFile.ImageFile = pillow_heif.HeifImageFile(_file(path))
    return image


def _salvaged(path: Source, error: Exception) -> Picture:
    """What a file holds that cannot be decoded as it is.

    Raises:
        DataError: if more than `MAX_MISSING` of it is missing.
        Exception: `error`, if nothing can be decoded.
    """
    data = path.read_bytes()
    try:
        data = without_metadata(data)
        picture = _cut_jpeg(data) if data.startswith(JPEG) else _written(data)
    except Exception:
        raise error from None
    if picture.missing > MAX_MISSING:
        raise DataError(f"{path}: {error}: {picture.missing:.0%} of its pixels are missing") from error
    return picture


def _cut_jpeg(data: bytes) -> Picture:
    """A JPEG file without its end. A pixel is missing if it depends on what follows, or is grey to the end.

    The decoder paints grey what it lacks.
    """
    data = data.rstrip(b"\xff")  # half a marker
    with _image(data + END_OF_JPEG) as image, _image(data + b"\x2a\xd5" * 64 + END_OF_JPEG) as other:
        pixels, shape = _to_rgb(image), (image.height, image.width, -1)
        stored, otherwise = (np.asarray(one).reshape(shape).astype(np.int16) for one in (image, other))
        unsent = 1 - len(_coefficients(data)) / (64 * len(image.getbands()))
    differs = np.abs(stored - otherwise).max(axis=2) > 8  # fewer levels are a matter of the last bits
    if not differs.any():
        return Picture(pixels, unsent)
    grey = np.abs(stored - 128).max(axis=2) <= 1
    run = np.cumprod(grey[:, ::-1], axis=1).sum(axis=1)  # grey pixels at the end of each row
    begun = 1 + max(np.flatnonzero(run == 0), default=-1)
    missing = max(run[begun:].sum() / grey.size, differs.mean())
    return Picture(pixels, float(max(unsent, missing)))


def _coefficients(data: bytes) -> set[tuple[int, int]]:
    """Component and number of each DCT coefficient whose last bit stands in a scan that has begun."""
    found: set[tuple[int, int]] = set()
    at = 2
    while (marker := JPEG_MARKER.search(data, at)) is not None:
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        segment = data[marker.end() + 2 : marker.end() + length]
        at = marker.end() + length
        if marker[0][-1] == 0xDA and len(segment) == length - 2 >= 6:  # a scan
            first, last, bits = segment[-3:]
            components = segment[1:-3:2] if bits & 15 == 0 else b""
            found |= {(component, number) for component in components for number in range(first, last + 1)}
    return found


def _written(data: bytes) -> Picture:
    """What a decoder writes before it stops: all other pixels keep the colour that was there before."""
    stored = []
    for before in (255, 0):
        with _image(data) as image:
            _fill(image, before)
            with contextlib.suppress(Exception):
                image.load()
            if image.tile:  # it stopped
                image.tile = []
                with contextlib.suppress(Exception):
                    image.load_end()
            stored.append(np.asarray(image))
            pixels = _to_rgb(image)
    unwritten = (stored[0] != stored[1]).reshape(*pixels.shape[:2], -1).any(axis=2)
    return Picture(pixels, float(unwritten.mean()))


def _fill(image: ImageFile.ImageFile, value: int) -> None:
    """Have the pixels filled when there is memory for them, before any is decoded."""
    prepare = image.load_prepare

    def then_fill() -> None:
        prepare()
        image.im.paste(value, (0, 0, *image.im.size))

    image.load_prepare = then_fill  # type: ignore[method-assign]


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits per pixel, in one of several modes
        values = np.nan_to_num(np.asarray(image).astype(np.float32))
        tops = (65535,) if image.mode != "F" else (1, 255, 65535)  # floats are of any range
        top = next((top for top in tops if values.max(initial=0) <= top), 65535)
        grey = np.clip(values * (255 / top) + 0.5, 0, 255).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _too_large(path: Source, size: str) -> DataError:
    return TooLargeError(f"{path}: {size} has more than {MAX_PIXELS:,} pixels: a decompression bomb?")


def _undecodable(path: Source, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path}: not a picture")
    name, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, struct.error | SyntaxError | ValueError | OSError):
        return DataError(f"{path}: cannot be decoded: {text or name}")
    return DataError(f"{path}: cannot be decoded: {name}: {text}")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale; by area when shrinking to less than two thirds, so that nothing aliases.

    Nearer to 1 two-point interpolation aliases hardly at all and takes 130 us for 288 px instead of 800.
    """
    if image.shape[:2] == (height, width):
        return image.copy()
    shrinks = 2 * image.shape[0] > 3 * height or 2 * image.shape[1] > 3 * width
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=filter_))
