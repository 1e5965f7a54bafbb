"""A data directory of iMet's shape, generated: to see that a space runs, and what it takes, without the pictures.

    uv run python -m benchmarks.imet_shape DIR [--pictures 400] [--test 40] [--seed 0]

PNG files of short side 300, 1,103 labels (398 cultures, 705 tags) with a long tail, 0 to 3 cultures and 1 to 8 tags a
picture, 3.2 in all on average. The pictures know nothing of their labels: scores mean nothing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loader import photograph
from imet_ray.data.csv_tables import write_table

CULTURES, TAGS = 398, 705
CULTURE_SHARES = (0.1, 0.8, 0.09, 0.01)  # of pictures that have 0, 1, 2 and 3 cultures
TAG_SHARES = (0.32, 0.34, 0.2, 0.09, 0.03, 0.01, 0.006, 0.004)  # 1 to 8 tags
TAIL = 1.2  # exponent: the commonest tag is on a fifth of the pictures, most labels on a few in 10,000


def long_tail(n: int) -> np.ndarray:
    """How often each of n labels is drawn: (n,) float64, falling, of sum 1."""
    weights = (np.arange(n) + 4.0) ** -TAIL
    return np.asarray(weights / weights.sum())


def labels_of_a_picture(rng: np.random.Generator) -> list[int]:
    """Cultures are 0 to 397, tags 398 to 1,102."""
    cultures = rng.choice(CULTURES, rng.choice(4, p=CULTURE_SHARES), replace=False, p=long_tail(CULTURES))
    tags = rng.choice(TAGS, 1 + rng.choice(8, p=TAG_SHARES), replace=False, p=long_tail(TAGS))
    return sorted([*cultures.tolist(), *(CULTURES + tags).tolist()])


def generate(root: Path, pictures: int, test: int, seed: int) -> float:
    """Write the directory; the labels of a training picture on average."""
    rng = np.random.default_rng(seed)
    names = {
        split: _pictures(root / split, rng, count) for split, count in (("train", pictures), ("test", test))
    }
    labels = [labels_of_a_picture(rng) for _ in range(pictures)]
    written = [" ".join(map(str, of)) for of in labels]
    write_table(root / "train.csv", {"id": names["train"], "attribute_ids": written})
    guesses = ["0 1 2"] * test
    write_table(root / "sample_submission.csv", {"id": names["test"], "attribute_ids": guesses})
    titles = [f"culture::c{i}" for i in range(CULTURES)] + [f"tag::t{i}" for i in range(TAGS)]
    write_table(root / "labels.csv", {"attribute_id": range(CULTURES + TAGS), "attribute_name": titles})
    return sum(map(len, labels)) / pictures


def _pictures(folder: Path, rng: np.random.Generator, count: int) -> Sequence[str]:
    folder.mkdir(parents=True)
    names = [f"{rng.integers(2**64, dtype=np.uint64):016x}" for _ in range(count)]
    for name in names:
        Image.fromarray(photograph(rng)).save(folder / f"{name}.png", compress_level=1)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.dir.exists():
        parser.error(f"{args.dir} exists: name a new folder")
    mean = generate(args.dir, args.pictures, args.test, args.seed)
    print(f"{args.dir}: {args.pictures} pictures with {mean:.2f} labels each, {args.test} of the test set")


if __name__ == "__main__":
    main()
