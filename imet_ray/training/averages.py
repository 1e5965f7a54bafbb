"""The weights that an epoch is judged by: the model's own, or their average over updates (EMA) or over epochs (SWA).

A mean's batch-norm statistics are computed anew, on training pictures (`renew_statistics`); EMA averages them, too.
Which epoch's weights are kept is `imet_ray.training.kept_weights`.
"""

import copy
from collections.abc import Container
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from imet_ray.data.loader import Pictures, view_batches
from imet_ray.errors import SettingError
from imet_ray.prediction.predict import Inference
from imet_ray.specs import Variant

STATISTICS_PICTURES = 2048  # training pictures, at most, that batch-norm statistics are computed on


class Average:
    """No average: the model's own weights. The state of an average is part of `last.pt`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    @property
    def judged(self) -> torch.nn.Module:
        """The model with the averaged weights."""
        return self.model

    def sets_rate(self, update: int) -> bool:
        """True if the average, and not the schedule, has set the rate of this update."""
        return False

    def after_update(self, update: int) -> None:
        """Take in the model's weights after the optimizer's step."""

    def after_epoch(self, epoch: int) -> bool:
        """Take in the weights after an epoch, counted from 0; True if the batch-norm statistics fit them no more."""
        return False

    def restart(self) -> None:
        """Begin anew from the model's weights."""

    def state_dict(self) -> dict[str, Any] | None:
        """None where there is no average."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class Ema(Average):
    """timm's exponential moving average over the updates, statistics and all."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        super().__init__(model)
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True)

    @property
    def judged(self) -> torch.nn.Module:
        averaged: torch.nn.Module = self.ema.module
        return averaged

    def after_update(self, update: int) -> None:
        self.ema.update(self.model, step=update)

    def restart(self) -> None:
        self.ema.set(self.model)

    def state_dict(self) -> dict[str, Any] | None:
        return dict(self.ema.module.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.module.load_state_dict(state)


class Swa(Average):
    """torch's stochastic weight average (Izmailov et al. 2018): the mean of the last epochs' weights.

    With a rate of its own it leaves the schedule when averaging begins, and reaches that rate after an epoch.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Variant,
        *,
        updates_per_epoch: int,
    ) -> None:
        super().__init__(model)
        assert recipe.swa_start is not None
        self.first = int(recipe.swa_start * recipe.epochs)  # epoch that is averaged, counted from 0
        self.average = AveragedModel(model)
        self.optimizer, self.lr, self.updates_per_epoch = optimizer, recipe.swa_lr, updates_per_epoch
        self.left_at: list[float] = []  # of each group: the schedule's rate when averaging began

    @property
    def judged(self) -> torch.nn.Module:
        return self.average.module if self.average.n_averaged > 0 else self.model

    def sets_rate(self, update: int) -> bool:
        begun = update - self.first * self.updates_per_epoch
        if self.lr is None or begun < 0:
            return False
        groups = self.optimizer.param_groups
        self.left_at = self.left_at or [group["lr"] for group in groups]
        share = min(1.0, (begun + 1) / self.updates_per_epoch)
        for group, left_at in zip(groups, self.left_at, strict=True):
            group["lr"] = (1 - share) * left_at + share * self.lr * group.get("lr_scale", 1.0)
        return True

    def after_epoch(self, epoch: int) -> bool:
        if epoch < self.first:
            return False
        self.average.update_parameters(self.model)
        return True

    def state_dict(self) -> dict[str, Any] | None:
        return {"average": self.average.state_dict(), "left_at": self.left_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.left_at = state["left_at"]


def build_average(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: Variant, *, updates_per_epoch: int
) -> Average:
    """The average that the recipe asks for."""
    if recipe.ema_decay is not None:
        return Ema(model, recipe.ema_decay)
    if recipe.swa_start is not None:
        return Swa(model, optimizer, recipe, updates_per_epoch=updates_per_epoch)
    return Average(model)


def check_average(recipe: Variant) -> None:
    """Raise `SettingError` for an average that does not go with the other settings."""
    if recipe.swa_start is None:
        if recipe.swa_lr is not None:
            raise SettingError("swa_lr", "swa_lr is the rate from swa_start on: set swa_start, such as 0.75")
        return
    if recipe.ema_decay is not None:
        raise SettingError("swa_start", "swa_start and ema_decay are two averages: choose one")
    if recipe.schedule == "plateau":
        raise SettingError(
            "swa_start",
            "schedule 'plateau' goes back to the best weights, swa_start averages what follows: choose one",
        )
    if recipe.keep in ("cycles", "soup"):
        raise SettingError(
            "swa_start",
            f"swa_start and keep {recipe.keep!r} both average epochs: choose keep 'best' or 'last'",
        )


def mean_weights(model: torch.nn.Module, weights: list[dict[str, torch.Tensor]]) -> torch.nn.Module:
    """A model with the mean of several weights, by torch's AveragedModel. Its batch-norm statistics are not theirs.

    Args:
        model: of their architecture; it stays as it is.
    """
    average = AveragedModel(model)
    one = copy.deepcopy(model)
    for each in weights:
        one.load_state_dict(each)
        average.update_parameters(one)
    return average.module


@torch.no_grad()
def renew_statistics(
    model: torch.nn.Module,
    pictures: Pictures,
    rows: np.ndarray,
    how: Inference,
    *,
    seed: int,
    frozen: Container[str] = (),
) -> None:
    """Compute a model's batch-norm statistics anew; without batch norm nothing is done.

    The pictures are as evaluation sees them, in the first view, and dropout rests, which it would not in torch's
    `update_bn`: nothing is random, so an interrupted trial sees the same again.

    Args:
        rows: (n,) of the training pictures; the seed decides which of them.
        frozen: names of norms that keep their statistics.
    """
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and name not in frozen
    ]
    if not norms:
        return
    chosen = np.sort(np.random.default_rng((seed, 2)).permutation(rows)[:STATISTICS_PICTURES])
    size = min(how.batch_size, len(chosen))
    batches = view_batches(
        pictures,
        chosen[: len(chosen) // size * size],  # a last batch of one picture has no variance
        how.views[:1],
        how.image_size,
        batch_size=size,
        workers=how.workers,
        pin_memory=how.device.type == "cuda",
    )
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count the same
        norm.train()
    for images in batches:
        model(images.flatten(0, 1).to(how.device, non_blocking=True))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def frozen_norms(model: torch.nn.Module) -> set[str]:
    """The names of the batch norms that are not trained."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad
    }
