"""Optimizer and learning-rate schedule of a trial: timm's and torch's, behind one small interface.

`Schedule` sets the rate before each update and hears the score after each epoch. Its state is part of `last.pt`.
"""

from typing import Any, Protocol

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from imet_ray.specs import Variant


def build_optimizer(model: torch.nn.Module, recipe: Variant) -> torch.optim.Optimizer:
    """timm's optimizer of that name; biases and norms are not decayed. SGD has Nesterov momentum 0.9.

    Fused: on a CPU core an update of 4 M parameters takes 5 ms instead of 22.
    """
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=0.9,
        fused=recipe.optimizer != "sgd",  # torch 2.13: fused SGD cannot begin a parameter later than others
    )
    return optimizer


class Schedule(Protocol):
    """The learning rate over a trial's updates."""

    def before_update(self, update: int) -> None:
        """Set the rate for update number `update`, counted from 0 over the whole trial."""

    def after_epoch(self, score: float) -> bool:
        """Hear the epoch's score; True if the rate drops and training should go back to its best weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Variant, *, updates_per_epoch: int) -> Schedule:
    """The schedule that the recipe names."""
    total = recipe.epochs * updates_per_epoch
    warmup = round(recipe.warmup_epochs * updates_per_epoch)
    if recipe.schedule == "cosine":
        return _Cosine(optimizer, recipe, total=total, warmup=warmup)
    if recipe.schedule == "onecycle":
        return _OneCycle(optimizer, recipe, total=total, warmup=warmup)
    return _Plateau(optimizer, recipe, warmup=warmup)


class _Cosine:
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

    def before_update(self, update: int) -> None:
        self.scheduler.step_update(update)

    def after_epoch(self, score: float) -> bool:
        return False

    def state_dict(self) -> dict[str, Any]:
        return {}  # the rate is a function of the update alone

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _OneCycle:
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

    def after_epoch(self, score: float) -> bool:
        return False

    def state_dict(self) -> dict[str, Any]:
        kept = ("last_epoch", "_step_count", "_last_lr", "total_steps")
        state = self.scheduler.state_dict()
        return {key: state[key] for key in kept} | {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.scheduler.load_state_dict({k: v for k, v in state.items() if k != "done"})


class _Plateau:
    """torch's reduce-on-plateau on F2, after a linear warm-up; also the constant rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Variant, *, warmup: int) -> None:
        self.optimizer = optimizer
        self.warmup = warmup
        self.lr = recipe.lr
        self.scheduler = (
            ReduceLROnPlateau(
                optimizer,
                mode="max",
                factor=recipe.plateau_factor,
                patience=recipe.plateau_patience,
                threshold=1e-4,
                threshold_mode="abs",
            )
            if recipe.schedule == "plateau"
            else None
        )

    def before_update(self, update: int) -> None:
        if update < self.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (update + 1) / (self.warmup + 1)
        elif update == self.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr

    def after_epoch(self, score: float) -> bool:
        if self.scheduler is None:
            return False
        before = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step(score)
        after = float(self.optimizer.param_groups[0]["lr"])
        return bool(after < before)

    def state_dict(self) -> dict[str, Any]:
        if self.scheduler is None:
            return {}
        state = self.scheduler.state_dict()
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        return {key: state[key] for key in kept if key in state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)
