"""Weights and shifts that maximise the score on the disputed cells: the methods, each callable alone.

    uniform      equal weights
    greedy       forward selection with replacement (Caruana et al. 2004)
    nelder-mead  scipy's, from uniform and from seeded random weights
    powell       scipy's, likewise
    line         exact line searches (`exact_line_search`), from uniform; where cells are few, from more starts
    smooth       L-BFGS on a sigmoid in place of the step, then `line`, from there or from the start

Every one of them ends with the shift that is exactly best for its weights. A new method is a search and one line in
`METHODS`.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.exact_line_search import best_on_line, line_search
from imet_ray.prediction.metrics import metric_named

UNIFORM = "uniform"  # the method that all others must beat
EVALUATIONS = 40  # of a simplex or of Powell's lines: a start and unknown
STARTS = 2  # of Nelder-Mead and Powell; the first is uniform
LINE_STARTS = 3  # below Nelder-Mead's end in 0 of 80 runs on small problems, with 1 start in 6
FEW_CELLS = 200_000  # beyond, the objective is smooth: one start is enough
GREEDY_STEPS = 30
SHIFT_ROUNDS = 4  # through the groups
SOFTNESS = (1.0, 0.3)  # of the sigmoid, in medians of the cells' margins: coarse, then fine
ZERO = 1e-4  # weights below are none


@dataclass(frozen=True)
class Fitted:
    """What a search found."""

    weights: np.ndarray  # (M,) float64, >= 0, sum 1
    shifts: np.ndarray  # (1,) or (G,) float64
    score: float  # on the cells it was fitted on
    evaluations: int
    curve: tuple[float, ...] = ()  # greedy: the score after each choice


class Objective:
    """The score of x = raw weights, shifts: (M + G,), as scipy minimises it; counts how often it was asked."""

    def __init__(self, cells: DisputedCells, n_shifts: int) -> None:
        self.cells, self.n_shifts = cells, n_shifts
        self.evaluations = 0

    def __call__(self, x: np.ndarray) -> float:
        weights, shifts = self.point(x)
        self.evaluations += 1
        return -self.cells.score(weights, shifts)

    def point(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Any numbers as weights on the simplex and shifts in reach."""
        m = self.cells.n_members
        return on_simplex(x[:m]), self.cells.in_reach(x[m:])


Found = tuple[np.ndarray, tuple[float, ...]]  # where a search ends, and greedy's curve
# of where to start: raw weights and shifts
Search = Callable[[Objective, np.ndarray, np.random.Generator], Found]


@dataclass(frozen=True)
class Method:
    """A search, and how often it is worth starting."""

    search: Search
    starts: int = 1
    starts_on_few: int = 1  # where cells are below FEW_CELLS
    under_decoder: bool = False  # a sample decoder has weights of its own fitted, from this method's


def fit(
    cells: DisputedCells,
    method: str,
    *,
    seed: int,
    by_group: bool = False,
    min_weight: float = 0.0,
    max_members: int | None = None,
    begin: Sequence[np.ndarray] = (),
) -> Fitted:
    """Search the simplex with one method. The same cells and seed give the same result.

    Args:
        method: a key of `METHODS`.
        by_group: one shift per label group instead of one for all labels.
        min_weight: a member that would get less is left out.
        max_members: of weight above 0.
        begin: weights (M,) where the search starts once more.
    """
    known = METHODS[method]
    starts = known.starts_on_few if len(cells.image) < FEW_CELLS else known.starts
    each = [
        _fit_within(cells, method, (seed, start), by_group, min_weight, max_members)
        for start in range(starts)
    ]
    if method != UNIFORM:
        each += [
            _fit_within(cells, method, (seed, 0), by_group, min_weight, max_members, weights)
            for weights in begin
        ]
    best = max(each, key=lambda one: one.score)  # the first of equals
    return replace(best, evaluations=sum(one.evaluations for one in each))


def uniform(n_members: int) -> np.ndarray:
    """Equal weights: (M,) float64."""
    return np.full(n_members, 1 / n_members)


def on_simplex(raw: np.ndarray) -> np.ndarray:
    """Any numbers as weights >= 0 with sum 1."""
    positive = np.abs(raw)
    total = positive.sum()
    return positive / total if total > 0 else uniform(len(raw))


def weights_of(members: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """The weights of some members alone, with sum 1, in the same proportion; equal ones, if all are 0: (M,)."""
    found = np.zeros(len(weights))
    found[members] = weights[members] if weights[members].any() else 1
    return np.asarray(found / found.sum())


def _fit_within(
    cells: DisputedCells,
    method: str,
    seed: tuple[int, int],
    by_group: bool,
    min_weight: float,
    max_members: int | None,
    begin: np.ndarray | None = None,
) -> Fitted:
    """Fit, and again without the member of least weight, until the limits hold."""
    kept = list(range(cells.n_members))
    while True:
        part = cells.members(kept)
        start = None if begin is None else weights_of(kept, begin)[kept]
        found = _fit(part, method, seed, by_group, start)
        used = np.flatnonzero(found.weights > 0).tolist()
        lowest = found.weights[used].min()
        if len(used) == 1 or (lowest >= min_weight and len(used) <= (max_members or len(used))):
            weights = np.zeros(cells.n_members)
            weights[kept] = found.weights
            return replace(found, weights=weights)
        least = [i for i in used if found.weights[i] <= lowest + ZERO]
        without = {i: weights_of([j for j in used if j != i], found.weights) for i in least}
        gone = max(least, key=lambda i: part.score(without[i], found.shifts))
        kept = [kept[i] for i in used if i != gone]


def _fit(
    cells: DisputedCells, method: str, seed: tuple[int, int], by_group: bool, begin: np.ndarray | None
) -> Fitted:
    """From given or uniform weights; a later start from drawn ones."""
    m = cells.n_members
    objective = Objective(cells, cells.n_groups if by_group else 1)
    search = METHODS[method if m > 1 else UNIFORM].search
    rng = np.random.default_rng(seed)
    start = rng.dirichlet(np.full(m, 2.0)) if seed[1] else uniform(m) if begin is None else begin
    shifts = settled_shifts(cells, start, np.zeros(objective.n_shifts))
    x, curve = search(objective, np.concatenate([start, shifts]), rng)
    weights, shifts = objective.point(x)
    weights = np.where(weights < ZERO, 0.0, weights)
    weights /= weights.sum()
    shifts = settled_shifts(cells, weights, shifts)
    return Fitted(weights, shifts, cells.score(weights, shifts), objective.evaluations, curve)


def settled_shifts(cells: DisputedCells, weights: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The shift that is exactly best for the weights; of several, each in turn until none gains."""
    best = cells.score(weights, shifts)
    for _ in range(SHIFT_ROUNDS):
        before = best
        for axis in np.eye(len(shifts)):
            trial = shifts + best_on_line(cells, weights, shifts, np.zeros(len(weights)), axis) * axis
            score = cells.score(weights, trial)
            if score > best:
                shifts, best = trial, score
        if best <= before or len(shifts) == 1:
            break
    return shifts


def _uniform(objective: Objective, start: np.ndarray, rng: np.random.Generator) -> Found:
    return start, ()


def _greedy(objective: Objective, start: np.ndarray, rng: np.random.Generator) -> Found:
    """Caruana et al. 2004: take again and again the member that helps most; each choice is one share of weight."""
    m = objective.cells.n_members
    shares, best = np.zeros(m), (-1.0, np.zeros(m))
    curve = []
    for _ in range(GREEDY_STEPS):
        scores = [-objective(np.concatenate([shares + one, start[m:]])) for one in np.eye(m)]
        choice = int(np.argmax(scores))
        shares[choice] += 1
        curve.append(scores[choice])
        if scores[choice] > best[0]:
            best = scores[choice], shares.copy()
    return np.concatenate([best[1] / best[1].sum(), start[m:]]), tuple(curve)


def _nelder_mead(objective: Objective, start: np.ndarray, rng: np.random.Generator) -> Found:
    """The objective is a step function, so the first simplex is wide: each corner gives one member half."""
    m, reach = objective.cells.n_members, objective.cells.reach
    simplex = np.tile(start, (len(start) + 1, 1))
    simplex[1 : m + 1, :m] = 0.5 * start[:m] + 0.5 * np.eye(m)
    simplex[m + 1 :, m:] += 0.3 * reach * np.eye(len(start) - m)
    options = {"initial_simplex": simplex, "maxfev": EVALUATIONS * len(start), "xatol": 1e-4, "fatol": 1e-7}
    return np.asarray(minimize(objective, start, method="Nelder-Mead", options=options).x), ()


def _powell(objective: Objective, start: np.ndarray, rng: np.random.Generator) -> Found:
    m, reach = objective.cells.n_members, objective.cells.reach
    bounds = [(0.0, 1.0)] * m + [(-reach - 1e-9, reach + 1e-9)] * (len(start) - m)
    options = {"maxfev": EVALUATIONS * len(start), "xtol": 1e-3, "ftol": 1e-7}
    return np.asarray(minimize(objective, start, method="Powell", bounds=bounds, options=options).x), ()


def _line(objective: Objective, start: np.ndarray, rng: np.random.Generator) -> Found:
    """And from the best single member, if the search ends below it."""
    m = objective.cells.n_members
    options = {"cells": objective.cells, "rng": rng}
    found = minimize(objective, start, method=line_search, options=options)
    shifts = start[m:], np.zeros(len(start) - m)
    corner = min((np.concatenate(pair) for pair in itertools.product(np.eye(m), shifts)), key=objective)
    if objective(corner) < found.fun:
        found = minimize(objective, corner, method=line_search, options=options)
    return np.asarray(found.x), ()


def _smooth(objective: Objective, start: np.ndarray, rng: np.random.Generator) -> Found:
    """A cell counts sigmoid(margin / softness) instead of 0 or 1, so that the score has a gradient."""
    cells = objective.cells
    m = cells.n_members
    typical = float(np.median(np.abs(cells.weighted(uniform(m))))) if len(cells.image) else 1.0
    x = np.append(np.log(start[:m]).clip(-8), start[m:])  # logits of the weights, shifts
    for softness in SOFTNESS:
        x = minimize(
            _soft_loss,
            x,
            args=(cells, softness * typical + 1e-12),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-8, 8)] * m + [(-cells.reach, cells.reach)] * objective.n_shifts,
            options={"maxiter": 40},
        ).x
    found = np.concatenate([softmax(x[:m]), x[m:]])
    return _line(objective, min(found, start, key=objective), rng)


def _soft_loss(x: np.ndarray, cells: DisputedCells, softness: float) -> tuple[float, np.ndarray]:
    """The negative score with soft cells, and its gradient: float, (M + G,)."""
    m, n = cells.n_members, len(cells.true)
    weights, shifts = softmax(x[:m]), x[m:]
    soft = expit((cells.weighted(weights) - cells.per_cell(shifts)) / softness)
    chosen = cells.chosen + np.bincount(cells.image, soft, minlength=n)
    hits = cells.hits + np.bincount(cells.image, soft * cells.label, minlength=n)
    metric = metric_named(cells.metric)
    of_hit, of_choice = metric.slopes(hits, cells.true, chosen)
    pull = (of_choice[cells.image] + of_hit[cells.image] * cells.label) * soft * (1 - soft) / softness
    of_weights = cells.margins @ pull.astype(np.float32)
    of_logits = weights * (of_weights - weights @ of_weights)
    of_shifts = (
        -pull.sum()[None]
        if len(shifts) == 1
        else -np.bincount(cells.group, pull, minlength=len(shifts)).astype(np.float64)
    )
    score = float(metric.of_counts(hits, cells.true, chosen).mean())
    return -score, -np.concatenate([of_logits, of_shifts]).astype(np.float64) / n


METHODS: dict[str, Method] = {
    UNIFORM: Method(_uniform),
    "greedy": Method(_greedy),
    "nelder-mead": Method(_nelder_mead, STARTS, STARTS, under_decoder=True),
    "powell": Method(_powell, STARTS, STARTS),
    "line": Method(_line, starts_on_few=LINE_STARTS),
    "smooth": Method(_smooth, starts_on_few=LINE_STARTS),
}
