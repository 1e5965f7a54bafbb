"""Images per second, on one core, of the packed path against decoding and normalising each picture each time.

    uv run python -m benchmarks.loader [--images 256] [--size 288] [--preset medium] [--rounds 5]

Ours: a crop out of the pack, the augmentations, a uint8 batch (normalised on the device, in the model). The
peer is what most training scripts do: PIL decodes the file, the same augmentations with the same seeds, then
(x / 255 - mean) / std in float32 numpy. Same pictures, same process, one core; they take turns, in an order
that changes each round, and the median of the rounds counts. The pictures are generated: photograph-like,
short side 300 pixels as iMet's, PNG (iMet's format) and JPEG.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.loader import TrainDataset
from imet_ray.data.packed_images import build_pack
from imet_ray.specs import default_pack_short_side

SHORT_SIDE = 300  # pixels, as the files of iMet 2019
BATCH = 32
FORMATS = ("png", "jpeg")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def photograph(generator: np.random.Generator) -> np.ndarray:
    """Smooth shapes with texture on them: (H, W, 3) uint8, short side 300."""
    long_side = int(generator.integers(SHORT_SIDE, 500))
    height, width = (SHORT_SIDE, long_side) if generator.random() < 0.5 else (long_side, SHORT_SIDE)
    image = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 60), (8, 35), (30, 15), (90, 6)):
        coarse = generator.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image += generator.normal(0, 1.2, (height, width, 1))
    return (image + generator.uniform(70, 180, 3)).clip(0, 255).astype(np.uint8)


def peer_batch(
    files: list[Path], rows: list[int], dataset: TrainDataset, labels: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, S, S) float32, normalised, and (B, C) float32."""
    images = []
    for row in rows:
        with Image.open(files[row]) as file:
            image = np.asarray(file.convert("RGB"))
        image = dataset.transform(image, dataset._picture_seed(row))
        normalised = (image.astype(np.float32) / 255 - MEAN) / STD
        images.append(torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1))))
    return torch.stack(images), torch.from_numpy(labels[rows].astype(np.float32))


def rate(batch: Callable[[list[int]], object], n: int) -> float:
    """Images per second over all n pictures."""
    started = time.perf_counter()
    for start in range(0, n, BATCH):
        batch(list(range(start, min(start + BATCH, n))))
    return n / (time.perf_counter() - started)


@dataclass(frozen=True)
class Measured:
    """What the rounds gave."""

    rates: dict[str, list[float]]  # images per second of each way, by round
    packing: dict[str, float]  # seconds per image, by format
    kilobytes: dict[str, float]  # per picture, by format


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=288, help="pixels of the crops")
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.images, args.size, args.preset, args.rounds)
    print(
        f"\n{args.images} pictures, {args.size} px, preset {args.preset}, one core, median of {args.rounds} rounds"
    )
    show(found)


def measure(root: Path, n: int, size: int, preset: str, rounds: int) -> Measured:
    """Write n pictures, pack them, and let all ways take turns.

    Args:
        size: pixels of the crops.
    """
    generator = np.random.default_rng(0)
    files = {"png": [root / f"{i}.png" for i in range(n)], "jpeg": [root / f"{i}.jpg" for i in range(n)]}
    for png, jpeg in zip(files["png"], files["jpeg"], strict=True):
        image = Image.fromarray(photograph(generator))
        image.save(png)
        image.save(jpeg, quality=90)
    packing: dict[str, float] = {}
    for kind in FORMATS:
        started = time.perf_counter()
        pack = build_pack(
            files[kind],
            [file.stem for file in files[kind]],
            short_side=default_pack_short_side(size),
            path=root / f"pack-{kind}",
            workers=1,
        )
        packing[kind] = (time.perf_counter() - started) / n
    labels = (generator.random((n, 100)) < 0.03).astype(np.uint8)
    transform = TrainTransform(preset, "rectangular", size)
    dataset = TrainDataset(pack, np.arange(n), labels, transform, seed=0)
    crops = [pack[i] for i in range(n)]
    augmented = np.zeros((size, size, 3), np.uint8)
    work: dict[str, Callable[[list[int]], object]] = {
        "packed": dataset.__getitems__,
        "png": lambda rows: peer_batch(files["png"], rows, dataset, labels),
        "jpeg": lambda rows: peer_batch(files["jpeg"], rows, dataset, labels),
        # what they are made of
        "decode png": lambda rows: [np.asarray(Image.open(files["png"][i]).convert("RGB")) for i in rows],
        "decode jpeg": lambda rows: [np.asarray(Image.open(files["jpeg"][i]).convert("RGB")) for i in rows],
        "augment": lambda rows: [transform(crops[i], i) for i in rows],
        "normalise": lambda rows: [(augmented.astype(np.float32) / 255 - MEAN) / STD for _ in rows],
    }
    for batch in work.values():  # caches and imports warm
        batch(list(range(min(n, BATCH))))
    rates: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds):
        for name in sorted(work, reverse=turn % 2 == 1):
            dataset.set_epoch(turn)
            rates[name].append(rate(work[name], n))
    kilobytes = {kind: sum(f.stat().st_size for f in files[kind]) / n / 1000 for kind in FORMATS}
    return Measured(rates, packing, kilobytes)


def show(found: Measured) -> None:
    """Medians over rounds, and the median of the rounds' ratios."""
    median = {name: statistics.median(rates) for name, rates in found.rates.items()}
    print(f"{'packed: map, augment, uint8':<58}{median['packed']:8.1f} images/s")
    for kind in FORMATS:
        what = f"PIL {kind} of {found.kilobytes[kind]:.0f} kB: decode, augment, normalise"
        ratio = statistics.median(
            a / b for a, b in zip(found.rates["packed"], found.rates[kind], strict=True)
        )
        print(f"{what:<58}{median[kind]:8.1f} images/s   ratio {ratio:5.2f}")
    for name in ("decode png", "decode jpeg", "augment", "normalise"):
        print(f"  {name + ' alone':<56}{median[name]:8.1f} images/s")
    for kind in FORMATS:
        saved, packing = 1 / median[kind] - 1 / median["packed"], found.packing[kind]
        print(
            f"packing {kind}, once: {1000 * packing:.2f} ms an image, "
            f"{1000 * saved:.2f} ms saved an image and epoch: paid back after {packing / saved:.2f} epochs"
        )


if __name__ == "__main__":
    main()
