"""The optimizer of a trial: timm's, by name."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

from imet_ray.errors import SettingError
from imet_ray.models.models import Tagger
from imet_ray.specs import Variant

# timm's, but for those of other packages for CUDA alone, those that need a second gradient, and kron, which draws
# numbers that no state holds
OPTIMIZERS = tuple(
    name
    for name in list_optimizers()
    if not name.startswith(("bnb", "fused", "kron")) and not get_optimizer_info(name).second_order
)
# On a CPU core a fused update of 4 M parameters takes 5 ms instead of 22. torch 2.13: fused SGD cannot begin a
# parameter later than others.
FUSED = {"adam": True, "adamw": True, "sgd": False}
GROUPS = {"beta1": "betas", "beta2": "betas", "eps": "eps", "amsgrad": "amsgrad", "momentum": "momentum"}

RECTIFIED = "radabelief", "amsgrad"  # has it in its groups, and does not read it


def build_optimizer(model: torch.nn.Module, recipe: Variant) -> torch.optim.Optimizer:
    """timm's optimizer of that name; biases and norms are not decayed. SGD is Nesterov's.

    With `layer_decay` each layer has a `lr_scale`, which schedules heed: 1 at the head, that much less with every
    layer below it.
    """
    layered = recipe.layer_decay is not None and isinstance(model, Tagger)  # timm's models know their layers
    fused = {"fused": FUSED[recipe.optimizer]} if recipe.optimizer in FUSED else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model.body if layered else model,
        opt=recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        layer_decay=recipe.layer_decay,
        **fused,
    )
    for group in optimizer.param_groups:
        if recipe.beta1 is not None or recipe.beta2 is not None:
            first, second, *others = group["betas"]
            first = first if recipe.beta1 is None else recipe.beta1
            second = second if recipe.beta2 is None else recipe.beta2
            group["betas"] = (first, second, *others)
        if recipe.eps is not None:
            group["eps"] = recipe.eps
        if recipe.amsgrad:
            group["amsgrad"] = True
    return optimizer


def check_optimizer(recipe: Variant) -> None:
    """Refuse settings that the recipe's optimizer would ignore.

    Raises:
        SettingError: naming the setting, and optimizers that it is for.
    """
    given = [key for key in GROUPS if getattr(recipe, key) != Variant.model_fields[key].default]
    for key in given:
        if GROUPS[key] not in _group(recipe.optimizer) or (recipe.optimizer, key) == RECTIFIED:
            readers = [
                name for name in ("adam", "adamw", "nadam", "lion", "sgd") if GROUPS[key] in _group(name)
            ]
            raise SettingError(
                key, f"{key} is for optimizers such as {', '.join(readers)}, got {recipe.optimizer!r}"
            )


def own_default(name: str, key: str) -> float | None:
    """What an optimizer takes for one of `beta1`, `beta2` and `eps`, if nothing is said; None for other settings."""
    group: Any = _group(name)
    first, second, *_ = group.get("betas") or (None, None)
    found: dict[str, float | None] = {"beta1": first, "beta2": second, "eps": group.get("eps")}
    return found.get(key)


def _group(name: str) -> dict[str, object]:
    """What a parameter group of that optimizer holds."""
    optimizer = create_optimizer_v2(torch.nn.Linear(1, 1), opt=name, lr=0.1)
    found: dict[str, object] = optimizer.param_groups[0]
    return found
