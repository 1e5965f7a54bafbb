"""A little data directory that may be trained on, with some of its files written anew."""

import struct
import zlib
from io import BytesIO

from PIL import Image

from imet_ray.data.check import check_data

NAMES = b"attribute_id,attribute_name\n0,culture::a\n1,tag::b\n2,tag::c\n"
HEAD = b"id,attribute_ids\n"
TRAIN = HEAD + b"a,0 2\nb,1\nc.webp,0\n"
LABELS = [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
SAMPLE = HEAD + b"u,0 1\ns,0 1\nt.jpg,0 1\n"  # in no order of names

NO_PICTURES = {f"train/{name}": None for name in ("a.png", "b.jpg", "c.webp")}


def picture(suffix="png", colour=9):
    file = BytesIO()
    Image.new("RGB", (5, 4), (colour, 99, 199)).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def bomb():
    """A PNG whose header promises 2,500 megapixels."""
    data = picture()
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def make(root, **files):
    """A directory that may be trained on, with some files written anew (None: left out)."""
    good = {
        "train.csv": TRAIN,
        "labels.csv": NAMES,
        "sample_submission.csv": SAMPLE,
        **{f"train/{name}": picture(name[2:], 10 * i) for i, name in enumerate(("a.png", "b.jpg", "c.webp"))},
        **{
            f"test/{name}": picture(name[2:], 90 + 10 * i)
            for i, name in enumerate(("s.png", "t.jpg", "u.webp"))
        },
    }
    for name, data in (good | files).items():
        if data is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return root


def problems(root):
    """Kind, place and verdict of each problem, after decoding."""
    report = check_data(root, workers=2)
    return [(p.kind, f"{p.where} row {p.row}", p.forbids) for p in report.problems]
