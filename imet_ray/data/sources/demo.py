"""Small artworks drawn from a seed: pictures to try everything on, with nothing to download.

Each has some motifs and at most one culture, which shows in its palette and ground; both are long-tailed. Training
labels are then *dropped* at a known rate, as a hurried annotator would. `complete.csv` keeps all of them, and
test.csv is complete, so that the effect of missing labels can be measured.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from imet_ray.data.csv_tables import write_table
from imet_ray.errors import ConfigError
from imet_ray.storage.files import disk_error

CULTURES: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> ground, palette (first: the ground's colours)
    "aurelian": ("plain", ("e8d9a0", "dcc680", "8a5a1c", "b3202a", "2f4a6d")),
    "borean": ("rows", ("cfe3ee", "a9c9dd", "1d3b5c", "5a7f9c", "f4f8fa")),
    "cyrenic": ("checks", ("efe6d8", "d6b48a", "7b2d26", "1f2a44", "c2703d")),
    "dorian": ("rings", ("d98c4a", "c9743a", "1c1712", "2b211a", "f0d3a8")),
    "elamite": ("dots", ("6b4a8c", "553a75", "e3c33b", "e9e2f2", "b23a6f")),
    "frankish": ("columns", ("5a6b3a", "48572e", "e7dfc0", "9c2f2f", "d7b14a")),
    "gandharan": ("gradient", ("9aa3a8", "6d767c", "2e3438", "c8b090", "e2e6e8")),
    "hanseatic": ("grid", ("f3eee2", "c9bfa5", "274b8a", "1a2f57", "a8392d")),
    "ionian": ("waves", ("2f7f8f", "256875", "f2ead7", "f0b95a", "123840")),
    "javan": ("diagonals", ("7a3b1e", "5f2c15", "f0c36b", "2a1a10", "c9562b")),
    "khmer": ("frame", ("3f5f4f", "2f4a3c", "d9c27a", "a3b8a0", "151f1a")),
    "lydian": ("noise", ("c98fa0", "b0707f", "4a1f33", "f3dfe2", "6f8f7a")),
}

Points = Sequence[tuple[float, float]]
Stroke = tuple[str, Points, float]  # fill | ring | line | disc; points in a unit square; thickness or radius


def _circle(x: float, y: float, r: float, n: int = 16) -> Points:
    return [(x + r * np.cos(a), y + r * np.sin(a)) for a in np.linspace(0, 2 * np.pi, n, endpoint=False)]


def _star(points: int, inner: float) -> Points:
    radii = [1.0, inner] * points
    angles = np.linspace(-np.pi / 2, 1.5 * np.pi, 2 * points, endpoint=False)
    return [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _wave(height: float, periods: float, y: float = 0.0) -> Points:
    return [(x, y + height * np.sin(np.pi * periods * x)) for x in np.linspace(-1, 1, 24)]


def _bar(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _spokes(n: int, inner: float, outer: float) -> list[Stroke]:
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    ends = [((inner * np.cos(a), inner * np.sin(a)), (outer * np.cos(a), outer * np.sin(a))) for a in angles]
    return [("line", pair, 0.12) for pair in ends]


_TURN = np.linspace(0, 5 * np.pi, 40)
_MOON = [*_circle(0, 0, 1, 24)[6:19], *[(0.35 * x + 0.1, y) for x, y in _circle(0, 0, 1, 24)[18:5:-1]]]
_HEART = [
    (
        0.06 * 16 * np.sin(t) ** 3,
        -0.06 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)),
    )
    for t in np.linspace(0, 2 * np.pi, 30)
]

MOTIFS: dict[str, list[Stroke]] = {  # in the order of how common they are
    "tree": [("fill", _bar(-0.15, 0.2, 0.15, 1), 0), ("fill", _circle(0, -0.25, 0.65), 0)],
    "sun": [("disc", [(0, 0)], 0.5), *_spokes(8, 0.6, 1)],
    "mountain": [("fill", [(-1, 0.8), (-0.3, -0.8), (0.1, 0.1), (0.4, -0.4), (1, 0.8)], 0)],
    "fish": [("fill", [(0.45 * x - 0.15 + 0.2 * x, 0.45 * y) for x, y in _circle(0, 0, 1)], 0),
             ("fill", [(0.4, 0), (1, -0.5), (1, 0.5)], 0)],
    "house": [("fill", _bar(-0.7, -0.1, 0.7, 0.9), 0), ("fill", [(-1, -0.1), (0, -0.9), (1, -0.1)], 0)],
    "boat": [("fill", [(-1, 0.3), (1, 0.3), (0.6, 0.8), (-0.6, 0.8)], 0), ("line", [(0, 0.3), (0, -0.9)], 0.12),
             ("fill", [(0.1, -0.8), (0.7, 0.1), (0.1, 0.1)], 0)],
    "cross": [("fill", _bar(-0.2, -1, 0.2, 1), 0), ("fill", _bar(-0.8, -0.5, 0.8, -0.1), 0)],
    "moon": [("fill", _MOON, 0)],
    "bird": [("line", [(-1, -0.4), (-0.5, -0.6), (0, 0.1), (0.5, -0.6), (1, -0.4)], 0.2)],
    "flower": [*[("disc", [p], 0.32) for p in _circle(0, 0, 0.55, 6)], ("ring", _circle(0, 0, 0.25), 0.12)],
    "spiral": [("line", [(a / _TURN[-1] * np.cos(a), a / _TURN[-1] * np.sin(a)) for a in _TURN], 0.13)],
    "eye": [("ring", [(x, 0.5 * y * (1 - 0.6 * abs(x))) for x, y in _circle(0, 0, 1)], 0.12), ("disc", [(0, 0)], 0.3)],
    "crown": [("fill", [(-0.9, 0.6), (-1, -0.6), (-0.4, 0), (0, -0.8), (0.4, 0), (1, -0.6), (0.9, 0.6)], 0)],
    "star": [("fill", _star(5, 0.4), 0)],
    "waves": [("line", _wave(0.15, 3, y), 0.13) for y in (-0.5, 0.0, 0.5)],
    "cup": [("fill", [(-0.8, -0.7), (0.8, -0.7), (0.25, 0.2), (-0.25, 0.2)], 0), ("line", [(0, 0.2), (0, 0.8)], 0.15),
            ("line", [(-0.5, 0.85), (0.5, 0.85)], 0.15)],
    "key": [("ring", _circle(-0.6, 0, 0.35), 0.15), ("line", [(-0.25, 0), (1, 0)], 0.15),
            ("line", [(0.9, 0), (0.9, 0.4)], 0.15), ("line", [(0.6, 0), (0.6, 0.3)], 0.15)],
    "heart": [("fill", _HEART, 0)],
    "ladder": [("line", [(-0.4, -1), (-0.4, 1)], 0.12), ("line", [(0.4, -1), (0.4, 1)], 0.12),
               *[("line", [(-0.4, y), (0.4, y)], 0.12) for y in (-0.7, -0.2, 0.3, 0.8)]],
    "arrow": [("line", [(-1, 0), (0.6, 0)], 0.15), ("fill", [(0.4, -0.4), (1, 0), (0.4, 0.4)], 0)],
    "wheel": [("ring", _circle(0, 0, 0.9, 24), 0.15), *_spokes(6, 0.1, 0.85)],
    "vase": [("fill", [(-0.3, -1), (0.3, -1), (0.2, -0.6), (0.7, 0), (0.3, 0.9), (-0.3, 0.9), (-0.7, 0),
                       (-0.2, -0.6)], 0)],
    "snake": [("line", _wave(0.35, 4), 0.2)],
    "sword": [("fill", [(-0.1, -1), (0.1, -1), (0.12, 0.4), (-0.12, 0.4)], 0),
              ("line", [(-0.5, 0.45), (0.5, 0.45)], 0.15), ("line", [(0, 0.45), (0, 1)], 0.15)],
    "bell": [("fill", [(-0.2, -0.9), (0.2, -0.9), (0.5, 0.2), (0.9, 0.6), (-0.9, 0.6), (-0.5, 0.2)], 0),
             ("disc", [(0, 0.8)], 0.18)],
    "column": [("fill", _bar(-0.35, -0.8, 0.35, 0.8), 0), ("fill", _bar(-0.65, -1, 0.65, -0.8), 0),
               ("fill", _bar(-0.65, 0.8, 0.65, 1), 0)],
    "mask": [("ring", _circle(0, 0, 0.95), 0.14), ("disc", [(-0.35, -0.2)], 0.16), ("disc", [(0.35, -0.2)], 0.16),
             ("line", [(-0.4, 0.45), (0, 0.6), (0.4, 0.45)], 0.13)],
    "diamond": [("ring", [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], 0.16)],
}  # fmt: skip

LABELS = [f"culture::{name}" for name in CULTURES] + [f"tag::{name}" for name in MOTIFS]
MOTIF_COUNTS = ((1, 0.1), (2, 0.3), (3, 0.35), (4, 0.25))  # motifs on a picture, share of pictures
NO_CULTURE = 0.05
MOTIF_TAIL, CULTURE_TAIL = 1.3, 1.1  # exponents of the falling frequencies


def generate(
    root: Path,
    *,
    n_images: int = 1500,
    n_test: int = 300,
    seed: int = 0,
    missing: float = 0.2,
    workers: int = 2,
) -> None:
    """Draw the dataset into `root`, unless it is there.

    Args:
        n_images: training pictures.
        n_test: test pictures, with complete labels in test.csv.
        seed: the same seed gives the same dataset.
        missing: share of training labels that are dropped; each picture keeps at least one.
        workers: drawing threads.

    Raises:
        ConfigError: for numbers that make no dataset.
        StoreError: if the disk is full.
    """
    if n_images < 10 or n_test < 0 or seed < 0 or not 0 <= missing < 1:
        raise ConfigError(
            f"demo needs n_images >= 10, n_test >= 0, seed >= 0 and missing in [0, 1), "
            f"got {n_images}, {n_test}, {seed}, {missing}"
        )
    if (root / "sample_submission.csv").exists():
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            _write(building, n_images, n_test, seed, missing, workers)
            building.chmod(0o755)
            building.rename(root)
        except OSError:
            if not (root / "sample_submission.csv").exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise disk_error(root, error) from error


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """One artwork, (H, W, 3) uint8 RGB, and its labels as indices into `LABELS`."""
    culture = int(rng.choice(len(CULTURES), p=_falling(len(CULTURES), CULTURE_TAIL)))
    ground, palette = list(CULTURES.values())[culture]
    colours = [tuple(int(c[i : i + 2], 16) for i in (0, 2, 4)) for c in palette]
    labels = [culture]
    if rng.random() < NO_CULTURE:  # a grey picture of no culture
        colours = [tuple([int(np.mean(c))] * 3) for c in colours]
        labels = []
    short, aspect = int(rng.integers(96, 129)), float(np.exp(rng.normal(0, 0.25)))
    height, width = (round(short * max(1.0, aspect)), round(short * max(1.0, 1 / aspect)))
    canvas = _ground(ground, height, width, np.array(colours[0]), np.array(colours[1]), rng)
    counts, shares = zip(*MOTIF_COUNTS, strict=True)
    motifs = rng.choice(
        len(MOTIFS), int(rng.choice(counts, p=shares)), replace=False, p=_falling(len(MOTIFS), MOTIF_TAIL)
    )
    for motif in motifs:
        radius = short * rng.uniform(0.13, 0.27)
        # some are cut by the edge
        centre = rng.uniform(0.6 * radius, np.array([width, height]) - 0.6 * radius)
        colour = np.clip(np.array(colours[int(rng.integers(2, 5))]) + rng.normal(0, 12, 3), 0, 255)
        _stamp(canvas, list(MOTIFS.values())[motif], centre, radius, rng.normal(0, 0.25), colour)
        labels.append(len(CULTURES) + int(motif))
    canvas = canvas * rng.uniform(0.85, 1.1) + rng.normal(0, 7, (height, width, 1))
    canvas = canvas + rng.normal(0, 3, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), sorted(labels)


def _write(root: Path, n_images: int, n_test: int, seed: int, missing: float, workers: int) -> None:
    tables: dict[str, list[tuple[str, list[int]]]] = {"train": [], "test": []}

    def paint(split: str, i: int) -> tuple[str, list[int]]:
        rng = np.random.default_rng((seed, split == "test", i))
        picture, labels = draw(rng)
        name = f"{rng.integers(2**64, dtype=np.uint64):016x}"
        suffix = ".png" if rng.random() < 0.2 else ".jpg"
        done, data = cv2.imencode(suffix, picture[:, :, ::-1])  # JPEG at quality 95
        assert done
        (root / split / f"{name}{suffix}").write_bytes(data.tobytes())
        return name, labels

    with ThreadPoolExecutor(workers) as pool:
        for split, n in (("train", n_images), ("test", n_test)):
            (root / split).mkdir()
            tables[split] = list(pool.map(paint, [split] * n, range(n)))
    dropping = np.random.default_rng((seed, 2))
    kept = [(name, _drop(labels, missing, dropping)) for name, labels in tables["train"]]
    write_table(root / "labels.csv", {"attribute_id": range(len(LABELS)), "attribute_name": LABELS})
    for file, rows in (("train", kept), ("complete", tables["train"]), ("test", tables["test"])):
        label_sets = [" ".join(map(str, labels)) for _, labels in rows]
        write_table(root / f"{file}.csv", {"id": [name for name, _ in rows], "attribute_ids": label_sets})
    sample = {"id": [name for name, _ in tables["test"]], "attribute_ids": "0 1"}
    write_table(root / "sample_submission.csv", sample)  # last: the dataset is whole


def _drop(labels: list[int], missing: float, rng: np.random.Generator) -> list[int]:
    """What a hurried annotator leaves: each label with probability 1 - missing, at least one."""
    kept = [label for label in labels if rng.random() >= missing]
    return kept or [int(rng.choice(labels))]


def _falling(n: int, exponent: float) -> np.ndarray:
    """Zipf's frequencies: (n,), sum 1."""
    weights = np.arange(1, n + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def _stamp(
    canvas: np.ndarray,
    strokes: list[Stroke],
    centre: np.ndarray,
    radius: float,
    angle: float,
    colour: np.ndarray,
) -> None:
    """Draw a motif, turned and scaled, with 1/16-pixel positions."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ink = tuple(float(c) for c in colour)
    for kind, points, size in strokes:
        placed = np.round((np.asarray(points) @ turn.T * radius + centre) * 16).astype(np.int32)
        thick = max(1, round(size * radius))
        if kind == "fill":
            cv2.fillPoly(canvas, [placed], ink, cv2.LINE_8, 4)
        elif kind == "disc":
            x, y = placed[0].tolist()
            cv2.circle(canvas, (x, y), max(16, round(size * radius * 16)), ink, -1, cv2.LINE_8, 4)
        else:
            cv2.polylines(canvas, [placed], kind == "ring", ink, thick, cv2.LINE_8, 4)


def _ground(
    kind: str, height: int, width: int, light: np.ndarray, dark: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A culture's ground: (H, W, 3) float32."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    step = float(rng.uniform(9, 15))
    share = GROUNDS[kind](x, y, step, rng)[:, :, None].astype(np.float32)
    return np.ascontiguousarray(light * (1 - share) + dark * share, dtype=np.float32)


Ground = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]

GROUNDS: dict[str, Ground] = {  # share of the darker colour at each pixel
    "plain": lambda x, y, s, r: np.zeros_like(x),
    "rows": lambda x, y, s, r: (y // s) % 2,
    "columns": lambda x, y, s, r: (x // s) % 2,
    "checks": lambda x, y, s, r: (x // s + y // s) % 2,
    "rings": lambda x, y, s, r: (np.hypot(x - x.max() / 2, y - y.max() / 2) // s) % 2,
    "dots": lambda x, y, s, r: np.hypot(x % s - s / 2, y % s - s / 2) < s / 4,
    "gradient": lambda x, y, s, r: y / max(1.0, float(y.max())),
    "grid": lambda x, y, s, r: (x % s < 2) | (y % s < 2),
    "waves": lambda x, y, s, r: ((y + 4 * np.sin(x / s * 2)) // s) % 2,
    "diagonals": lambda x, y, s, r: ((x + y) // s) % 2,
    "frame": lambda x, y, s, r: np.minimum.reduce([x, y, x.max() - x, y.max() - y]) < s,
    "noise": lambda x, y, s, r: cv2.resize(
        r.random((8, 8), dtype=np.float32), (x.shape[1], x.shape[0]), interpolation=cv2.INTER_NEAREST
    ),
}
