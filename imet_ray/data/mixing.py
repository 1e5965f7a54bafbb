"""Batches whose pictures are mixed with one another, and their labels as the pixels are: mixup, CutMix.

Labels may be several of a picture, and soft. Randomness is the caller's generator: the same epoch is the same again.
"""

import math

import numpy as np
import torch


def mixed(
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup or CutMix, whichever is above 0; with both each batch gets one of them, as with timm's `Mixup`."""
    cuts = cutmix_alpha > 0 and (mixup_alpha == 0 or generator.random() < 0.5)
    if cuts:
        return cutmix(images, targets, alpha=cutmix_alpha, generator=generator)
    return mixup(images, targets, alpha=mixup_alpha, generator=generator)


def mixup(
    images: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture with another of the batch (Zhang et al. 2018), one share per batch from Beta(alpha, alpha).

    Args:
        images: (B, 3, S, S) uint8 or float.
        targets: (B, C) float.

    Returns:
        (B, 3, S, S) float32 in 0..255 and (B, C) float32.
    """
    share = float(generator.beta(alpha, alpha))
    partner = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    images = images.float()
    return images.lerp(images[partner], 1 - share), targets.lerp(targets[partner], 1 - share)


def cutmix(
    images: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a rectangle of another picture of the batch into each (Yun et al. 2019), the same place in all of them.

    Its share of the area is 1 - Beta(alpha, alpha), less what lies outside. Labels are mixed by what is there.

    Args:
        images: (B, 3, S, S) uint8 or float.
        targets: (B, C) float.

    Returns:
        Images of the same type, and (B, C) float32.
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - float(generator.beta(alpha, alpha)))
    (top, bottom), (left, right) = (_span(length, side, generator) for length in (height, width))
    partner = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (height * width)
    return images, targets.lerp(targets[partner], share)


def _span(length: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """A span of a share of the length around a random place, as far as it lies inside."""
    middle, long = int(generator.integers(length)), round(length * share)
    return max(0, middle - long // 2), min(length, middle - long // 2 + long)
