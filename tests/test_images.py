"""Pictures from files: every mode becomes the RGB that a viewer would show, and what is no picture is named."""

import re
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_fuzz import cases, chunk, exif_segment, faults
from PIL import Image

from imet_ray.data.images import MAX_MISSING, MAX_PIXELS, image_size, read_picture, read_rgb, scaled_size
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


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [(1, "B3x"), (3, "H2x"), (4, "I")])
def test_the_orientation_may_be_of_any_integer_type(tmp_path, pixels, order, kind, code):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    exif = head + struct.pack(f"{order}IHHHI{code}I", 8, 1, ORIENTATION, kind, 1, 6, 0)
    path = save(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    assert np.array_equal(read_rgb(path), np.rot90(pixels, -1))
    assert image_size(path) == (9, 6)


@pytest.mark.parametrize(("crc", "turns"), [(None, -1), (1, 0)], ids=["whole", "wrong CRC"])
def test_exif_that_a_png_has_behind_its_pixels_is_found(tmp_path, pixels, crc, turns):
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    data, exif = path.read_bytes(), b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 6, 0, 0)
    path.write_bytes(data[:-12] + chunk(b"eXIf", exif, crc) + data[-12:])
    assert np.array_equal(read_rgb(path), np.rot90(pixels, turns))
    assert image_size(path) == read_rgb(path).shape[:2]


@pytest.fixture
def scene():
    """Colours, none of which is the grey that decoders paint: (60, 80, 3) uint8."""
    y, x = np.mgrid[:60, :80]
    return np.stack([x * 3, 60 + y, 200 - x - y], axis=2).astype(np.uint8)


ODD = {  # EXIF entries that people met: tag, type, count, value
    "rational -1/0": (282, 10, 1, struct.pack("<ii", -1, 0)),
    "text as rational": (282, 2, 9, b"72 dpi up\0"),
    "undefined type": (531, 7, 4, b"\1\0\0\0"),
    "NaN resolution": (282, 12, 1, struct.pack("<d", float("nan"))),
    "text that is not there": (270, 2, 1 << 20, b"Title\0"),
    "empty rational": (282, 1, 1, b"F"),
    "no such type": (305, 0, 1, b""),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_odd_exif_value_takes_neither_the_picture_nor_its_orientation(tmp_path, scene, odd):
    plain = save(tmp_path / "a.jpg", Image.fromarray(scene)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(plain[:2] + exif_segment(6, odd) + plain[2:])
    assert np.array_equal(read_rgb(tmp_path / "b.jpg"), np.rot90(read_rgb(tmp_path / "a.jpg"), -1))
    assert image_size(tmp_path / "b.jpg") == (80, 60)


def test_bytes_between_the_segments_of_a_jpeg_are_skipped(tmp_path, scene):
    path = save(tmp_path / "a.jpg", Image.fromarray(scene))
    whole, data = read_rgb(path), path.read_bytes()
    path.write_bytes(data[:20] + b"\1\2\3" + data[20:])
    assert np.array_equal(read_rgb(path), whole)
    assert image_size(path) == (60, 80)


LARGE = zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"iCCP", b"x\0\0" + LARGE),
        chunk(b"zTXt", b"Title\0\0" + LARGE),
        chunk(b"tEXt", b"Title\0wrong", crc=1),
        chunk(b"tIME", b""),
    ],
    ids=["large profile", "large text", "wrong CRC of a text", "empty time"],
)
def test_png_chunks_that_are_not_pixels_do_no_harm(tmp_path, scene, odd, place):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(tmp_path / "a.png", Image.fromarray(scene), exif=exif)
    data = path.read_bytes()
    at = 33 if place == "before" else len(data) - 12
    path.write_bytes(data[:at] + odd + data[at:])
    assert np.array_equal(read_rgb(path), np.rot90(scene, -1))
    assert image_size(path) == (80, 60)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_without_its_last_two_bytes_is_whole(tmp_path, scene, mode, how):
    path = save(tmp_path / "a.jpg", Image.fromarray(scene).convert(mode), **how)
    whole = read_rgb(path)
    for lost in (1, 2):
        path.write_bytes(path.read_bytes()[:-1])
        pixels, missing = read_picture(path)
        assert np.array_equal(pixels, whole), lost
        assert missing == 0


def test_a_grey_jpeg_without_its_last_two_bytes_lacks_nothing(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (9, 9), (128, 128, 128)))
    path.write_bytes(path.read_bytes()[:-2])
    assert read_picture(path).missing == 0


@pytest.mark.parametrize(
    ("suffix", "how", "read_in_part"),
    [
        ("jpg", {}, True),
        ("jpg", {"restart_marker_rows": 1}, True),
        ("jpg", {"progressive": True}, False),  # its last scans only refine: nothing is missing
        ("png", {}, True),
        ("gif", {}, True),
        ("bmp", {}, True),
        ("tif", {}, True),
        ("webp", {}, False),  # decoders give all of the last three or nothing
        ("avif", {}, False),
        ("jp2", {}, False),
    ],
    ids=str,
)
def test_of_a_cut_file_at_most_a_tenth_is_missing_and_the_rest_is_right(
    tmp_path, scene, suffix, how, read_in_part
):
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene), **how)
    data, whole = path.read_bytes(), read_rgb(path).astype(int)
    shares = []
    for length in [*range(0, len(data), max(1, len(data) // 40)), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:length])
        try:
            pixels, missing = read_picture(path)
        except DataError:
            continue
        wrong = (np.abs(pixels - whole).max(axis=2) > 40).mean()
        assert wrong <= missing + 0.06  # two blocks of 8 x 8 that the cut goes through
        shares.append(missing)
    assert any(shares) == read_in_part
    assert max(shares, default=0) <= MAX_MISSING
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"a\.{suffix}: "):
        read_rgb(path)


def test_pictures_of_all_kinds_whole_or_harmed_are_read_right_or_refused_alike_by_check_and_packing(tmp_path):
    source = cases(np.random.default_rng(0))
    assert faults([next(source) for _ in range(300)], tmp_path / "data") == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])  # Pillow maps some of them
def test_a_tiff_is_turned_whatever_its_mode(tmp_path, scene, mode, orientation):
    grey = Image.fromarray(np.asarray(Image.fromarray(scene).convert("L")).astype(np.uint16) * 257)
    image = grey if mode == "I;16" else Image.fromarray(scene).convert(mode)
    exif = Image.Exif()
    upright = read_rgb(save(tmp_path / "a.tif", image))
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "scan.jpg", image, format="TIFF", exif=exif)
    assert np.array_equal(TURNED[orientation](read_rgb(path)), upright)
    assert image_size(path) == read_rgb(path).shape[:2]


def test_a_heic_picture_is_read_by_the_extra_or_names_it(tmp_path, scene, monkeypatch):
    import pillow_heif

    for name in ("a.heic", "a.jpg"):  # phones and browsers rename them
        pillow_heif.from_pillow(Image.fromarray(scene)).save(tmp_path / "a.heic", quality=95)
        (tmp_path / name).write_bytes((tmp_path / "a.heic").read_bytes())
        assert np.abs(read_rgb(tmp_path / name).astype(int) - scene).mean() < 5
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (read_rgb, image_size):
        with pytest.raises(DataError, match=r"a\.heic: .* pillow-heif: `uv sync --extra heic`"):
            read(tmp_path / "a.heic")


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
    with pytest.raises(DataError, match=f"{re.escape(tmp_path.name)}: cannot be read: Is a directory"):
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
