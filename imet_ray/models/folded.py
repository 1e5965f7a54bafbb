"""Batch norms folded into the convolutions before them: the same function in fewer steps, to predict faster on a CPU.

Which convolution a batch norm follows is seen as pictures go through, not guessed from names. Whether the folded model
is the same is tried; if it is not, the model stays as it was.
"""

import copy

import torch
from timm.layers import BatchNormAct2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOLERANCE = 1e-4  # of logits, beside 1: folding rounds in another order


def folded(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """The model with all batch norms folded that can be; the model itself, where folding would change it.

    Args:
        model: in evaluation mode, on the CPU.
        images: (B, 3, S, S) uint8, of the size that it sees.
    """
    found = copy.deepcopy(model)
    with torch.inference_mode():
        pairs = _pairs(found, images)
        names: dict[torch.nn.Module, str] = {module: name for name, module in found.named_modules()}
        for norm, conv in pairs.items():
            _fold(conv, norm)
            parent, _, name = names[norm].rpartition(".")
            setattr(found.get_submodule(parent), name, _rest(norm))
        before, after = model(images), found(images)
    same = torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE)
    return found if pairs and same else model


def _pairs(model: torch.nn.Module, images: torch.Tensor) -> dict[torch.nn.BatchNorm2d, torch.nn.Conv2d]:
    """Batch norms by module, with the convolution whose output each one took, and was the first to take."""
    made: dict[
        int, tuple[torch.nn.Conv2d, torch.Tensor]
    ] = {}  # by the tensor, which is kept: its id stays its own
    pairs: dict[torch.nn.BatchNorm2d, torch.nn.Conv2d] = {}
    uses: dict[torch.nn.Module, int] = {}

    def after(module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        uses[module] = uses.get(module, 0) + 1
        if isinstance(module, torch.nn.Conv2d):
            made[id(output)] = module, output
        elif (
            isinstance(module, torch.nn.BatchNorm2d)
            and given
            and (source := made.get(id(given[0]))) is not None
        ):
            pairs[module] = source[0]

    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    hooks = [one.register_forward_hook(after) for one in model.modules() if isinstance(one, kinds)]
    model(images[:1])
    for hook in hooks:
        hook.remove()
    return {
        norm: conv
        for norm, conv in pairs.items()
        if uses[norm] == uses[conv] == 1 and norm.running_mean is not None and norm.running_var is not None
    }


def _fold(conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _rest(norm: torch.nn.Module) -> torch.nn.Module:
    """What timm's batch norm does beside normalising."""
    return norm.act if isinstance(norm, BatchNormAct2d) else torch.nn.Identity()
