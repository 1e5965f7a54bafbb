"""The learning rate over a trial's updates: timm's and torch's schedules, behind one small interface.

A new schedule is a class and a line in `SCHEDULES`.
"""

import itertools
from fractions import Fraction
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from imet_ray.errors import SettingError
from imet_ray.specs import Variant


class Schedule:
    """The learning rate over a trial's updates. Its state is part of `last.pt`."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        """
        Args:
            total: updates of the whole trial.
            warmup: the first of them, in which the rate rises.
        """

    @staticmethod
    def check(recipe: Variant) -> None:
        """Raise `SettingError` for settings that do not go with this schedule."""
        if recipe.cycles > 1:
            raise SettingError("cycles", f"cycles is for schedule 'cosine', got schedule {recipe.schedule!r}")

    @staticmethod
    def cycle_ends(recipe: Variant) -> tuple[int, ...]:
        """The epochs with which a cycle ends, counted from 1; the last epoch is one of them. Empty: it has no cycles."""
        return ()

    def before_update(self, update: int) -> None:
        """Set the rate for update number `update`, counted from 0 over the whole trial."""

    def after_epoch(self, score: float) -> bool:
        """Take note of the epoch's score; True if the rate drops and training should go back to its best weights."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Empty where the rate is a function of the update only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Variant, *, updates_per_epoch: int) -> Schedule:
    """The schedule that the recipe names."""
    total = recipe.epochs * updates_per_epoch
    warmup = round(recipe.warmup_epochs * updates_per_epoch)
    return SCHEDULES[recipe.schedule](optimizer, recipe, total=total, warmup=warmup)


def cycle_ends(recipe: Variant) -> tuple[int, ...]:
    """The epochs of a recipe, counted from 1, with which a cycle of its schedule ends. Empty: it has no cycles."""
    return SCHEDULES[recipe.schedule].cycle_ends(recipe)


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


def _ends(recipe: Variant) -> tuple[int, ...]:
    """The ends of cycles; where they end within an epoch, the epoch before."""
    if recipe.cycle_epochs is not None:
        return tuple(itertools.accumulate(cycle_lengths(recipe)))
    warmup, n = Fraction(recipe.warmup_epochs), recipe.cycles
    ends = [int(warmup + (recipe.epochs - warmup) * k / n) for k in range(1, n + 1)]
    return tuple(sorted({max(1, end) for end in ends}))


class Cosine(Schedule):
    """timm's cosine with warm restarts; each cycle ends at a hundredth of the rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(1, -(-(total - warmup) // recipe.cycles)),
            lr_min=recipe.lr / 100,
            cycle_limit=recipe.cycles,
            warmup_t=warmup,
            warmup_lr_init=recipe.lr / 100,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    @staticmethod
    def check(recipe: Variant) -> None:
        """Any number of cycles up to that of the epochs will do."""

    @staticmethod
    def cycle_ends(recipe: Variant) -> tuple[int, ...]:
        return _ends(recipe)

    def before_update(self, update: int) -> None:
        self.scheduler.step_update(update)


class OneCycle(Schedule):
    """torch's one-cycle (Smith & Topin 2017); warm-up epochs set the share of the rise, 30 % without."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        rise = warmup / total if warmup else 0.3
        self.scheduler = OneCycleLR(
            optimizer, max_lr=recipe.lr, total_steps=max(2, total) + 1, pct_start=rise
        )
        self.done = 0

    def before_update(self, update: int) -> None:
        if update > self.done:  # OneCycleLR itself set the rate of update 0
            self.scheduler.step()
            self.done = update

    def state_dict(self) -> dict[str, Any]:
        kept = ("last_epoch", "_step_count", "_last_lr", "total_steps")
        state = self.scheduler.state_dict()
        return {key: state[key] for key in kept} | {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.scheduler.load_state_dict({k: v for k, v in state.items() if k != "done"})


class Constant(Schedule):
    """One rate, after a linear warm-up."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.optimizer, self.warmup, self.lr = optimizer, warmup, recipe.lr

    def before_update(self, update: int) -> None:
        if update <= self.warmup:
            share = (update + 1) / (self.warmup + 1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * share


class Plateau(Constant):
    """torch's reduce-on-plateau on the score, after a linear warm-up."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        super().__init__(optimizer, recipe, total=total, warmup=warmup)
        self.scheduler = ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=recipe.plateau_factor,
            patience=recipe.plateau_patience,
            threshold=1e-4,
            threshold_mode="abs",
        )

    @staticmethod
    def check(recipe: Variant) -> None:
        """The best weights must be there to go back to."""
        Schedule.check(recipe)
        if recipe.keep != "best":
            raise SettingError(
                "keep", "schedule 'plateau' goes back to the best weights: it needs keep 'best'"
            )

    def after_epoch(self, score: float) -> bool:
        before = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step(score)
        return bool(self.optimizer.param_groups[0]["lr"] < before)

    def state_dict(self) -> dict[str, Any]:
        state = self.scheduler.state_dict()
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        return {key: state[key] for key in kept if key in state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "onecycle": OneCycle,
    "plateau": Plateau,
    "constant": Constant,
}
