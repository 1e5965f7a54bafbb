"""The order in which members are best predicted when time may run out, and how to decode what is there by then.

Greedy: next comes the member that adds most score per second to those before it. For two members of which time runs
out at any moment alike this is the best order (Smith 1956: most worth per second first). The first one's gain is not
its score, but what it adds to what costs nothing, the most frequent labels for all pictures: by score per second alone
the quickest would be first however poor. Weights are the blend's, renormalised over the prefix; the decoder is fitted
anew for each prefix, on what the blend was fitted on. The scores are own, not nested.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.cross_fit import CrossFit, Judged, score_pictures
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import SampleJudge, Solution, refitted
from imet_ray.blending.methods import settled_shifts
from imet_ray.prediction.decode import AnyDecoder, SampleDecoder
from imet_ray.prediction.metrics import metric_named

MARGINS = 8_000_000  # that the order is found on: 7 members of iMet's size; with more, every second picture or fewer
WHOLE_SAMPLES = 16  # prefixes whose sample decoder sees the whole sample, 4 s each; with more, a part of it
SAME = 16  # labels at most that are given to all pictures


@dataclass(frozen=True)
class Step:
    """One prefix of the order."""

    members: tuple[str, ...]
    decoder: AnyDecoder
    score: float  # own: on all pictures under thresholds, on the sample under sample decoders


def prefixes(chosen: Judged, found: CrossFit) -> tuple[Step, ...]:
    """One step for each member of weight above 0; the last one decodes just as the blend does."""
    problem, used = found.problem, chosen.whole
    seconds = [member.seconds for member in problem.members]
    order = _order(used.weights, found.fits.cells, seconds, problem.labels)
    every = -(-len(order) // WHOLE_SAMPLES)

    def step(k: int) -> Step:
        fitted = used
        if k < len(order):
            weights = _renormalised(used.weights, order[:k])
            fitted = refitted(weights, chosen.decoder, found.fits, every=every)
        return Step(tuple(problem.names[i] for i in order[:k]), fitted.decoder, _score(fitted, found))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(step, range(1, len(order) + 1)))


def _order(
    weights: np.ndarray, cells: DisputedCells, seconds: Sequence[float | None], labels: np.ndarray
) -> list[int]:
    """Under the best threshold, whatever the decoder: others would decode the sample for each candidate."""
    rest = np.flatnonzero(weights).tolist()
    costs = _costs(seconds, rest)
    rows = np.arange(0, len(labels), -(-max(1, cells.margins.size) // MARGINS))
    if len(rows) < len(labels):
        cells = cells.pictures(rows)
    order: list[int] = []
    before = _for_nothing(labels[rows], cells.metric)

    def settled(member: int) -> float:
        candidate = _renormalised(weights, [*order, member])
        return cells.score(candidate, settled_shifts(cells, candidate, np.zeros(1)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while len(rest) > 1:
            scores = list(pool.map(settled, rest))
            worth = [_per_second(s - before, costs[member]) for s, member in zip(scores, rest, strict=True)]
            best = int(np.argmax(worth))
            before = scores[best]
            order.append(rest.pop(best))
    return order + rest


def _costs(seconds: Sequence[float | None], members: Sequence[int]) -> dict[int, float]:
    known = {member: second for member in members if (second := seconds[member])}
    return known if len(known) == len(members) else dict.fromkeys(members, 1.0)


def _per_second(gain: float, cost: float) -> float:
    """A loss is not the smaller for taking long."""
    return gain / cost if gain > 0 else gain


def _for_nothing(labels: np.ndarray, metric: str) -> float:
    """The score of the most frequent labels for all pictures, as many as are best."""
    most = np.argsort(-labels.sum(axis=0, dtype=np.int64), kind="stable")[:SAME]
    hits = np.cumsum(labels[:, most], axis=1, dtype=np.int64)
    true = np.count_nonzero(labels, axis=1)[:, None]
    scores = metric_named(metric).of_counts(hits, true, np.arange(1, len(most) + 1))
    return float(scores.mean(axis=0).max())


def _renormalised(weights: np.ndarray, members: Sequence[int]) -> np.ndarray:
    found = np.zeros_like(weights)
    found[list(members)] = weights[list(members)]
    return np.asarray(found / found.sum())


def _score(fitted: Solution, found: CrossFit) -> float:
    if isinstance(fitted.decoder, SampleDecoder):  # all pictures would be decoded once per prefix
        judge = SampleJudge.of(type(fitted.decoder), fitted.weights, found.fits)
        return float(judge.scores(fitted.weights[judge.members], fitted.decoder).mean())
    rows = np.arange(len(found.problem.labels))
    return float(score_pictures(fitted, rows, found.problem, found.fits).mean())
