"""F2 of each picture under a solution, and how sure a difference between two of them is.

Pictures left without a label get their most probable one, as in a submission. Everything goes in blocks of rows, so
members may be memory-mapped; what to do with the scores is `imet_ray.blending.evaluate`.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.fit_jobs import EXPECTED, Job, Problem, Solution
from imet_ray.blending.single_member import counts_alone
from imet_ray.prediction.decode import Decoder, at_least_one, with_temperature
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import Scale, as_probability, averaged

ROWS = 2048  # pictures a block
RESAMPLES = 1000  # of the bootstrap
PARTS = 8  # that threads share, each with a generator of its own: any number of threads gives the same


@dataclass(frozen=True)
class Gain:
    """How far one is above another: mean and bootstrap 95 % interval over pictures."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def score_pictures(
    solution: Solution,
    decoder: str,
    rows: np.ndarray,
    problem: Problem,
    values: Sequence[np.ndarray],
    labels: np.ndarray,
) -> np.ndarray:
    """F2 of each picture: (n,) float64.

    Args:
        rows: (n,) rising indices of pictures.
        problem: of all pictures.
        values: M arrays (N, C).
        labels: (N, C).
    """
    if decoder == EXPECTED:
        return _by_expected_f2(solution, rows, values, labels, problem.scale)
    hits, chosen = (counts[rows] for counts in _counts(solution, problem))
    none = np.flatnonzero(chosen == 0)
    for start in range(0, len(none), ROWS):
        part = none[start : start + ROWS]
        top = _blend(solution, values, rows[part], problem.scale).argmax(axis=1)
        hits[part] = labels[rows[part], top] > 0
    return METRICS["f2"].of_counts(hits, problem.cells.true[rows], np.maximum(chosen, 1))


def _counts(solution: Solution, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Labels predicted and true, and labels predicted: of a member alone its threshold may lie out of the window."""
    used = np.flatnonzero(solution.weights).tolist()
    if solution.weights[used[0]] == 1 and problem.alone:
        first = float(problem.cells.thresholds[used[0]])
        return counts_alone(problem.alone[used[0]], solution.shifts, first, problem.scale)
    return problem.cells.counts(solution.weights, solution.shifts)


def _by_expected_f2(
    solution: Solution, rows: np.ndarray, values: Sequence[np.ndarray], labels: np.ndarray, scale: Scale
) -> np.ndarray:
    def score(start: int) -> np.ndarray:
        part = rows[start : start + ROWS]
        mixed = _blend(solution, values, part, scale)
        mixed = with_temperature(mixed, solution.temperature)
        return METRICS["f2"].per_picture(
            at_least_one(mixed, METRICS["f2"].decode_expected(mixed)), labels[part]
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(score, range(0, len(rows), ROWS))))


def _blend(solution: Solution, values: Sequence[np.ndarray], rows: np.ndarray, scale: Scale) -> np.ndarray:
    """Blended probabilities of some pictures; members of weight 0 are not read."""
    used = np.flatnonzero(solution.weights).tolist()
    return averaged([values[member][rows] for member in used], solution.weights[used], scale)


def own_and_nested(
    solved: Mapping[Job, Solution],
    method: str,
    decoder: str,
    problem: Problem,
    values: Sequence[np.ndarray],
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """F2 of each picture, fitted on all pictures and fitted without the picture's fold: (N,) float64 each."""
    everything = np.arange(len(labels))
    own = score_pictures(solved[Job(method, decoder)], decoder, everything, problem, values, labels)
    nested = np.empty(len(labels))
    for fold in np.unique(problem.folds).tolist():
        rows = np.flatnonzero(problem.folds == fold)
        nested[rows] = score_pictures(
            solved[Job(method, decoder, fold)], decoder, rows, problem, values, labels
        )
    return own, nested


def decoder_of(
    solution: Solution, name: str, thresholds: np.ndarray, groups: np.ndarray | None, scale: Scale
) -> Decoder:
    """How the ensemble decides: sum_m w_m (p_m - t_m) > s is sum_m w_m p_m > sum_m w_m t_m + s.

    Args:
        thresholds: (M,) t_m, on the scale.
        groups: (C,) int of the labels.
    """
    if name == EXPECTED:
        return Decoder(name="expected-f2", temperature=solution.temperature)
    limits = as_probability(float(solution.weights @ thresholds) + solution.shifts, scale)
    if len(limits) == 1:
        return Decoder(name="threshold", threshold=float(limits[0]))
    assert groups is not None
    return Decoder(name="group-thresholds", label_thresholds=tuple(limits[groups].tolist()))


def bootstrap(differences: np.ndarray, seed: int, *, together: bool = False) -> list[Gain]:
    """Means of (K, N) differences and their 95 % intervals, over the same resampled pictures for all K.

    Args:
        together: intervals that hold for all K at once, so that the best of them may be picked by them (the maximum
            of the studentised deviations, Romano & Wolf 2005).
    """
    k, n = differences.shape

    def resampled(rng: np.random.Generator) -> np.ndarray:
        means = np.empty((RESAMPLES // PARTS, k))
        for i in range(len(means)):
            times = np.bincount(rng.integers(0, n, n, dtype=np.int32), minlength=n).astype(np.float64)
            means[i] = differences @ times / n
        return means

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        means = np.concatenate(list(pool.map(resampled, np.random.default_rng(seed).spawn(PARTS))))
    centre = differences.mean(axis=1)
    if together:
        spread = np.maximum(means.std(axis=0), 1e-12)
        reach = np.quantile((np.abs(means - centre) / spread).max(axis=1), 0.95) * spread
        low, high = centre - reach, centre + reach
    else:
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return [Gain(*map(float, row)) for row in zip(centre, low, high, strict=True)]
