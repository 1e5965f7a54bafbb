"""F2 of each picture for given weights: with member thresholds on the disputed cells, or decoded by expected F2.

Pictures left without a label get their most probable one, as in a submission. Everything goes in blocks of rows, so
members may be memory-mapped; what to do with the scores is `imet_ray.blending.evaluate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.cells import DisputedCells
from imet_ray.blending.fit import fit_weights, uniform
from imet_ray.decode import at_least_one, decode_expected_f2
from imet_ray.metrics import best_threshold, f2_of_counts, f2_per_image

ROWS = 8192  # pictures a block
RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Candidates:
    """F2 of each picture, (N,) float64 each, of what could be submitted."""

    fitted: np.ndarray
    uniform: np.ndarray
    singles: tuple[np.ndarray, ...]  # one a member


@dataclass(frozen=True)
class Tuned:
    """What was fitted on some pictures."""

    thresholds: tuple[float, ...]  # each member's own best
    weights: np.ndarray  # (M,) float64
    cells: DisputedCells  # of these pictures, at these thresholds


def tune(probs: Sequence[np.ndarray], labels: np.ndarray) -> Tuned:
    """Each member's best threshold, and the weights that are best with them."""
    thresholds = tuple(best_threshold(p, labels)[0] for p in probs)
    cells = DisputedCells.build(probs, thresholds, labels)
    return Tuned(thresholds, fit_weights(cells).weights, cells)


def by_threshold(
    probs: Sequence[np.ndarray], labels: np.ndarray, cells: DisputedCells, fitted: np.ndarray
) -> Candidates:
    """Scores where a cell is predicted if sum_m w_m (p_m - t_m) > 0.

    Args:
        probs: M arrays (n, C).
        labels: (n, C).
        cells: of the same pictures.
        fitted: (M,) weights.
    """

    def score(weights: np.ndarray) -> np.ndarray:
        hits, chosen = cells.counts(weights)
        none = np.flatnonzero(chosen == 0)
        for start in range(0, len(none), ROWS):
            rows = none[start : start + ROWS]
            top = blended_probs([p[rows] for p in probs], weights).argmax(axis=1)
            hits[rows] = labels[rows, top] > 0
        return f2_of_counts(hits, cells.true, np.maximum(chosen, 1))

    alone = np.eye(len(probs))
    return Candidates(score(fitted), score(uniform(len(probs))), tuple(score(one) for one in alone))


def by_expected_f2(probs: Sequence[np.ndarray], labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F2 of each picture, its averaged probabilities decoded by expected F2: (n,) float64."""
    scores = np.zeros(len(labels))
    for start in range(0, len(labels), ROWS):
        block = slice(start, start + ROWS)
        mixed = blended_probs([p[block] for p in probs], weights)
        scores[block] = f2_per_image(at_least_one(mixed, decode_expected_f2(mixed)), labels[block])
    return scores


def nested_by_threshold(
    probs: Sequence[np.ndarray], labels: np.ndarray, folds: np.ndarray
) -> tuple[Candidates, dict[int, np.ndarray]]:
    """Scores of each fold with the thresholds and weights of the other folds, and these weights by fold."""
    fitted, even = np.zeros(len(labels)), np.zeros(len(labels))
    singles = tuple(np.zeros(len(labels)) for _ in probs)
    weights: dict[int, np.ndarray] = {}
    for fold in np.unique(folds).tolist():
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        tuned = tune([p[outside] for p in probs], labels[outside])
        held_out = [p[inside] for p in probs]
        cells = DisputedCells.build(held_out, tuned.thresholds, labels[inside])
        found = by_threshold(held_out, labels[inside], cells, tuned.weights)
        weights[fold] = tuned.weights
        fitted[inside], even[inside] = found.fitted, found.uniform
        for single, part in zip(singles, found.singles, strict=True):
            single[inside] = part
    return Candidates(fitted, even, singles), weights


def nested_by_expected_f2(
    probs: Sequence[np.ndarray], labels: np.ndarray, folds: np.ndarray, weights: dict[int, np.ndarray]
) -> np.ndarray:
    """F2 of each picture with the weights fitted without its fold: (N,) float64."""
    scores = np.zeros(len(labels))
    for fold, fitted in weights.items():
        rows = np.flatnonzero(folds == fold)
        scores[rows] = by_expected_f2([p[rows] for p in probs], labels[rows], fitted)
    return scores


def blended_probs(probs: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The weighted mean of M arrays (n, C): float32."""
    total = np.zeros(probs[0].shape, dtype=np.float32)
    for p, weight in zip(probs, weights, strict=True):
        if weight > 0:
            total += np.float32(weight) * p.astype(np.float32)
    return total


def bootstrap(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of (N,) differences, and its 95 % interval over resampled pictures."""
    n = len(differences)
    means = np.array([differences[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)
