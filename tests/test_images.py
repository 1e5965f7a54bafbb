"""Pictures from files: every mode becomes the RGB that a viewer would show, and what is no picture is named."""

import contextlib
import re
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imet_ray.data.images import MAX_PIXELS, image_size, read_rgb, scaled_size
from imet_ray.errors import DataError

ORIENTATION = 0x0112
RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.fixture
def pixels():
    """Random ones: (6, 9, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def save(path, image, **how):
    image.save(path, **how)
    return path


def palette(*colours):
    """A 1 x n picture of mode P whose pixels are its palette's colours."""
    image = Image.new("P", (len(colours), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(range(len(colours)))
    return image


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 51), [255, 204, 204]),  # a fifth of red over white
        ("LA", (0, 0), WHITE),
        ("LA", (100, 255), [100] * 3),
        ("LA", (0, 51), [204] * 3),
        ("L", 100, [100] * 3),
        ("1", 1, WHITE),
        ("RGB", (1, 2, 3), [1, 2, 3]),
    ],
)
def test_transparent_pixels_are_composed_over_white(tmp_path, suffix, mode, pixel, expected):
    path = save(tmp_path / f"a.{suffix}", Image.new(mode, (3, 2), pixel), lossless=True, exact=True)
    assert read_rgb(path).tolist() == [[expected] * 3] * 2


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (None, [RED, [0, 0, 9]]),
        (0, [WHITE, [0, 0, 9]]),
        (b"\x33\x00", [[255, 204, 204], WHITE]),  # an alpha for each colour
    ],
)
def test_palettes_with_and_without_transparency(tmp_path, transparency, expected):
    how = {} if transparency is None else {"transparency": transparency}
    path = save(tmp_path / "a.png", palette(RED, [0, 0, 9]), **how)
    assert read_rgb(path).tolist() == [expected]


@pytest.mark.parametrize(
    ("mode", "pixel"),
    [("1", 0), ("L", 77), ("RGB", (9, 99, 199)), ("I;16", 30_000)],
)
def test_a_colour_that_stands_for_transparency_is_white(tmp_path, mode, pixel):
    path = save(tmp_path / "a.png", Image.new(mode, (2, 2), pixel), transparency=pixel)
    assert read_rgb(path).tolist() == [[WHITE] * 2] * 2


def test_16_bit_grey_is_scaled_to_8(tmp_path):
    grey = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    path = save(tmp_path / "a.png", Image.fromarray(grey))
    expected = (grey.astype(int) + 128) // 257  # the nearest
    assert np.array_equal(read_rgb(path), np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_is_scaled_to_8(tmp_path, channels):
    bgr = np.array([[[257 * 30, 257 * 20, 257 * 10, 65_535][:channels]]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    assert read_rgb(tmp_path / "a.png").tolist() == [[[10, 20, 30]]]


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(read_rgb(path).astype(int) - RED).max() <= 2


TURNED = {  # what is stored, for each orientation of what is seen
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen.swapaxes(0, 1)[::-1, ::-1],
    8: lambda seen: np.rot90(seen, -1),
    9: lambda seen: seen,  # no orientation: to be ignored
    0: lambda seen: seen,
}


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_the_exif_orientation_is_applied_to_pixels_and_size(tmp_path, pixels, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](pixels)))
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif, lossless=True)
    assert np.array_equal(read_rgb(path), pixels)
    assert image_size(path) == pixels.shape[:2]


ASCII = b"MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x02\0\0\0\x04abc\0" + bytes(4)  # "abc" as the orientation


@pytest.mark.parametrize("exif", [b"garbage", b"MM", ASCII], ids=["garbage", "cut", "text"])
def test_exif_that_makes_no_sense_is_no_reason_to_refuse_a_picture(tmp_path, pixels, exif):
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels), exif=b"Exif\0\0" + exif)
    assert image_size(path) == read_rgb(path).shape[:2] == pixels.shape[:2]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_cut_file_is_refused_or_gives_all_its_pixels(tmp_path, suffix):
    y, x = np.mgrid[:20, :30].astype(np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(np.stack([8 * x, 12 * y, 4 * x + y], axis=2)))
    data, whole = path.read_bytes(), read_rgb(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with contextlib.suppress(DataError):
            assert np.array_equal(read_rgb(path), whole)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"a\.{suffix}: "):
        read_rgb(path)


def test_the_size_is_read_from_the_header_alone(tmp_path, pixels):
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    path.write_bytes(path.read_bytes()[:60])  # the pixels are cut off
    assert image_size(path) == pixels.shape[:2]


@pytest.mark.parametrize("data", [b"", b"id,attribute_ids\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"])
def test_what_is_no_picture_is_refused_by_name(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    for read in (read_rgb, image_size):
        with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / 'a.png'))}: ") as caught:
            read(tmp_path / "a.png")
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"b\.png: no such file"):
        read_rgb(tmp_path / "b.png")
    with pytest.raises(DataError, match=f"{re.escape(tmp_path.name)}: cannot be decoded"):
        read_rgb(tmp_path)


def test_a_file_never_starts_another_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")  # Pillow gives PostScript to it
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match="not a picture"):
        read_rgb(tmp_path / "a.png")
    assert not (tmp_path / "started").exists()


def promise(path: Path, width, height) -> Path:
    """A small JPEG whose header gives another size."""
    Image.new("RGB", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("width", [MAX_PIXELS // 16_000 + 1, 12_000, 65_000])
def test_a_bomb_is_refused_by_its_header(tmp_path, width):
    path = promise(tmp_path / "a.jpg", width, 16_000)
    for read in (read_rgb, image_size):
        with pytest.raises(DataError, match=r"a\.jpg: .* 178,000,000 pixels: a decompression bomb\?"):
            read(path)


def test_a_picture_just_below_the_bound_is_not_a_bomb(tmp_path):
    width = MAX_PIXELS // 16_000  # Pillow would warn of it
    assert image_size(promise(tmp_path / "a.jpg", width, 16_000)) == (16_000, width)


side = st.integers(1, 5000)


@given(height=side, width=side, short_side=side)
def test_scaled_sizes_are_those_of_exact_arithmetic(height, width, short_side):
    scale = min(Fraction(1), Fraction(short_side, min(height, width)))
    scaled = scaled_size(height, width, short_side)
    assert min(scaled) == min(height, width, short_side)
    for new, old in zip(scaled, (height, width), strict=True):
        assert abs(new - scale * old) <= Fraction(1, 2)


def test_pictures_are_scaled_down_by_area_and_never_up(tmp_path):
    board = (np.indices((24, 36)).sum(axis=0) % 2 * 255).astype(np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(board))
    small = read_rgb(path, short_side=8)
    assert (small.shape, small.dtype) == ((8, 12, 3), np.uint8)
    assert np.abs(small.astype(int) - 127).max() < 20  # a chessboard from afar
    assert np.array_equal(read_rgb(path, short_side=25), read_rgb(path))
