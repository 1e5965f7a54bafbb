"""The order in which members are best predicted when time may run out, and how to decode what is there by then.

Greedy: next comes the member that adds most F2 a second to those before it. For two members of which time runs out at
any moment alike this is the best order (Smith 1956: most worth a second first). The first one's gain is not its F2, but
what it adds to what costs nothing, the most frequent labels for all pictures: by F2 itself a second the quickest would
be first however poor. Weights are the blend's, renormalised over the prefix; thresholds and temperature are fitted
anew for each prefix, on what the blend was fitted on. The scores are own, not nested.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import EXPECTED, ExpectedF2, Problem, Solution, refitted
from imet_ray.blending.methods import settled_shifts
from imet_ray.blending.scoring import decoder_of, score_pictures
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.metrics import METRICS

MARGINS = 8_000_000  # that the order is found on: 7 members of iMet's size; with more, every second picture or fewer
WHOLE_SAMPLES = 16  # prefixes whose temperature sees the whole sample, 4 s each; with more, a part of it
SAME = 16  # labels at most that are given to all pictures


@dataclass(frozen=True)
class Step:
    """One prefix of the order."""

    members: tuple[str, ...]
    decoder: Decoder
    f2: float  # own: on all pictures under thresholds, on the sample under expected F2


def prefixes(
    used: Solution,
    decoder: str,
    problem: Problem,
    *,
    names: Sequence[str],
    seconds: Sequence[float | None],
    values: Sequence[np.ndarray],
    labels: np.ndarray,
    of_label: np.ndarray | None,
) -> tuple[Step, ...]:
    """One step for each member of weight above 0; the last one decodes just as the blend does.

    Args:
        used: the chosen weights and what was fitted with them.
        decoder: its name.
        names: (M,) of the members.
        seconds: (M,) that a picture takes; where one is unknown all count alike.
        values: M arrays (N, C).
        labels: (N, C) uint8.
        of_label: (C,) int, the group of each label.
    """
    order = _order(used.weights, problem.cells, seconds, labels)
    every = -(-len(order) // WHOLE_SAMPLES)

    def step(k: int) -> Step:
        weights = _renormalised(used.weights, order[:k])
        fitted = used if k == len(order) else refitted(weights, decoder, problem, every=every)
        return Step(
            tuple(names[member] for member in order[:k]),
            decoder_of(fitted, decoder, problem.cells.thresholds, of_label, problem.scale),
            _score(fitted, decoder, problem, values, labels),
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(step, range(1, len(order) + 1)))


def _order(
    weights: np.ndarray, cells: DisputedCells, seconds: Sequence[float | None], labels: np.ndarray
) -> list[int]:
    """Under the best threshold, whatever the decoder: expected F2 would decode the sample for each candidate."""
    rest = np.flatnonzero(weights).tolist()
    costs = _costs(seconds, rest)
    rows = np.arange(0, len(labels), -(-max(1, cells.margins.size) // MARGINS))
    if len(rows) < len(labels):
        cells = cells.pictures(rows)
    order: list[int] = []
    before = _for_nothing(labels[rows])

    def settled(member: int) -> float:
        candidate = _renormalised(weights, [*order, member])
        return cells.score(candidate, settled_shifts(cells, candidate, np.zeros(1)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while len(rest) > 1:
            scores = list(pool.map(settled, rest))
            worth = [_a_second(s - before, costs[member]) for s, member in zip(scores, rest, strict=True)]
            best = int(np.argmax(worth))
            before = scores[best]
            order.append(rest.pop(best))
    return order + rest


def _costs(seconds: Sequence[float | None], members: Sequence[int]) -> dict[int, float]:
    known = {member: second for member in members if (second := seconds[member])}
    return known if len(known) == len(members) else dict.fromkeys(members, 1.0)


def _a_second(gain: float, cost: float) -> float:
    """A loss is not the smaller for taking long."""
    return gain / cost if gain > 0 else gain


def _for_nothing(labels: np.ndarray) -> float:
    """F2 of the most frequent labels for all pictures, as many as are best."""
    most = np.argsort(-labels.sum(axis=0, dtype=np.int64), kind="stable")[:SAME]
    hits = np.cumsum(labels[:, most], axis=1, dtype=np.int64)
    true = np.count_nonzero(labels, axis=1)[:, None]
    return float(METRICS["f2"].of_counts(hits, true, np.arange(1, len(most) + 1)).mean(axis=0).max())


def _renormalised(weights: np.ndarray, members: Sequence[int]) -> np.ndarray:
    found = np.zeros_like(weights)
    found[list(members)] = weights[list(members)]
    return np.asarray(found / found.sum())


def _score(
    fitted: Solution, decoder: str, problem: Problem, values: Sequence[np.ndarray], labels: np.ndarray
) -> float:
    if decoder == EXPECTED:  # on the sample: all pictures would be decoded once a prefix
        assert problem.sample is not None
        judge = ExpectedF2(problem.sample.probs, problem.sample.labels, problem.scale)
        return float(judge.scores(fitted.weights, fitted.temperature).mean())
    rows = np.arange(len(labels))
    return float(score_pictures(fitted, decoder, rows, problem, values, labels).mean())
