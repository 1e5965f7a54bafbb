"""Freezing by layer: which of a network's lowest layers keep the weights that they begin with."""

import torch
from timm.models import group_parameters

from imet_ray.errors import SettingError


def frozen_parameters(body: torch.nn.Module, freeze: int | str | None) -> frozenset[str]:
    """The names of the parameters that are not trained. Layers are timm's groups: a stem, stages, a head.

    Args:
        freeze: how many of the lowest groups, or the beginning of a parameter's name, such as layer2: its group and
            all below.

    Raises:
        SettingError: for more groups than there are below the head, or a name that none has.
    """
    if not freeze:
        return frozenset()
    if not hasattr(body, "group_matcher"):
        raise SettingError(
            "freeze", f"{type(body).__name__} does not tell its layers apart: leave freeze out"
        )
    groups: dict[int, list[str]] = group_parameters(body, body.group_matcher(coarse=True))  # type: ignore[operator]
    by_order = [groups[key] for key in sorted(groups)]
    if isinstance(freeze, str):
        with_it = [i for i, names in enumerate(by_order) if any(_is_of(name, freeze) for name in names)]
        if not with_it:
            known = dict.fromkeys(name.split(".")[0] for names in by_order[:-1] for name in names)
            raise SettingError(
                "freeze", f"no layer is named {freeze!r}: freeze takes names such as {', '.join(known)}"
            )
        freeze = with_it[-1] + 1
    if freeze >= len(by_order):
        raise SettingError(
            "freeze",
            f"{len(by_order)} groups of layers, the head among them: freeze at most {len(by_order) - 1}",
        )
    return frozenset(name for names in by_order[:freeze] for name in names)


def _is_of(parameter: str, layer: str) -> bool:
    return parameter == layer or parameter.startswith(f"{layer}.")
