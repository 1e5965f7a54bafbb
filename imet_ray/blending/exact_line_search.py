"""Exact search along a line: the objective is a step function of the position, with one step per disputed cell.

Along weights w + x d and shifts s + x e a cell's margin is a + x b, so it changes sides once, at x = -a / b. Sorting
the crossings and summing what each does to its picture's score gives the objective everywhere on the line at the price
of a few evaluations. (Och 2003 searches the error rate of translations so.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from imet_ray.blending.disputed_cells import HIT, DisputedCells
from imet_ray.prediction.metrics import Metric, metric_named

ROUNDS = 6  # through all directions
RANDOM = 1  # random directions per round and member
ENOUGH = 1e-6  # a round that gains less is the last
FEW_CELLS = 100_000  # below, the best steps of a line are scored again, for rounding may misplace a crossing
JUDGED = 3  # of them
# Kicks look beyond the hill that the best point stands on. With more cells the objective is smoother and a line takes
# longer: there are KICK_CELLS / cells of them, within KICKS.
KICK_CELLS = 2_000_000
KICKS = 3, 10
KICK_ROUNDS = 2
KICK = 0.15  # share of the weight that is drawn anew: 10 of 0.15 beat 6 of 0.3 (20 seeded problems)
SHIFT_SHARE = 0.05  # how far a random direction moves the shift, to 1 of weight


def best_on_line(
    cells: DisputedCells,
    weights: np.ndarray,
    shifts: np.ndarray,
    towards: np.ndarray,
    shifting: np.ndarray,
    *,
    mixed: np.ndarray | None = None,
    slope: np.ndarray | None = None,
) -> float:
    """The best position x of weights + x towards, shifts + x shifting, for weights >= 0 and shifts in reach.

    Args:
        weights, towards: (M,) float64.
        shifts, shifting: (G,) or (1,) float64.
        mixed, slope: (D,) float32, `cells.weighted` of the weights and of `towards`, where known.

    Returns:
        The middle of the best step; 0 where no step is better than the start's.
    """
    low, high = _room(cells, weights, shifts, towards, shifting)
    if not low < high:
        return 0.0
    at = (cells.weighted(weights) if mixed is None else mixed) - cells.per_cell(shifts.astype(np.float32))
    if slope is None:
        slope = cells.weighted(towards) if towards.any() else np.zeros_like(at)
    slope = slope - cells.per_cell(shifting.astype(np.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -at / slope
    moving = np.flatnonzero((crossing > low) & (crossing < high))
    won = at + np.float32(low) * slope > 0  # at the line's beginning
    won[moving] = slope[moving] < 0
    hits, chosen = cells.counts_of(won)
    order = moving[np.argsort(crossing[moving])]
    positions = crossing[order].astype(np.float64)
    gains = step_gains(
        cells.image[order],
        np.where(slope[order] > 0, 1, -1) * (1 + HIT * cells.label[order].astype(np.int64)),
        hits,
        chosen,
        cells.true,
        metric_named(cells.metric),
    )
    edges = np.concatenate([[low], positions, [high]])
    heights = np.concatenate([[0.0], np.cumsum(gains)])  # of the step that begins at each edge but the last
    heights[np.diff(edges) <= 0] = -np.inf
    start = int(np.searchsorted(positions, 0.0))  # the step that 0 lies on
    best = int(np.argmax(heights))
    if len(cells.image) >= FEW_CELLS:  # steps are many, and one that rounding has misplaced is worth little
        return float((edges[best] + edges[best + 1]) / 2) if heights[best] > heights[start] + 1e-12 else 0.0
    top = np.argsort(-heights, kind="stable")[:JUDGED]
    middles = [0.0, *((edges[top] + edges[top + 1]) / 2).tolist()]
    scores = [cells.score(weights + x * towards, shifts + x * shifting) for x in middles]
    return float(middles[int(np.argmax(scores))])


def step_gains(
    image: np.ndarray,
    changes: np.ndarray,
    hits: np.ndarray,
    chosen: np.ndarray,
    true: np.ndarray,
    metric: Metric,
) -> np.ndarray:
    """What each of a sequence of changes does to the sum of the pictures' scores.

    Args:
        image: (K,) the picture that each changes, in the order in which they happen.
        changes: (K,) int64: +1 or -1 label, times 1 + HIT where the label is true.
        hits, chosen, true: (N,) int64, before the first.

    Returns:
        (K,) float64.
    """
    # sorting numbers that hold picture and place takes a fifth of a stable argsort
    keys = np.sort((image.astype(np.int64) << 32) | np.arange(len(image)))
    by_picture, of = keys & (2**32 - 1), keys >> 32
    summed = np.cumsum(changes[by_picture])
    first = np.flatnonzero(np.diff(of, prepend=-1))
    before_picture = np.concatenate([[0], summed])[first]
    lengths = np.diff(np.append(first, len(of)))
    after = summed - np.repeat(before_picture, lengths)  # may be negative: of chosen and hits
    hits_after = (after + HIT // 2) // HIT
    score = metric.of_counts(hits[of] + hits_after, true[of], chosen[of] + after - hits_after * HIT)
    before = np.empty_like(score)
    before[1:] = score[:-1]
    before[first] = metric.of_counts(hits[of[first]], true[of[first]], chosen[of[first]])
    gains = np.empty_like(score)
    gains[by_picture] = score - before
    return gains


def line_search(
    fun: Any,
    x0: np.ndarray,
    args: tuple[Any, ...] = (),
    *,
    cells: DisputedCells,
    rng: np.random.Generator,
    **unused: Any,
) -> OptimizeResult:
    """A method for `scipy.optimize.minimize(fun, x0, method=line_search, options=dict(cells=..., rng=...))`.

    Goes along the shifts, towards and away from each member, along random directions and along what the round has
    come so far (Powell 1964), each time to the best point of the line, until a round gains nothing; then again from
    a few points nearby. `fun` judges every step, so a step is never for the worse.

    Args:
        fun: of x = weights, shifts: (M + G,) float64 with weights on the simplex; the negative score.
        x0: where to start.
        unused: what else scipy passes to every method (`jac`, `bounds`, ...).
    """
    m = cells.n_members

    def loss(x: np.ndarray) -> float:
        return float(fun(x, *args))

    x, value, calls = _descend(loss, np.array(x0, dtype=np.float64), cells, rng, ROUNDS)
    kicks = int(np.clip(KICK_CELLS // max(1, len(cells.image)), *KICKS))
    for _ in range(kicks if m > 1 else 0):
        kicked = x.copy()
        kicked[:m] = (1 - KICK) * x[:m] + KICK * rng.dirichlet(np.ones(m))
        end, found, more = _descend(loss, kicked, cells, rng, KICK_ROUNDS)
        calls += more
        if found < value:
            x, value = end, found
    return OptimizeResult(
        x=x, fun=value, nfev=calls, success=True, status=0, message="no line gains any more"
    )


def _descend(
    loss: Callable[[np.ndarray], float],
    x: np.ndarray,
    cells: DisputedCells,
    rng: np.random.Generator,
    rounds: int,
) -> tuple[np.ndarray, float, int]:
    """From x line by line: where it ends, the loss there, and the number of evaluations."""
    m, calls, value = cells.n_members, 1, loss(x)
    mixed = cells.weighted(x[:m])
    for _ in range(rounds):
        begin, before = x, value
        for draw in [*_directions(len(x), m, rng, shifting=cells.reach > 0), None]:
            if isinstance(draw, int):  # towards a member, or away from it
                direction = np.concatenate([np.eye(m)[draw] - x[:m], np.zeros(len(x) - m)])
                slope = cells.margins[draw] - mixed
            else:
                direction, slope = (draw if draw is not None else x - begin), None
            step = best_on_line(cells, x[:m], x[m:], direction[:m], direction[m:], mixed=mixed, slope=slope)
            if step == 0.0:
                continue
            trial = x + step * direction
            trial[:m] = np.maximum(trial[:m], 0)
            trial[:m] /= trial[:m].sum()
            found = loss(trial)
            calls += 1
            if found < value:
                x, value, mixed = trial, found, cells.weighted(trial[:m])
        if before - value < ENOUGH:
            break
    return x, value, calls


def _directions(size: int, m: int, rng: np.random.Generator, *, shifting: bool) -> list[int | np.ndarray]:
    """Members to go towards, and directions that keep the sum of the weights, in random order."""
    found: list[int | np.ndarray] = list(np.eye(size)[m:]) if shifting else []  # the shifts
    if m > 1:
        found += range(m)
        for _ in range(RANDOM * m):
            some = rng.permutation(np.arange(m) < max(2, m // 2))
            weights = rng.normal(size=m) * some
            weights -= some * weights.sum() / some.sum()
            found.append(np.concatenate([weights, rng.normal(size=size - m) * SHIFT_SHARE * shifting]))
    return [found[i] for i in rng.permutation(len(found))]


def _room(
    cells: DisputedCells, weights: np.ndarray, shifts: np.ndarray, towards: np.ndarray, shifting: np.ndarray
) -> tuple[float, float]:
    """How far the line goes before a weight falls below 0 or a shift leaves the range."""
    low, high = -1e3, 1e3
    for position, speed, least, most in (
        *((w, d, 0.0, np.inf) for w, d in zip(weights, towards, strict=True)),
        *((s, d, -cells.reach, cells.reach) for s, d in zip(shifts, shifting, strict=True)),
    ):
        if speed:
            ends = sorted(((least - position) / speed, (most - position) / speed))
            low, high = max(low, ends[0]), min(high, ends[1])
    return low, high
