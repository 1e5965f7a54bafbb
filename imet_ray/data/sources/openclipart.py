"""Real pictures without an account: OpenClipart 0.18 (public domain), from Debian's packages.

openclipart-svg has the contributors' keywords, openclipart-png the pictures. The labels are the keywords of at
least ten pictures. A seeded tenth of the pictures is the test split; test.csv has its labels.
"""

import html
import logging
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from imet_ray.data.csv_tables import write_table
from imet_ray.data.images import read_rgb
from imet_ray.errors import DataError
from imet_ray.storage.files import disk_error, writing

logger = logging.getLogger(__name__)

PACKAGES = ("openclipart-png", "openclipart-svg")
SHORT_SIDE = 160  # pixels
NO_LABELS = {"hash", "magick", "unsorted", ""}  # left by tools, not by contributors
AT_LEAST = 10  # pictures per label
TEST_SHARE = 0.1
SEED = 2019

SUBJECT = re.compile(r"<dc:subject\b[^>]*>(.*?)</dc:subject>", re.DOTALL)
ITEM = re.compile(r"<rdf:li\b[^>]*>([^<]*)</rdf:li>")


def fetch(root: Path, *, source: Path | None = None, workers: int = 2) -> None:
    """Make the dataset in `root`, unless it is there. After an interruption it goes on.

    Args:
        source: a directory with the two unpacked packages; without it apt-get downloads them.
        workers: threads that convert pictures.

    Raises:
        DataError: one line, if the packages cannot be downloaded.
        StoreError: if the disk is full.
    """
    if (root / "sample_submission.csv").exists():
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        unpacked = source if source is not None else _download(root / "packages")
        _convert(root, unpacked, workers)
    except OSError as error:
        raise disk_error(root, error) from error
    shutil.rmtree(root / "packages", ignore_errors=True)


def keywords(svg: str) -> list[str]:
    """The contributors' keywords in an SVG's metadata, in lower case, each once."""
    found = [
        " ".join(html.unescape(item).lower().split())
        for subject in SUBJECT.findall(svg)
        for item in ITEM.findall(subject)
    ]
    return [word for word in dict.fromkeys(found) if word not in NO_LABELS]


def _download(folder: Path) -> Path:
    """Fetch and unpack the packages; nothing is installed, and no root is needed."""
    way_out = (
        "unpack the Debian packages openclipart-png and openclipart-svg elsewhere (dpkg -x FILE.deb DIR) and "
        "give --from DIR"
    )
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(f"openclipart needs {tool}, which this machine lacks: {way_out}")
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "unpacked"
    if done.exists():
        return done
    print("openclipart: downloading two packages of Debian (140 MB) ...", flush=True)
    _run(["apt-get", "download", *PACKAGES], folder, way_out)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(partial)], folder, way_out)
        package.unlink()
    partial.rename(done)
    return done


def _run(command: Sequence[str], folder: Path, way_out: str) -> None:
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        last = ([line for line in found.stderr.splitlines() if line.strip()] or ["no message"])[-1]
        hint = "run `apt-get update` first, or " if "locate" in last or "find" in last else ""
        raise DataError(f"`{' '.join(command[:2])}` failed ({last.strip()}): {hint}{way_out}")


def _convert(root: Path, unpacked: Path, workers: int) -> None:
    pairs = _pairs(unpacked)
    pictures = root / "pictures"
    pictures.mkdir(exist_ok=True)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        usable = pool.map(lambda pair: _shrink(pair[1], pictures / f"{pair[0]}.jpg"), pairs)
        bar = tqdm(usable, total=len(pairs), desc="openclipart", unit="img", disable=None)
        kept = [pair for pair, fits in zip(pairs, bar, strict=True) if fits]
    counts = Counter(word for _, _, words in kept for word in words)
    labels = sorted(word for word, n in counts.items() if n >= AT_LEAST)
    index = {word: i for i, word in enumerate(labels)}
    rows = [(name, [index[word] for word in words if word in index]) for name, _, words in kept]
    rows = [row for row in rows if row[1]]
    if not rows:
        raise DataError(f"no picture with keywords in {unpacked}: is it the two unpacked packages?")
    test = set(np.random.default_rng(SEED).permutation(len(rows))[: round(TEST_SHARE * len(rows))].tolist())
    split = {
        "train": [row for i, row in enumerate(rows) if i not in test],
        "test": [row for i, row in enumerate(rows) if i in test],
    }
    for name, part in split.items():
        (root / name).mkdir(exist_ok=True)
        for picture, _ in part:
            (pictures / f"{picture}.jpg").replace(root / name / f"{picture}.jpg")
        label_sets = [" ".join(map(str, found)) for _, found in part]
        write_table(root / f"{name}.csv", {"id": [name for name, _ in part], "attribute_ids": label_sets})
    write_table(root / "labels.csv", {"attribute_id": range(len(labels)), "attribute_name": labels})
    shutil.rmtree(pictures)
    sample = {"id": [name for name, _ in split["test"]], "attribute_ids": "0"}
    write_table(root / "sample_submission.csv", sample)  # last: the dataset is whole


def _pairs(unpacked: Path) -> list[tuple[str, Path, list[str]]]:
    """Id, picture and keywords of each picture that has any."""
    pngs, svgs = (next(unpacked.rglob(f"openclipart/{kind}"), None) for kind in ("png", "svg"))
    if pngs is None or svgs is None:
        raise DataError(
            f"{unpacked} has no openclipart/png and openclipart/svg in it: give the directory into which both "
            "packages were unpacked"
        )
    pairs = []
    names: Counter[str] = Counter()
    for png in sorted(pngs.rglob("*.png")):
        place = png.relative_to(pngs).with_suffix("")
        svg = svgs / f"{place}.svg"
        words = keywords(svg.read_text(encoding="utf-8", errors="replace")) if svg.exists() else []
        if words:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(place.parts))
            names[name] += 1  # "a b" and "a&b" give one name
            pairs.append((f"{name}.{names[name]}" if names[name] > 1 else name, png, words))
    return pairs


def _shrink(png: Path, target: Path) -> bool:
    """Write a small JPEG, unless it is there; False where the picture cannot be used.

    JPEG, quality 95: a fifth of PNG's bytes, and 0.3 % of the pixels' range in error on drawings.
    """
    if target.exists():
        return True
    try:
        pixels = read_rgb(png, short_side=SHORT_SIDE)
    except DataError as error:
        logger.info("left out: %s", error)
        return False
    done, data = cv2.imencode(".jpg", pixels[:, :, ::-1])
    assert done
    with writing(target) as temporary:
        temporary.write_bytes(data.tobytes())
    return True
