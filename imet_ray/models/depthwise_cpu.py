"""Depthwise convolutions on maps smaller than their kernel, trained fast on a CPU.

There torch (oneDNN) falls back to one tiny matrix product per channel and picture for the gradient of the weights: half
the time of a whole training step of EfficientNet-Lite0 at 64 px. Summing a shifted product for each tap of the kernel
gives the same numbers 9 to 20 times as fast (1,152 channels, 5 x 5 taps, batch 32, one core: 45 ms to 3 on a 2 x 2
map, 67 to 8 on 4 x 4; `python -m benchmarks.train` measures what a trial gains). Everything else, and all of a GPU,
is left to torch.
"""

from typing import Any

import torch
import torch.nn.functional as F


class DepthwiseConv2d(torch.nn.Conv2d):
    """A depthwise `Conv2d` of stride 1 and "same" padding, with its own gradient on small maps of a CPU."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        small = min(images.shape[2:]) < self.kernel_size[0]
        if not (small and images.device.type == "cpu" and torch.is_grad_enabled()):
            return super().forward(images)
        output: torch.Tensor = _Depthwise.apply(images, self.weight)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.view(-1, 1, 1)


def train_small_maps_fast(body: torch.nn.Module) -> None:
    """Make each module that `DepthwiseConv2d` can stand for one; weights and their names stay as they are."""
    for module in body.modules():
        if type(module) is torch.nn.Conv2d and _is_plain_depthwise(module):
            module.__class__ = DepthwiseConv2d


def _is_plain_depthwise(conv: torch.nn.Conv2d) -> bool:
    taps = conv.kernel_size[0]
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (taps, taps)
        and taps % 2 == 1
        and conv.padding == (taps // 2, taps // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) and (C, 1, K, K) to (B, C, H, W)."""
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=weight.shape[2] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (gradient,) = gradients
        images, weight = ctx.saved_tensors
        taps = weight.shape[2]
        pad = taps // 2
        of_images, _, _ = torch.ops.aten.convolution_backward(
            *(gradient, images, weight, None, (1, 1), (pad, pad), (1, 1), False, (0, 0), len(weight)),
            output_mask=(True, False, False),
        )
        padded = F.pad(images, (pad, pad, pad, pad))
        height, width = gradient.shape[2:]
        of_taps = [
            (padded[:, :, y : y + height, x : x + width] * gradient).sum((0, 2, 3))
            for y in range(taps)
            for x in range(taps)
        ]
        return of_images, torch.stack(of_taps, dim=1).view_as(weight)
