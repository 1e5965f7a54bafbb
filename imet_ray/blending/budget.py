"""The best ensemble that fits a limit of time and bytes: which members to take before weights are fitted.

A member costs what its checkpoints take for all test pictures. Sets of members are scored with uniform weights on the
exact objective: all sets of up to 15 members, beyond that forward selection by the gain per second.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.members import Member
from imet_ray.blending.methods import uniform
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.threshold_range import LEAST_THRESHOLD
from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import metric_named

EXACT = 15  # members: 32,767 sets
WHOLE = 10  # members: the curve goes beyond the budget, for that is only 1,023 sets

Set = tuple[int, ...]  # members, rising


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


def choose(problem: BlendProblem, options: BlendOptions) -> Chosen:
    """The best set of members within `seconds`, `size` and `max_members` of the options.

    Raises:
        DataError: naming the member whose predictions cannot be used.
        ConfigError: if a member's cost is unknown, not even one member fits, or there is nothing to predict.
    """
    problem.check()
    images = problem.images if options.images is None else options.images
    if options.seconds is not None and images < 1:
        raise ConfigError(
            "--seconds needs the number of test pictures, and the data have none: give --images"
        )
    members = problem.members
    seconds = _costs(members, "seconds", options.seconds is not None) * images
    sizes = _costs(members, "size", options.size is not None)

    def fits(kept: Set) -> bool:
        return bool(
            (options.max_members is None or len(kept) <= options.max_members)
            and (options.seconds is None or seconds[[*kept]].sum() <= options.seconds)
            and (options.size is None or sizes[[*kept]].sum() <= options.size)
        )

    if not any(fits((i,)) for i in range(len(members))):
        raise ConfigError(
            f"no member fits the budget: the fastest takes {seconds.min():,.0f} s for {images:,} pictures, the "
            f"smallest {sizes.min() / 1e9:.2f} GB: raise --seconds or --bytes"
        )
    cells = _cells(problem)
    exact = len(members) <= EXACT
    scores = _all_sets(cells, fits) if exact else _forward(cells, seconds, fits)
    steps = {
        kept: Step(float(seconds[[*kept]].sum()), score, tuple(members[i].name for i in kept))
        for kept, score in scores.items()
    }
    best = max(filter(fits, steps), key=lambda kept: (steps[kept].score, -steps[kept].seconds))
    curve: list[Step] = []
    for step in sorted(steps.values(), key=lambda step: (step.seconds, -step.score)):
        if not curve or step.score > curve[-1].score:
            curve.append(step)
    return Chosen(
        names=steps[best].members,
        seconds=steps[best].seconds,
        size=int(sizes[[*best]].sum()),
        exact=exact,
        limit_s=options.seconds,
        curve=tuple(curve),
    )


def _cells(problem: BlendProblem) -> DisputedCells:
    """Each member with its own best threshold."""
    sample, metric = problem.sample, metric_named(problem.metric)
    thresholds = [0.0] * len(problem.members)
    if not problem.margins:
        thresholds = [
            max(LEAST_THRESHOLD, metric.best_threshold(probs, sample.labels)[0]) for probs in sample.probs
        ]
    return DisputedCells.build(problem.values, thresholds, problem.labels, metric=problem.metric)


def _costs(members: Sequence[Member], what: str, limited: bool) -> np.ndarray:
    costs = [getattr(member, what) for member in members]
    for member, cost in zip(members, costs, strict=True):
        if cost is None and limited:
            raise ConfigError(
                f"member {member.name} does not say its {what}, so no budget can hold it: store `{what}` in its "
                "file, or leave it out with --members"
            )
    return np.array([float(cost or 0) for cost in costs])


def _score(cells: DisputedCells, kept: Set) -> float:
    return cells.members(kept).score(uniform(len(kept)))


def _all_sets(cells: DisputedCells, fits: Callable[[Set], bool]) -> dict[Set, float]:
    sets = [
        kept
        for size in range(1, cells.n_members + 1)
        for kept in itertools.combinations(range(cells.n_members), size)
        if cells.n_members <= WHOLE or fits(kept)
    ]
    return {kept: _score(cells, kept) for kept in tqdm(sets, "sets of members", disable=None, delay=2)}


def _forward(cells: DisputedCells, seconds: np.ndarray, fits: Callable[[Set], bool]) -> dict[Set, float]:
    """Add the member with the largest gain, or the largest gain per second, while one fits and helps; both ways."""
    scores: dict[Set, float] = {}
    for per_second in (False, True):
        kept: Set = ()
        before = 0.0
        while True:
            gains = {}
            for i in [i for i in range(cells.n_members) if i not in kept]:
                grown = tuple(sorted((*kept, i)))
                if fits(grown):
                    scores[grown] = _score(cells, grown)
                    cost = max(1e-9, seconds[[*grown]].sum() - seconds[[*kept]].sum()) if per_second else 1.0
                    if scores[grown] > before:
                        gains[grown] = (scores[grown] - before) / cost
            if not gains:
                break
            kept = max(gains, key=gains.__getitem__)
            before = scores[kept]
    return scores
