"""Decoding by expected F2 at the size of iMet's second stage, against the plain dynamic programme.

    uv run python -m benchmarks.decode [--images 38801] [--labels 1103] [--peer-images 10]

Ours decodes all pictures. The peer computes the same expectation as it is written down, a picture at a time: for each
label the distribution of how many others are true, by convolution, then the sum over it for each size of the set. It
gets fewer pictures, for it takes long; the sets must be the same. The probabilities are generated: 3 likely labels a
picture, a long tail of unlikely ones.
"""

import argparse
import time

import numpy as np

from imet_ray.prediction.metrics import METRICS

F2 = METRICS["f2"]

LIKELY = 3.0  # labels per picture, on average


def plain(probs: np.ndarray) -> np.ndarray:
    """The best set of one picture: (C,) float64 to (C,) bool. Labels below 1e-3 are too unlikely to be chosen."""
    order = np.argsort(-probs, kind="stable")
    p = probs[order]
    candidates = int((p > 1e-3).sum())
    worth = np.zeros(candidates)
    for j in range(candidates):
        others = np.ones(1)
        for i, q in enumerate(p):
            if i != j:
                others = np.convolve(others, (1 - q, q))[:64]
        true = np.arange(len(others))
        for k in range(j + 1, candidates + 1):
            worth[k - 1] += p[j] * (others * 5 / (k + 4 * (1 + true))).sum()
    chosen = np.zeros(len(probs), dtype=bool)
    chosen[order[: int(worth.argmax()) + 1]] = True
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=38_801)
    parser.add_argument("--labels", type=int, default=1_103)
    parser.add_argument("--peer-images", type=int, default=10)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    tail = rng.gamma(0.05, 0.02, (args.images, args.labels))
    likely = rng.random((args.images, args.labels)) < LIKELY / args.labels
    probs = np.where(likely, rng.beta(2, 2, tail.shape), tail).clip(0, 1).astype(np.float16)
    started = time.perf_counter()
    ours = F2.decode_expected(probs)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    peer = np.array([plain(row.astype(np.float64)) for row in probs[: args.peer_images]])
    peer_seconds = time.perf_counter() - started
    same = int((ours[: len(peer)] == peer).all(axis=1).sum())
    rate, peer_rate = args.images / seconds, len(peer) / peer_seconds
    print(f"{args.images:,} x {args.labels:,}, float16")
    print(
        f"{'ours':<28}{seconds:8.1f} s   {rate:10.1f} images/s   {ours.sum(1).mean():.2f} labels per picture"
    )
    print(f"{f'plain, {len(peer)} pictures':<28}{peer_seconds:8.1f} s   {peer_rate:10.1f} images/s")
    print(f"ratio {rate / peer_rate:.0f}; the same set for {same} of {len(peer)} pictures")


if __name__ == "__main__":
    main()
