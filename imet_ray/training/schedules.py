"""The learning rate over a trial's updates: timm's and torch's schedules, behind one small interface.

A new schedule is a class and a line in `SCHEDULES`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler as TimmScheduler
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from imet_ray.errors import SettingError
from imet_ray.specs import Variant
from imet_ray.training.cycles import Cycles, ends_of_cycles

WARMUP = ("warmup_epochs", "warmup_steps")
LENGTHS = ("cycle_epochs", "cycle_plus", "cycle_times", "cycle_longest")
SETTINGS = (  # that not every schedule reads
    *("cycles", *LENGTHS, "min_lr", "drop_every", "drop_at", "drop_factor", "power"),
    *("plateau_factor", "plateau_patience", "plateau_improvement", *WARMUP),
)


class Schedule:
    """The learning rate over a trial's updates. Its state is part of `last.pt`."""

    reads: ClassVar[Sequence[str]] = WARMUP  # of SETTINGS
    drop_factor: ClassVar[float | None] = None  # where the recipe says none
    spent = False  # True: training ends now, though epochs are left

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        """
        Args:
            total: updates of the whole trial.
            warmup: the first of them, in which the rate rises.
        """

    @staticmethod
    def check(recipe: Variant) -> None:
        """Raise `SettingError` for settings that do not go together; those it does not read are refused before."""

    @staticmethod
    def cycle_ends(recipe: Variant) -> tuple[int, ...]:
        """The epochs with which a cycle ends, counted from 1, the last epoch among them. Empty: it has none."""
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
    warmup = recipe.warmup_steps or round(recipe.warmup_epochs * updates_per_epoch)
    return SCHEDULES[recipe.schedule](optimizer, recipe, total=total, warmup=min(warmup, total))


def check_schedule(recipe: Variant) -> None:
    """Refuse settings that the recipe's schedule would ignore, or cannot go with.

    Raises:
        SettingError: naming the setting, and the schedules that it is for.
    """
    own = SCHEDULES[recipe.schedule]
    for field in SETTINGS:
        if field not in own.reads and getattr(recipe, field) != Variant.model_fields[field].default:
            readers = ", ".join(repr(name) for name, one in SCHEDULES.items() if field in one.reads)
            raise SettingError(field, f"{field} is for schedule {readers}, got schedule {recipe.schedule!r}")
    if recipe.min_lr is not None and recipe.min_lr >= recipe.lr:
        raise SettingError("min_lr", f"min_lr must be below lr={recipe.lr:g}, got {recipe.min_lr:g}")
    if recipe.cycle_epochs is None:
        for field in LENGTHS[1:]:
            if field in own.reads and getattr(recipe, field) != Variant.model_fields[field].default:
                raise SettingError(
                    field, f"{field} is for cycles of cycle_epochs: give the first one's epochs"
                )
    elif recipe.cycles > 1:
        raise SettingError("cycles", "cycles and cycle_epochs say the same: give one of them")
    own.check(recipe)


def cycle_ends(recipe: Variant) -> tuple[int, ...]:
    """The epochs of a recipe, counted from 1, with which a cycle of its schedule ends. Empty: it has no cycles."""
    return SCHEDULES[recipe.schedule].cycle_ends(recipe)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Layers whose rate decays have a scale of their own."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class _Timm(Schedule):
    """One of timm's: the rate is a function of the update. A warm-up rises from a hundredth of the rate."""

    scheduler: TimmScheduler

    def before_update(self, update: int) -> None:
        self.scheduler.step_update(update)


class Cosine(Schedule):
    """Cosine with warm restarts (Loshchilov & Hutter 2017): timm's for cycles of one length.

    Each cycle ends at `min_lr`, or a hundredth of the rate. Cycles whose length is given in epochs end with epochs:
    a warm-up is part of the first one. Else it comes before.
    """

    reads = ("cycles", *LENGTHS, "min_lr", *WARMUP)

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.optimizer, self.lr, self.warmup = optimizer, recipe.lr, warmup
        self.low = recipe.lr / 100 if recipe.min_lr is None else recipe.min_lr
        self.cycles = Cycles(recipe, total) if recipe.cycle_epochs is not None else None
        if self.cycles is None:
            self.scheduler = CosineLRScheduler(
                optimizer,
                t_initial=max(1, -(-(total - warmup) // recipe.cycles)),
                lr_min=self.low,
                cycle_limit=recipe.cycles,
                warmup_t=warmup,
                warmup_lr_init=recipe.lr / 100,
                warmup_prefix=True,
                t_in_epochs=False,
            )

    @staticmethod
    def check(recipe: Variant) -> None:
        """Ends of cycles are known in epochs."""
        if recipe.cycles > 1 and recipe.warmup_steps:
            raise SettingError("warmup_steps", "cycles begin after the warm-up: give it in warmup_epochs")

    @staticmethod
    def cycle_ends(recipe: Variant) -> tuple[int, ...]:
        return ends_of_cycles(recipe)

    def before_update(self, update: int) -> None:
        if self.cycles is None:
            self.scheduler.step_update(update)
        elif update < self.warmup:
            _set_rate(self.optimizer, self.lr * (0.01 + 0.99 * update / self.warmup))
        else:
            _, share = self.cycles.at(update)
            _set_rate(self.optimizer, self.low + (self.lr - self.low) * (1 + math.cos(math.pi * share)) / 2)


class Triangular(Schedule):
    """Cyclical rates (Smith 2017): in each cycle from `min_lr`, or a hundredth of the rate, up to it and down again.

    torch's CyclicLR, for cycles of any lengths.
    """

    reads: ClassVar[Sequence[str]] = ("cycles", *LENGTHS, "min_lr")

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.optimizer, self.lr = optimizer, recipe.lr
        self.low = recipe.lr / 100 if recipe.min_lr is None else recipe.min_lr
        self.cycles = Cycles(recipe, total)

    @staticmethod
    def cycle_ends(recipe: Variant) -> tuple[int, ...]:
        return ends_of_cycles(recipe)

    def before_update(self, update: int) -> None:
        cycle, share = self.cycles.at(update)
        height = (self.lr - self.low) * self.height(cycle, update)
        _set_rate(self.optimizer, self.low + height * (1 - abs(2 * share - 1)))

    def height(self, cycle: int, update: int) -> float:
        """What is left of the first cycle's height: 0..1."""
        return 1.0


class Triangular2(Triangular):
    """Each cycle is half as high as the one before."""

    def height(self, cycle: int, update: int) -> float:
        return 0.5**cycle


class ExpRange(Triangular):
    """The height falls to `drop_factor` (0.9) of it with each epoch."""

    reads = (*Triangular.reads, "drop_factor")
    drop_factor: ClassVar[float] = 0.9

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        super().__init__(optimizer, recipe, total=total, warmup=warmup)
        self.per_update = (recipe.drop_factor or self.drop_factor) ** (recipe.epochs / total)

    def height(self, cycle: int, update: int) -> float:
        return float(self.per_update**update)


class Step(_Timm):
    """The rate falls to `drop_factor` (0.1) of it after every `drop_every` epochs."""

    reads = ("drop_every", "drop_factor", *WARMUP)
    drop_factor: ClassVar[float] = 0.1

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        assert recipe.drop_every is not None
        self.scheduler = StepLRScheduler(
            optimizer,
            decay_t=recipe.drop_every * (total // recipe.epochs),
            decay_rate=recipe.drop_factor or self.drop_factor,
            warmup_t=warmup,
            warmup_lr_init=recipe.lr / 100,
            warmup_prefix=False,  # drops are where the recipe has them
            t_in_epochs=False,
        )

    @staticmethod
    def check(recipe: Variant) -> None:
        """It must know when."""
        if recipe.drop_every is None:
            raise SettingError(
                "schedule", "schedule 'step' needs drop_every: after how many epochs the rate drops"
            )


class MultiStep(_Timm):
    """The rate falls to `drop_factor` (0.1) of it after each of the epochs `drop_at`."""

    reads = ("drop_at", "drop_factor", *WARMUP)
    drop_factor: ClassVar[float] = 0.1

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        epoch = total // recipe.epochs
        self.scheduler = MultiStepLRScheduler(
            optimizer,
            decay_t=[epochs * epoch + 1 for epochs in recipe.drop_at],  # timm's drop comes one update early
            decay_rate=recipe.drop_factor or self.drop_factor,
            warmup_t=warmup,
            warmup_lr_init=recipe.lr / 100,
            warmup_prefix=False,
            t_in_epochs=False,
        )

    @staticmethod
    def check(recipe: Variant) -> None:
        """It must know when."""
        if not recipe.drop_at:
            raise SettingError("schedule", "schedule 'multistep' needs drop_at: epochs such as [10, 15]")
        if list(recipe.drop_at) != sorted(set(recipe.drop_at)):
            raise SettingError(
                "drop_at", f"drop_at must rise from epoch to epoch, got {list(recipe.drop_at)}"
            )


class Exponential(_Timm):
    """After the warm-up the rate falls with every update, to `drop_factor` (0.9) of it in an epoch."""

    reads = ("drop_factor", *WARMUP)
    drop_factor: ClassVar[float] = 0.9

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.scheduler = StepLRScheduler(
            optimizer,
            decay_t=1,
            decay_rate=(recipe.drop_factor or self.drop_factor) ** (recipe.epochs / total),
            warmup_t=warmup,
            warmup_lr_init=recipe.lr / 100,
            warmup_prefix=True,
            t_in_epochs=False,
        )


class Polynomial(_Timm):
    """After the warm-up the rate falls to `min_lr`, or 0, with a `power` of what is left of the trial."""

    reads = ("power", "min_lr", *WARMUP)

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.scheduler = PolyLRScheduler(
            optimizer,
            t_initial=max(2, total - warmup),  # of 1 timm warns
            power=recipe.power,
            lr_min=recipe.min_lr or 0.0,
            warmup_t=warmup,
            warmup_lr_init=recipe.lr / 100,
            warmup_prefix=True,
            t_in_epochs=False,
        )


class OneCycle(Schedule):
    """torch's one-cycle (Smith & Topin 2017); the warm-up sets the share of the rise, 30 % without."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        rise = warmup / total if warmup else 0.3
        groups = optimizer.param_groups
        self.scheduler = OneCycleLR(
            optimizer,
            max_lr=[recipe.lr * group.get("lr_scale", 1.0) for group in groups],
            total_steps=max(2, total) + 1,
            pct_start=rise,
            cycle_momentum=all("momentum" in group or "betas" in group for group in groups),
        )
        self.done = 0

    @staticmethod
    def check(recipe: Variant) -> None:
        """It moves the momentum against the rate."""
        if recipe.beta1 is not None:
            raise SettingError(
                "beta1", "schedule 'onecycle' sets beta1 itself, between 0.85 and 0.95: leave it out"
            )
        if recipe.momentum != Variant.model_fields["momentum"].default:
            raise SettingError(
                "momentum",
                "schedule 'onecycle' sets the momentum itself, between 0.85 and 0.95: leave it out",
            )

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
        # torch takes the next step for the first, and warns, where this process has made no update yet
        steps = {"_step_count": max(2, state["_step_count"])}
        self.scheduler.load_state_dict({k: v for k, v in state.items() if k != "done"} | steps)


class Constant(Schedule):
    """One rate, after a linear warm-up."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        self.optimizer, self.warmup, self.lr = optimizer, warmup, recipe.lr
        self.warm = False

    def before_update(self, update: int) -> None:
        self.warm = update >= self.warmup
        if update <= self.warmup:
            _set_rate(self.optimizer, self.lr * ((update + 1) / (self.warmup + 1)))


class Plateau(Constant):
    """torch's reduce-on-plateau on the score, after a linear warm-up.

    Training ends when the rate drops below `min_lr`.
    """

    reads = ("plateau_factor", "plateau_patience", "plateau_improvement", "min_lr", *WARMUP)

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, total: int, warmup: int) -> None:
        super().__init__(optimizer, recipe, total=total, warmup=warmup)
        self.min_lr = recipe.min_lr or 0.0
        self.scheduler = ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=recipe.plateau_factor,
            patience=recipe.plateau_patience,
            threshold=recipe.plateau_improvement,
            threshold_mode="abs",
            eps=0.0,  # the lowest layers' rates, too, where they decay by layer
        )

    @staticmethod
    def check(recipe: Variant) -> None:
        """The best weights must be there to go back to."""
        if recipe.keep != "best":
            raise SettingError(
                "keep", "schedule 'plateau' goes back to the best weights: it needs keep 'best'"
            )

    def after_epoch(self, score: float) -> bool:
        before = self._rate()
        self.scheduler.step(score)
        drops = self._rate() < before
        self.spent = drops and self.warm and self._rate() < self.min_lr
        return drops

    def state_dict(self) -> dict[str, Any]:
        state = self.scheduler.state_dict()
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        return {key: state[key] for key in kept if key in state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)

    def _rate(self) -> float:
        """The head's, which is scaled by 1 where rates decay by layer."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "onecycle": OneCycle,
    "plateau": Plateau,
    "constant": Constant,
    "triangular": Triangular,
    "triangular2": Triangular2,
    "exp_range": ExpRange,
    "step": Step,
    "multistep": MultiStep,
    "exponential": Exponential,
    "polynomial": Polynomial,
}
