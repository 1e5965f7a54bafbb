"""The cycles of a learning rate: their lengths, their ends, and where in which cycle an update is."""

import bisect
import itertools
from fractions import Fraction

from imet_ray.specs import Variant


class Cycles:
    """Where in which cycle an update is."""

    def __init__(self, recipe: Variant, total: int) -> None:
        if recipe.cycle_epochs is not None:
            epoch = total // recipe.epochs  # updates
            self.lengths = [float(length * epoch) for length in cycle_lengths(recipe)]
        else:
            self.lengths = [total / recipe.cycles] * recipe.cycles
        self.starts = [0.0, *itertools.accumulate(self.lengths)][:-1]

    def at(self, update: int) -> tuple[int, float]:
        """The cycle, counted from 0, and how much of it is over: 0..1."""
        cycle = bisect.bisect_right(self.starts, update) - 1
        return cycle, (update - self.starts[cycle]) / self.lengths[cycle]


def cycle_lengths(recipe: Variant) -> list[int]:
    """The lengths of cycles that are given in epochs. The last one is cut where the trial ends."""
    assert recipe.cycle_epochs is not None
    length, left, lengths = recipe.cycle_epochs, recipe.epochs, []
    while left > 0:
        length = min(length, recipe.cycle_longest or length)
        lengths.append(min(length, left))
        left -= length
        length = length * recipe.cycle_times + recipe.cycle_plus
    return lengths


def ends_of_cycles(recipe: Variant) -> tuple[int, ...]:
    """The epochs with which cycles end, counted from 1; where they end within an epoch, the epoch before."""
    if recipe.cycle_epochs is not None:
        return tuple(itertools.accumulate(cycle_lengths(recipe)))
    warmup, n = Fraction(recipe.warmup_epochs), recipe.cycles
    ends = [int(warmup + (recipe.epochs - warmup) * k / n) for k in range(1, n + 1)]
    return tuple(sorted({max(1, end) for end in ends}))
