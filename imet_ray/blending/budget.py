"""The best ensemble that fits a limit of time and bytes: which members to take before weights are fitted.

A member costs what its checkpoints take for all test pictures. Sets of members are scored with uniform weights on the
exact objective, for good members blend to nearly uniform weights: all sets up to 15 members, beyond that forward
selection by gain for the seconds it costs.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.members import Member
from imet_ray.blending.methods import uniform
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.threshold_range import LEAST_THRESHOLD
from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import metric_named

EXACT = 15  # members: 32,767 sets
WHOLE = 10  # members: the curve goes beyond the budget, for that is only 1,023 sets


@dataclass(frozen=True)
class Budget:
    """What prediction may take."""

    images: int  # test pictures
    seconds: float | None = None
    size: int | None = None  # bytes of checkpoints
    members: int | None = None  # at most


@dataclass(frozen=True)
class Step:
    """One point of the curve: no set that is as fast is better."""

    seconds: float
    score: float
    members: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The set that fits, and what other budgets would buy."""

    names: tuple[str, ...]
    seconds: float
    size: int
    exact: bool
    limit_s: float | None
    curve: tuple[Step, ...]

    @property
    def remark(self) -> str:
        """What the report says of it."""
        how = "of all sets that fit" if self.exact else "by forward selection"
        return (
            f"members chosen for the budget, {how}: {', '.join(self.names)}; {self.seconds:,.0f} s and "
            f"{self.size / 1e9:.2f} GB; the choice saw the pictures that are scored, under one threshold"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(problem: BlendProblem, budget: Budget) -> Chosen:
    """The best set of members within the budget; each has its `seconds` and `size` where these are limited.

    Raises:
        ConfigError: if a member's cost is unknown, or not even one member fits.
    """
    problem.check()
    members = problem.members
    seconds = _costs(members, "seconds", budget.seconds is not None) * budget.images
    sizes = _costs(members, "size", budget.size is not None)
    cells = _cells(problem)

    def fits(kept: Sequence[int]) -> bool:
        kept = list(kept)
        return bool(
            (budget.members is None or len(kept) <= budget.members)
            and (budget.seconds is None or seconds[kept].sum() <= budget.seconds)
            and (budget.size is None or sizes[kept].sum() <= budget.size)
        )

    if not any(fits([i]) for i in range(len(members))):
        raise ConfigError(
            f"no member fits the budget: the fastest takes {seconds.min():,.0f} s for {budget.images:,} pictures, the "
            f"smallest {sizes.min() / 1e9:.2f} GB: raise --seconds or --bytes"
        )
    exact = len(members) <= EXACT
    scored = _all_sets(cells, fits) if exact else _forward(cells, seconds, fits)
    best = max(filter(fits, scored), key=lambda kept: (scored[kept], -seconds[list(kept)].sum()))
    curve: list[Step] = []
    for kept in sorted(scored, key=lambda kept: (float(seconds[list(kept)].sum()), -scored[kept])):
        if not curve or scored[kept] > curve[-1].score:
            names = tuple(members[i].name for i in kept)
            curve.append(Step(float(seconds[list(kept)].sum()), scored[kept], names))
    return Chosen(
        names=tuple(members[i].name for i in best),
        seconds=float(seconds[list(best)].sum()),
        size=int(sizes[list(best)].sum()),
        exact=exact,
        limit_s=budget.seconds,
        curve=tuple(curve),
    )


def _cells(problem: BlendProblem) -> DisputedCells:
    """Each member with its own best threshold."""
    sample, metric = problem.sample(), metric_named(problem.metric)
    thresholds = [0.0] * len(problem.members)
    if not problem.margins:
        thresholds = [
            max(LEAST_THRESHOLD, metric.best_threshold(probs, sample.labels)[0]) for probs in sample.probs
        ]
    return DisputedCells.build(problem.values, thresholds, problem.labels, metric=problem.metric)


def _costs(members: Sequence[Member], what: str, limited: bool) -> np.ndarray:
    found = []
    for member in members:
        cost = getattr(member, what)
        if cost is None and limited:
            raise ConfigError(
                f"member {member.name} does not say its {what}, so no budget can hold it: store `{what}` in its "
                "file, or leave it out with --members"
            )
        found.append(float(cost or 0))
    return np.array(found)


def _all_sets(cells: DisputedCells, fits: Any) -> dict[tuple[int, ...], float]:
    everyone = range(cells.n_members)
    sets = [
        kept
        for size in range(1, cells.n_members + 1)
        for kept in itertools.combinations(everyone, size)
        if cells.n_members <= WHOLE or fits(kept)
    ]
    bar = tqdm(sets, desc="sets of members", disable=len(sets) < 500 or not sys.stderr.isatty())
    return {kept: cells.members(kept).score(uniform(len(kept))) for kept in bar}


def _forward(cells: DisputedCells, seconds: np.ndarray, fits: Any) -> dict[tuple[int, ...], float]:
    """Add the member with the largest gain, or the largest gain per second, while one fits and helps; both ways."""
    scored: dict[tuple[int, ...], float] = {}
    for per_second in (False, True):
        kept: tuple[int, ...] = ()
        before, better = 0.0, True
        while better:
            grown = [tuple(sorted((*kept, i))) for i in range(cells.n_members) if i not in kept]
            found = {g: cells.members(g).score(uniform(len(g))) for g in grown if fits(g)}
            scored |= found
            gains = {g: score - before for g, score in found.items() if score > before}
            better = bool(gains)
            if per_second:
                spent = float(seconds[list(kept)].sum())
                gains = {g: gain / max(1e-9, seconds[list(g)].sum() - spent) for g, gain in gains.items()}
            if better:
                kept = max(gains, key=gains.__getitem__)
                before = scored[kept]
    return scored
