"""Out-of-fold predictions of iMet's shape, generated: seeded, float16, in files that are memory-mapped.

A cell's true log-odds are normal around those of its label's frequency. Each member sees them through noise that all
members share and noise of its own. That gives what iMet has: about 3 labels per picture, an F2 near 0.6, and 0.4-0.6 %
of the cells in dispute among 7 members.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtri
from tqdm import tqdm

from imet_ray.cores import usable_cores

ROWS = 2048  # pictures a block
FOLDS = 5
PER_PICTURE = 3.2  # labels, were none of them capped
COMMONEST = 0.3  # share of the pictures
SPREAD = 5.0  # of the true log-odds between pictures
SHARED_NOISE = 1.3
OWN_NOISE = 0.5, 0.8  # of the best and the worst member
SCALE, SHIFT = 0.7, -0.4  # members are unsure, and too low


@dataclass(frozen=True)
class Oof:
    """What the members predict, and the truth."""

    probs: tuple[np.ndarray, ...]  # M of (N, C) float16, memory-mapped
    labels: np.ndarray  # (N, C) uint8, memory-mapped
    folds: np.ndarray  # (N,) int64

    @classmethod
    def read(cls, folder: Path) -> "Oof":
        members = len(list(folder.glob("m*.npy")))
        probs = tuple(np.load(folder / f"m{i}.npy", mmap_mode="r") for i in range(members))
        return cls(probs, np.load(folder / "labels.npy", mmap_mode="r"), np.load(folder / "folds.npy"))


def generate(parent: Path, images: int, labels: int, members: int, *, seed: int) -> Path:
    """The folder of the files, below `parent`; files of an earlier call with the same arguments are used again."""
    folder = parent / f"{images}x{labels}x{members}-seed{seed}"
    if (folder / "folds.npy").exists():  # the last to be written
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    frequency = 1 / np.arange(1, labels + 1) ** 0.9
    frequency = np.minimum(COMMONEST, frequency * PER_PICTURE / frequency.sum())
    # a logistic variable has variance pi^2 / 3, so P(base + spread z + logistic > 0) is near the frequency
    base = (np.sqrt(SPREAD**2 + np.pi**2 / 3) * ndtri(frequency)).astype(np.float32)
    own_noise = np.linspace(*OWN_NOISE, members, dtype=np.float32)
    shape = images, labels
    files = [
        np.lib.format.open_memmap(folder / f"m{i}.npy", mode="w+", dtype=np.float16, shape=shape)
        for i in range(members)
    ]
    truth = np.lib.format.open_memmap(folder / "labels.npy", mode="w+", dtype=np.uint8, shape=shape)

    def block(start: int) -> None:
        rng = np.random.default_rng((seed, start))
        rows = slice(start, min(start + ROWS, images))

        def normal() -> np.ndarray:
            return rng.standard_normal((rows.stop - start, labels), dtype=np.float32)

        odds = base + np.float32(SPREAD) * normal()
        truth[rows] = rng.random(odds.shape, dtype=np.float32) < expit(odds)
        odds += np.float32(SHARED_NOISE) * normal()
        for file, noise in zip(files, own_noise, strict=True):
            file[rows] = expit(np.float32(SCALE) * (odds + noise * normal()) + np.float32(SHIFT))

    starts = range(0, images, ROWS)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in tqdm(pool.map(block, starts), "generating", len(starts), disable=None, delay=2):
            pass
    np.save(folder / "folds.npy", np.random.default_rng(seed).permutation(images) % FOLDS)
    return folder
