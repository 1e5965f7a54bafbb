"""Which of a trial's weights are kept: those of one epoch, a mean of several, or several that predict together.

A new way is a class and a line in `KEEPS`. Whatever is kept is one model in one file. A way that chooses by held-out
pictures flatters the trial's score, and says so (`picks`). An epoch's weights may be averages themselves:
`imet_ray.training.averages`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from imet_ray.errors import SettingError
from imet_ray.models.snapshots import Snapshots
from imet_ray.specs import Variant
from imet_ray.training.averages import mean_weights
from imet_ray.training.schedules import cycle_ends

Row = dict[str, Any]  # the figures of an epoch
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Judge:
    """What the trainer does with weights for who chooses among them; all of a team do it together."""

    score: Callable[[torch.nn.Module], Row]  # on the held-out fold
    settle: Callable[[torch.nn.Module], None]  # gives it batch-norm statistics of training pictures


class Keep:
    """A way of keeping weights. Its state is part of `last.pt`."""

    at_once = False  # written as soon as an epoch is the one to keep; else after the last epoch

    def __init__(self, recipe: Variant) -> None:
        self.recipe = recipe

    @staticmethod
    def check(recipe: Variant) -> None:
        """Raise `SettingError` for settings that do not go with this way."""
        for field in ("soup", "soup_epochs"):
            if getattr(recipe, field) != Variant.model_fields[field].default:
                raise SettingError(field, f"{field} is for keep 'soup', got keep {recipe.keep!r}")

    @staticmethod
    def picks(recipe: Variant) -> bool:
        """True if it chooses by the score on held-out pictures."""
        return False

    def judge(self, epoch: int, model: torch.nn.Module, judge: Judge) -> tuple[torch.nn.Module, Row]:
        """What would be kept, were this epoch the last one to count, and its figures.

        Args:
            epoch: counted from 1.
            model: with the epoch's weights.
        """
        return model, judge.score(model)

    def kept(self, history: Sequence[Row]) -> Row:
        """The epoch, of those until now, that is kept."""
        return history[-1]

    def state(self) -> list[dict[str, Any]]:
        """The weights of earlier epochs that are still needed."""
        return []

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `state` gave."""


class Last(Keep):
    """The last epoch's weights. Nothing is chosen."""


class Best(Keep):
    """The weights of the first epoch with the best score."""

    at_once = True

    @staticmethod
    def picks(recipe: Variant) -> bool:
        return recipe.epochs > 1

    def kept(self, history: Sequence[Row]) -> Row:
        return max(history, key=lambda row: row["score"])


class _Several(Keep):
    """Holds weights of several epochs, on the CPU, until the trial ends."""

    def __init__(self, recipe: Variant) -> None:
        super().__init__(recipe)
        self.epochs: list[dict[str, Any]] = []  # each: its row of figures, and its weights

    def take(self, epoch: int, model: torch.nn.Module, row: Row) -> None:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        self.epochs.append({"row": row | {"kept_epochs": [epoch]}, "weights": weights})

    def state(self) -> list[dict[str, Any]]:
        return self.epochs

    def restore(self, state: list[dict[str, Any]]) -> None:
        self.epochs = list(state)


class Cycles(_Several):
    """The weights at the end of each cycle, which predict together: a snapshot ensemble (Huang et al. 2017).

    Nothing is chosen. The score of an epoch with which a cycle ends is that of the mean probability of all cycles until
    then; the score of another epoch is its own.
    """

    def __init__(self, recipe: Variant) -> None:
        super().__init__(recipe)
        self.ends = cycle_ends(recipe)

    @staticmethod
    def check(recipe: Variant) -> None:
        Keep.check(recipe)
        if len(cycle_ends(recipe)) < 2:
            raise SettingError(
                "keep",
                f"keep 'cycles' keeps the weights of each cycle, got schedule {recipe.schedule!r} with "
                "less than two: set schedule 'cosine' and cycles",
            )

    def judge(self, epoch: int, model: torch.nn.Module, judge: Judge) -> tuple[torch.nn.Module, Row]:
        if epoch not in self.ends:
            return model, judge.score(model)
        self.take(epoch, model, {})
        together = Snapshots([_loaded(model, one["weights"]) for one in self.epochs])
        return together, judge.score(together) | _kept_epochs(self.epochs)


class Soup(_Several):
    """The mean of the last epochs' weights, with batch-norm statistics of its own (Wortsman et al. 2022).

    Greedy: beginning with the best epoch, the others are added in the order of their scores as long as the mean's score
    does not fall. Uniform: all of them, and nothing is chosen.
    """

    @staticmethod
    def check(recipe: Variant) -> None:
        """The last epoch must be known beforehand: a schedule that may end training early asks for keep 'best'."""

    @staticmethod
    def picks(recipe: Variant) -> bool:
        return recipe.soup == "greedy" and recipe.epochs > 1

    def judge(self, epoch: int, model: torch.nn.Module, judge: Judge) -> tuple[torch.nn.Module, Row]:
        row = judge.score(model)
        if epoch > self.recipe.epochs - self.recipe.soup_epochs:
            self.take(epoch, model, row)
        if epoch < self.recipe.epochs:
            return model, row
        if self.recipe.soup == "uniform":
            return self._mixed(self.epochs, model, judge)
        first, *others = sorted(self.epochs, key=lambda one: -one["row"]["score"])
        taken, found = [first], (_loaded(model, first["weights"]), first["row"])
        for one in others:
            tried = self._mixed([*taken, one], model, judge)
            if tried[1]["score"] >= found[1]["score"]:
                taken, found = [*taken, one], tried
        return found

    def _mixed(
        self, epochs: list[dict[str, Any]], model: torch.nn.Module, judge: Judge
    ) -> tuple[torch.nn.Module, Row]:
        mixed = mean_weights(model, [one["weights"] for one in epochs])
        judge.settle(mixed)
        return mixed, judge.score(mixed) | _kept_epochs(epochs)


def _kept_epochs(epochs: Sequence[dict[str, Any]]) -> Row:
    return {"kept_epochs": sorted(epoch for one in epochs for epoch in one["row"]["kept_epochs"])}


def _loaded(model: torch.nn.Module, weights: Weights) -> torch.nn.Module:
    """A copy of a model with other weights."""
    copied = copy.deepcopy(model)
    copied.load_state_dict(weights)
    return copied


KEEPS: dict[str, type[Keep]] = {
    "best": Best,
    "last": Last,
    "cycles": Cycles,
    "soup": Soup,
}
