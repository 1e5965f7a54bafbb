"""Which views pictures are predicted in, and how those of a picture become one probability: chosen at prediction.

A trial's recipe names views; its own files are of these, averaged. Any other set of views has files of its own beside
them, so nothing is trained again. A new way to pool is a function and a line in `POOLS`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Self

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from imet_ray.data.views import bound_view, check_view
from imet_ray.errors import ConfigError, unknown_name
from imet_ray.specs import Frozen, TrialSpec, Variant
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.run_directory import TrialDirectory

# logits (b, V, C) float32 of a picture's views to its probabilities, (b, C)
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda logits: logits.sigmoid().mean(1),
    "max": lambda logits: logits.sigmoid().amax(1),
    "geometric": lambda logits: logsigmoid(logits).mean(1).exp(),
}
MEAN = "mean"


class ViewSet(Frozen):
    """Views and how they are pooled."""

    names: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    pooling: str = MEAN  # a key of `POOLS`

    @classmethod
    def of(cls, names: Sequence[str], pooling: str | None) -> Self:
        """What a person asked for.

        Raises:
            ConfigError: for a name that nobody knows, or a view that comes twice.
        """
        for name in names:
            check_view(name)
        if len(set(names)) < len(names):
            raise ConfigError(f"--views takes each view once, got {','.join(names)}")
        if pooling is not None and pooling not in POOLS:
            raise unknown_name("way to pool views", pooling, POOLS)
        return cls(names=tuple(names), pooling=pooling or MEAN)

    def bound(self, recipe: Variant) -> tuple[str, ...]:
        """The views of a recipe's model: random ones have the recipe's crop."""
        bounds = recipe.crop_area, recipe.crop_aspect
        return tuple(bound_view(name, recipe.crop, *bounds) for name in self.names)

    def is_own(self, recipe: Variant) -> bool:
        """True if these are the recipe's own, averaged."""
        own = ViewSet(names=recipe.views).bound(recipe)
        return self.pooling == MEAN and self.bound(recipe) == own

    @property
    def tag(self) -> str:
        """What files of these views are called by."""
        name = "+".join(self.names) + ("" if self.pooling == MEAN else f"-{self.pooling}")
        return re.sub(r"[^A-Za-z0-9+.-]", "_", name.replace(":", "."))

    @property
    def options(self) -> list[str]:
        """As the command lines take them."""
        pooling = [] if self.pooling == MEAN else ["--pool-views", self.pooling]
        return ["--views", ",".join(self.names), *pooling]

    def __str__(self) -> str:
        return f"{','.join(self.names)} ({self.pooling})"


def for_recipe(recipe: Variant, views: ViewSet | None) -> tuple[tuple[str, ...], str]:
    """The views and the pooling for a recipe's model; None: the recipe's own."""
    chosen = views or ViewSet(names=recipe.views)
    return chosen.bound(recipe), chosen.pooling


def other_views(trial: TrialDirectory, views: ViewSet | None) -> str | None:
    """What names the trial's files of these views; None: they are the trial's own."""
    if views is None or views.is_own(read_model(trial.spec, TrialSpec).recipe):
        return None
    return views.tag
