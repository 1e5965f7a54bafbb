"""Pictures of all formats, modes and orientations, harmed or not: what is read of them, and by whom.

    python tests/picture_fuzz.py --pictures 5000 [--seed 0]

For each picture: `--check-data` and packing give one verdict; what is read is what was drawn; what is refused is one
line; nothing is a traceback. Whole pictures, those that are harmed in their metadata alone, and a PNG, JPEG or BMP
without its last three bytes must be read.
"""

import argparse
import io
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import pillow_heif

from imet_ray.data.check import check_data
from imet_ray.data.images import read_picture
from imet_ray.data.packed_images import build_pack
from imet_ray.errors import DataError

FORMATS = {  # suffix, and the modes that can be written
    "PNG": ("png", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    "JPEG": ("jpg", ("L", "RGB", "CMYK", "YCbCr")),
    "WEBP": ("webp", ("L", "RGB", "RGBA")),
    "GIF": ("gif", ("1", "L", "P", "RGB")),
    "BMP": ("bmp", ("1", "L", "P", "RGB", "RGBA")),
    "TIFF": ("tif", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F")),
    "AVIF": ("avif", ("L", "RGB", "RGBA")),
    "JPEG2000": ("jp2", ("L", "LA", "RGB", "RGBA", "I;16")),
    "HEIF": ("heic", ("L", "RGB", "RGBA")),
}
READ_WITHOUT_END = (b"\x89PNG", b"\xff\xd8", b"BM")  # how a PNG, JPEG and BMP begin
WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
SEEN = {  # what an orientation makes of what is stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


@dataclass(frozen=True)
class Case:
    """One picture file."""

    name: str
    data: bytes
    stored: np.ndarray  # (H, W, 3) uint8, before the orientation
    pixels: np.ndarray  # (H, W, 3) uint8, what is to be seen
    damage: str  # "" where the pixels are whole
    tolerance: float  # of the mean absolute difference


def draw(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth colours, none of which is the grey that decoders paint where they lack something."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6)) for _ in range(3)]
    return Image.fromarray((np.stack(waves, axis=2) * 60 + [190, 120, 70]).clip(0, 255).astype(np.uint8))


def in_mode(scene: Image.Image, mode: str) -> Image.Image:
    grey = np.asarray(scene.convert("L"))
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(scene, *profiles, outputMode="LAB")
    return scene.convert(mode)


def encode(image: Image.Image, form: str, rng: np.random.Generator, orientation: int) -> bytes:
    how: dict[str, object] = {}
    if form in WITH_EXIF:
        exif = Image.Exif()
        exif[0x0112] = orientation
        how["exif"] = exif
    if form == "JPEG":
        how |= {"quality": 92, "progressive": rng.random() < 0.3, "subsampling": int(rng.integers(3))}
        how |= {"restart_marker_rows": 1} if rng.random() < 0.2 else {}
    if form == "TIFF" and image.mode in ("L", "RGB", "I;16"):
        how["compression"] = str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    file = io.BytesIO()
    if form == "HEIF":
        pillow_heif.from_pillow(image).save(file, quality=90)
    else:
        image.save(file, form, **how)
    return file.getvalue()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    found = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", found)


def odd_entry(rng: np.random.Generator) -> tuple[int, int, int, bytes]:
    """A random EXIF entry: tag, type, count, value."""
    tag = int(rng.choice([270, 282, 283, 296, 305, 306, 531, 33432, 34665, 34853, 36867, 40965]))
    value = rng.bytes(int(rng.choice([1, 2, 4, 8, 12])))
    return tag, int(rng.integers(0, 14)), int(rng.choice([0, 1, 2, 4, 1 << 20])), value


def exif_segment(orientation: int, *others: tuple[int, int, int, bytes]) -> bytes:
    """A JPEG's APP1 segment, little-endian."""
    entries = sorted([(0x0112, 3, 1, struct.pack("<H", orientation)), *others], key=lambda entry: entry[0])
    table, data, base = struct.pack("<H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            value, data = struct.pack("<I", base + len(data)), data + value
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    body = b"Exif\0\0II*\0" + struct.pack("<I", 8) + table + bytes(4) + data
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def odd_metadata(data: bytes, form: str, orientation: int, rng: np.random.Generator) -> bytes:
    """The same pixels beside metadata that make no sense."""
    if form == "JPEG":
        length = int.from_bytes(data[4:6], "big")
        at = 4 + length  # behind APP0, or APP1
        segments = [exif_segment(orientation, odd_entry(rng), odd_entry(rng)), b"\xff\xfe\0\x06\0\xff\xd9\0"]
        return data[:2] + b"".join(segments) + data[2 if data[3] == 0xE0 else at :]
    if form == "PNG":
        odd = [
            chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))),
            chunk(b"tEXt", b"Title\0wrong", crc=1),
            chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(2_000_000))),
            chunk(b"iTXt", b"\xff"),
            chunk(b"tIME", b""),
            chunk(b"pHYs", b"\0"),
        ]
        one = odd[int(rng.integers(len(odd)))]
        at = 33 if rng.random() < 0.7 else len(data) - 12  # behind the header, before the end
        return data[:at] + one + data[at:]
    return data + rng.bytes(7) if form not in ("AVIF", "HEIF", "TIFF", "JPEG2000") else data


def harmed(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    kind = str(rng.choice(["end", "little", "much", "flip", "zeros", "hole"]))
    n = len(data)
    if kind == "end":
        return data[: -int(rng.integers(1, 4))], kind
    if kind == "little":
        return data[: -max(1, int(n * rng.uniform(0, 0.08)))], kind
    if kind == "much":
        return data[: int(n * rng.uniform(0, 0.9))], kind
    if kind == "zeros":
        at = int(n * rng.uniform(0.1, 1))
        return data[:at] + bytes(n - at), kind
    if kind == "hole":
        at = int(n * rng.uniform(0, 1))
        return data[:at] + data[at + 1 + int(rng.integers(50)) :], kind
    found = bytearray(data)
    for at in rng.integers(0, n, size=int(rng.integers(1, 5))):
        found[at] = int(rng.integers(256))
    return bytes(found), kind


def cases(rng: np.random.Generator) -> Iterator[Case]:
    """Pictures without end."""
    number = 0
    while True:
        number += 1
        form = str(rng.choice(list(FORMATS)))
        suffix, modes = FORMATS[form]
        mode, orientation = str(rng.choice(modes)), int(rng.integers(1, 9)) if form in WITH_EXIF else 1
        scene = draw(rng, int(rng.integers(24, 90)), int(rng.integers(24, 90)))
        image = in_mode(scene, mode)
        data, damage = encode(image, form, rng, orientation), ""
        shown = in_mode(scene, mode if mode not in ("I;16", "I", "F", "LAB") else "L").convert("RGB")
        shown = scene if mode == "LAB" else shown
        match rng.random():
            case part if part < 0.3:
                data = odd_metadata(data, form, orientation, rng)
            case part if part < 0.75:
                data, damage = harmed(data, rng)
        if rng.random() < 0.15:  # under a wrong name
            suffix = str(rng.choice([suffix for suffix, _ in FORMATS.values()]))
        exact = form in ("PNG", "BMP", "TIFF") and mode not in ("LAB", "CMYK")
        seen = np.ascontiguousarray(SEEN[orientation](np.asarray(shown)))
        yield Case(
            f"p{number}.{suffix}", data, np.asarray(shown), seen, damage, float(mode == "F") if exact else 12
        )


def faults(found: list[Case], root: Path) -> list[str]:
    """What is wrong with how these pictures are read; `root` is an empty folder."""
    (root / "train").mkdir(parents=True)
    for case in found:
        (root / "train" / case.name).write_bytes(case.data)
    rows = "".join(f"{case.name},a\n" for case in found)
    (root / "train.csv").write_text("id,attribute_ids\n" + rows)
    report = check_data(root, workers=2)
    refused = {p.text.partition(": ")[0].removeprefix("train/") for p in report.problems if p.forbids}
    unreadable: set[int] = set()
    files = [root / "train" / case.name for case in found]
    ids = [case.name for case in found]
    pack = build_pack(files, ids, short_side=20, path=root / "pack", workers=2, unreadable=unreadable)
    wrong = [f"{problem.kind}: {problem.text}" for problem in report.problems if "\n" in problem.text]
    for row, case in enumerate(found):
        label = f"{case.name} ({case.damage or 'whole'})"
        if (case.name in refused) != (row in unreadable):
            wrong.append(f"{label}: refused by {'--check-data' if case.name in refused else 'packing'} alone")
        try:
            pixels, missing = read_picture(files[row])
        except DataError as error:
            if not case.damage or (case.damage == "end" and case.data.startswith(READ_WITHOUT_END)):
                wrong.append(f"{label}: {error}")
            continue
        if row not in unreadable and min(pack[row].shape[:2]) != min(20, *pixels.shape[:2]):
            wrong.append(f"{label}: packed in another shape")
        if case.damage in ("", "end", "little", "much") and not right(pixels, missing, case):
            wrong.append(f"{label}: wrong pixels, {missing:.3f} said to be missing")
    return wrong


def right(pixels: np.ndarray, missing: float, case: Case) -> bool:
    off = apart(pixels, case.pixels)
    if case.damage == "":
        return missing == 0 and off.mean() <= case.tolerance
    bound, share = max(3 * case.tolerance, 8), missing + 0.1  # a block or two beside what is missing
    if case.data[8:12] == b"WEBP" and (apart(pixels, case.stored) > bound).mean() <= share:
        return True  # its EXIF stands at the end: where that is cut off, no viewer turns the picture
    return bool((off > bound).mean() <= share)


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest difference of each pixel's channels: (H, W); 255 where the shapes differ."""
    return np.abs(a.astype(int) - b).max(axis=2) if a.shape == b.shape else np.full(a.shape[:2], 255)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the pictures that are read wrongly")
    args = parser.parse_args()
    source, done, wrong = cases(np.random.default_rng(args.seed)), 0, []
    while done < args.pictures:
        batch = [next(source) for _ in range(min(250, args.pictures - done))]
        with tempfile.TemporaryDirectory() as folder:
            found = faults(batch, Path(folder) / "data")
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                names = {line.partition(" ")[0] for line in found}
                for case in batch:
                    if case.name in names:
                        (args.keep / case.name).write_bytes(case.data)
        for line in found:
            print(line)
        wrong += found
        done += len(batch)
    print(f"{done} pictures, {len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
