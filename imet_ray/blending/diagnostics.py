"""What else the report says of a blend: each member's worth, how alike their errors are, the threshold curve."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imet_ray.blending.cross_fit import CrossFit, Judged, bootstrap, score_pictures
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import Solution, refitted
from imet_ray.blending.result import Worth
from imet_ray.blending.threshold_range import Sample
from imet_ray.prediction.decode import SampleDecoder

CURVE = 41  # points of the threshold curve
WHOLE_SAMPLES = 4  # members whose sample decoders see the whole sample; with more, a part of it
PAIRS = 200_000  # cells that correlations are taken from


def worth_of_members(chosen: Judged, found: CrossFit) -> tuple[Worth, ...]:
    """What the chosen blend loses, nested, where one member's weight goes to the others in proportion.

    The decoder is fitted anew: with that of all members every member would seem to be needed.
    """
    problem, fits = found.problem, found.fits
    m = len(problem.members)
    if m == 1:
        return ()
    every = -(-m // WHOLE_SAMPLES) if isinstance(chosen.whole.decoder, SampleDecoder) else 1

    def scored(member: int | None, fold: int) -> np.ndarray:
        """The scores of the fold's pictures without a member, or with all, fitted alike."""
        rows = np.flatnonzero(problem.folds == fold)
        weights = chosen.by_fold[fold].weights
        if member is not None and weights[member] == 0:
            member = None
        if member is None and every == 1:
            return chosen.nested[rows]
        kept = weights if member is None else without_member(weights, member)
        fitted = refitted(kept, chosen.decoder, fits, without=fold, every=every)
        return score_pictures(fitted, rows, problem, fits)

    pairs = list(itertools.product((None, *range(m)), problem.fold_numbers))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda pair: scored(*pair), pairs))
    nested = np.empty((m + 1, len(problem.labels)))
    for (member, fold), scores in zip(pairs, parts, strict=True):
        nested[0 if member is None else member + 1, problem.folds == fold] = scores
    gains = bootstrap(nested[0] - nested[1:], problem.seed)
    return tuple(
        Worth(name, score, gain)
        for name, score, gain in zip(problem.names, nested[1:].mean(axis=1).tolist(), gains, strict=True)
    )


def without_member(weights: np.ndarray, member: int) -> np.ndarray:
    """The others' weights with sum 1; uniform ones, if this member had all."""
    rest = weights.copy()
    rest[member] = 0
    if rest.sum() == 0:
        rest[:] = 1
        rest[member] = 0
    return np.asarray(rest / rest.sum())


def error_correlation(sample: Sample, names: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Of the members' errors p - y, over cells where some member sees a chance."""
    flat = sample.probs.reshape(len(names), -1)
    cells = np.flatnonzero((flat > flat.dtype.type(0.05)).any(axis=0))
    cells = cells[:: max(1, len(cells) // PAIRS)]
    errors = flat[:, cells].astype(np.float64) - sample.labels.reshape(-1)[cells]
    if len(cells) < 2 or not errors.std(axis=1).all():
        return tuple(tuple(float(i == j) for j in range(len(names))) for i in range(len(names)))
    return tuple(tuple(row) for row in np.atleast_2d(np.corrcoef(errors)).tolist())


def threshold_curve(cells: DisputedCells, used: Solution) -> tuple[tuple[float, float], ...]:
    """The score of the chosen weights by the threshold of the blended probability; nothing where it cannot move."""
    if not cells.reach:
        return ()
    shifts = np.linspace(-cells.reach, cells.reach, CURVE)
    return tuple(
        (float(limit), cells.score(used.weights, np.array([shift])))
        for limit, shift in zip(cells.thresholds_of(used.weights, shifts), shifts, strict=True)
    )
