"""The order in which members are best predicted when time may run out, and how to decode what is there by then.

Greedy: next comes the member that adds most F2 a second to those before it, so the first one is the quickest that is
any good: whoever is stopped early has something. Weights are the blend's, renormalised over the prefix; thresholds
and temperature are fitted anew for each prefix, on what the blend was fitted on. The scores are own, not nested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.fit import settled_shifts
from imet_ray.blending.scoring import decoder_of
from imet_ray.blending.solve import EXPECTED, GROUPS, ExpectedF2, Problem, Solution
from imet_ray.decode import Decoder


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
    names: Sequence[str],
    seconds: Sequence[float | None],
    of_label: np.ndarray | None,
) -> tuple[Step, ...]:
    """One step for each member of weight above 0; the last one decodes just as the blend does.

    Args:
        used: the chosen weights and what was fitted with them.
        decoder: its name.
        names: (M,) of the members.
        seconds: (M,) that a picture takes; where one is unknown all count alike.
        of_label: (C,) int, the group of each label.
    """
    order = _order(used.weights, problem, seconds)
    found = []
    for k in range(1, len(order) + 1):
        weights = _renormalised(used.weights, order[:k])
        fitted = used if k == len(order) else _refitted(weights, used, decoder, problem)
        found.append(
            Step(
                tuple(names[member] for member in order[:k]),
                decoder_of(fitted, decoder, problem.cells.thresholds, of_label, problem.scale),
                _score(fitted, decoder, problem),
            )
        )
    return tuple(found)


def _order(weights: np.ndarray, problem: Problem, seconds: Sequence[float | None]) -> list[int]:
    rest = np.flatnonzero(weights).tolist()
    known = [second for second in seconds if second]
    costs = [float(s or 1.0) for s in seconds] if len(known) == len(seconds) else [1.0] * len(seconds)
    order: list[int] = []
    before = 0.0
    while rest:
        scores = {
            member: problem.cells.score(_renormalised(weights, [*order, member]), np.zeros(1))
            for member in rest
        }
        gains = {member: score - before for member, score in scores.items()}
        best = max(rest, key=lambda member: gains[member] / (costs[member] if gains[member] > 0 else 1.0))
        order.append(best)
        rest.remove(best)
        before = scores[best]
    return order


def _renormalised(weights: np.ndarray, members: Sequence[int]) -> np.ndarray:
    found = np.zeros_like(weights)
    found[list(members)] = weights[list(members)]
    return np.asarray(found / found.sum())


def _refitted(weights: np.ndarray, used: Solution, decoder: str, problem: Problem) -> Solution:
    if decoder == EXPECTED:
        judge, members = _judge(weights, problem)
        return Solution(weights, used.shifts, judge.best_temperature(weights[members]), 0)
    start = np.zeros(problem.cells.n_groups if decoder == GROUPS else 1)
    return Solution(weights, settled_shifts(problem.cells, weights, start), 1.0, 0)


def _score(fitted: Solution, decoder: str, problem: Problem) -> float:
    if decoder == EXPECTED:
        judge, members = _judge(fitted.weights, problem)
        return float(judge.scores(fitted.weights[members], fitted.temperature).mean())
    return problem.cells.score(fitted.weights, fitted.shifts)


def _judge(weights: np.ndarray, problem: Problem) -> tuple[ExpectedF2, np.ndarray]:
    """Expected F2 of the members that have weight, on the sample."""
    assert problem.sample is not None
    members = np.flatnonzero(weights)
    return ExpectedF2(problem.sample.probs[members], problem.sample.labels, problem.scale), members
