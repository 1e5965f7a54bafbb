"""Weights that maximise F2 on the disputed cells: scipy's Nelder-Mead, from uniform."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from imet_ray.blending.cells import DisputedCells

EVALUATIONS = 120  # a member


@dataclass(frozen=True)
class FitResult:
    """What the search found."""

    weights: np.ndarray  # (M,) float64, >= 0, sum 1
    score: float
    evaluations: int


def uniform(n_members: int) -> np.ndarray:
    """Equal weights: (M,) float64."""
    return np.full(n_members, 1 / n_members)


def fit_weights(cells: DisputedCells) -> FitResult:
    """Search the simplex from uniform weights; uniform itself, or one member alone, where that is no worse.

    The objective is a step function, so the first simplex is wide: each corner gives one member half the weight
    more. Nothing is drawn at random: the same cells give the same weights.
    """
    n_members = len(cells.margins)
    start = uniform(n_members)
    at_start = cells.score(start)
    if n_members == 1:
        return FitResult(start, at_start, 1)

    def loss(raw: np.ndarray) -> float:
        return -cells.score(on_simplex(raw))

    corners = 0.5 * np.eye(n_members) + 0.5 * start
    found = minimize(
        loss,
        start,
        method="Nelder-Mead",
        options={
            "initial_simplex": np.vstack([start, corners]),
            "maxfev": EVALUATIONS * n_members,
            "xatol": 1e-4,
            "fatol": 1e-7,
        },
    )
    ends = [start, *np.eye(n_members), on_simplex(found.x)]
    scores = [at_start, *(cells.score(end) for end in ends[1:])]
    best = int(np.argmax(scores))  # the first of equals: uniform, then one member
    return FitResult(ends[best], scores[best], int(found.nfev) + len(ends))


def on_simplex(raw: np.ndarray) -> np.ndarray:
    """Any numbers as weights >= 0 with sum 1."""
    positive = np.abs(raw)
    total = positive.sum()
    return positive / total if total > 0 else uniform(len(raw))
