"""What else the report says of a blend: each member's worth, how alike their errors are, the threshold curve."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imet_ray.averaging import Scale, as_probability
from imet_ray.blending.cells import DisputedCells
from imet_ray.blending.report import Worth
from imet_ray.blending.scoring import bootstrap, score_pictures
from imet_ray.blending.solve import Job, Problem, Sample, Solution

CURVE = 41  # points of the threshold curve
PAIRS = 200_000  # cells that correlations are taken from


def worth_of_members(
    chosen: tuple[str, str],
    nested_f2: np.ndarray,
    solved: dict[Job, Solution],
    problem: Problem,
    values: Sequence[np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
) -> tuple[Worth, ...]:
    """What the chosen blend loses, nested, where one member's weight goes to the others in proportion."""
    if len(names) == 1:
        return ()
    found, without = [], []
    for i in range(len(names)):
        nested = np.empty(len(labels))
        for fold in np.unique(problem.folds).tolist():
            solution = solved[Job(*chosen, fold)]
            weights = solution.weights.copy()
            weights[i] = 0
            if weights.sum() == 0:  # it had all of it
                weights = np.ones(len(names))
                weights[i] = 0
            rest = weights / weights.sum()
            rows = np.flatnonzero(problem.folds == fold)
            nested[rows] = score_pictures(
                replace(solution, weights=rest), chosen[1], rows, problem.cells, values, labels, problem.scale
            )
        without.append(nested_f2 - nested)
        found.append(float(nested.mean()))
    return tuple(
        Worth(name, score, gain)
        for name, score, gain in zip(names, found, bootstrap(np.stack(without), problem.seed), strict=True)
    )


def error_correlation(sample: Sample, names: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Of the members' errors p - y, over cells where some member sees a chance."""
    flat = sample.probs.reshape(len(names), -1)
    cells = np.flatnonzero((flat > flat.dtype.type(0.05)).any(axis=0))
    cells = cells[:: max(1, len(cells) // PAIRS)]
    errors = flat[:, cells].astype(np.float64) - sample.labels.reshape(-1)[cells]
    if len(cells) < 2 or not errors.std(axis=1).all():
        return tuple(tuple(float(i == j) for j in range(len(names))) for i in range(len(names)))
    return tuple(tuple(row) for row in np.atleast_2d(np.corrcoef(errors)).tolist())


def threshold_curve(cells: DisputedCells, used: Solution, scale: Scale) -> tuple[tuple[float, float], ...]:
    """F2 of the chosen weights against the threshold of the blended probability."""
    base = float(used.weights @ cells.thresholds)
    shifts = np.linspace(-cells.reach, cells.reach, CURVE)
    limits = as_probability(base + shifts, scale)
    return tuple(
        (float(limit), cells.score(used.weights, np.array([shift])))
        for limit, shift in zip(limits, shifts, strict=True)
    )
