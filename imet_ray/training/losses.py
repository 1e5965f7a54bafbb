"""Losses for multi-label pictures whose labels are long-tailed and partly missing.

Each takes logits (B, C) and targets (B, C) in [0, 1], soft ones from mixup included, computes in float32 whatever
autocast does, and returns a scalar on the scale of a mean over all entries. What a variant's `loss_weight` means
is said at each.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel

from imet_ray.errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FOCAL_GAMMA = 2.0
EPSILON = 1e-6  # keeps soft F2 finite where a picture has neither labels nor probabilities


def build_loss(name: str, weight: float | None, *, smoothing: float = 0.0) -> Loss:
    """The loss of that name: (logits, targets) to a scalar.

    Args:
        name: one of `LOSSES`.
        weight: what the loss makes of it, 0 or more; None is the loss's own default.
        smoothing: a target y becomes y (1 - smoothing) + smoothing / 2, as in Keras's BinaryCrossentropy.

    Raises:
        ConfigError: for a weight that the loss does not take.
    """
    builder, default = LOSSES[name]
    loss = builder(default if weight is None else weight)

    def in_float32(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            targets = targets.float()
            return loss(logits.float(), targets * (1 - smoothing) + smoothing / 2 if smoothing else targets)

    return in_float32


def _bce(weight: float) -> Loss:
    """Binary cross-entropy; the weight multiplies what positive entries cost."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        positive = None if weight == 1 else logits.new_full((), weight)
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive)

    return loss


def _focal(weight: float) -> Loss:
    """Focal loss, gamma 2 (Lin et al. 2017); the weight multiplies what positive entries cost.

    On hard labels and with weight 1 it is `torchvision.ops.sigmoid_focal_loss` without its alpha. Soft targets
    mix the costs of the two hard ones, as in cross-entropy.
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        probs = logits.sigmoid()
        positive = targets * (1 - probs) ** FOCAL_GAMMA * F.softplus(-logits)
        negative = (1 - targets) * probs**FOCAL_GAMMA * F.softplus(logits)
        return (weight * positive + negative).mean()

    return loss


def _soft_f2(weight: float) -> Loss:
    """One less the F-beta of each picture, probabilities in place of decisions; beta^2 is 4 times the weight."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        probs = logits.sigmoid()
        beta2 = 4 * weight
        hits = (probs * targets).sum(1)
        score = (1 + beta2) * hits / (beta2 * targets.sum(1) + probs.sum(1) + EPSILON)
        return 1 - score.mean()

    return loss


def _forgiving(weight: float) -> Loss:
    """`BCE(x, y) + weight * BCE(x * y, y)`: where y = 0 the second term is constant.

    On hard labels its gradient is that of `bce` with the weight 1 + weight.
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        plain = F.binary_cross_entropy_with_logits(logits, targets)
        return plain + weight * F.binary_cross_entropy_with_logits(logits * targets, targets)

    return loss


def _bce_focal(weight: float) -> Loss:
    """Binary cross-entropy and the weight times focal loss."""
    bce, focal = _bce(1.0), _focal(1.0)
    return lambda logits, targets: bce(logits, targets) + weight * focal(logits, targets)


def _bce_f2(weight: float) -> Loss:
    """Binary cross-entropy and the weight times soft F2."""
    bce, soft = _bce(1.0), _soft_f2(1.0)
    return lambda logits, targets: bce(logits, targets) + weight * soft(logits, targets)


def _asymmetric(weight: float) -> Loss:
    """timm's asymmetric loss (Ridnik et al. 2021); the weight is gamma_neg, 0 or at least 1.

    timm's own default sums over the labels; here the mean over all entries is taken, the scale of the others.
    """
    if 0 < weight < 1:  # the derivative of 0**gamma, taken where clipping has made a negative's cost 0
        raise ConfigError(
            f"loss_weight of the asymmetric loss is gamma_neg, which must be 0 or at least 1, got {weight}: "
            "its gradient has no value between them"
        )
    loss: Loss = AsymmetricLossMultiLabel(gamma_neg=weight, reduction="mean")
    return loss


LOSSES: dict[str, tuple[Callable[[float], Loss], float]] = {  # builder, default weight
    "bce": (_bce, 1.0),
    "focal": (_focal, 1.0),
    "soft_f2": (_soft_f2, 1.0),
    "forgiving": (_forgiving, 1.0),
    "bce+focal": (_bce_focal, 1.0),
    "bce+f2": (_bce_f2, 1.0),
    "asymmetric": (_asymmetric, 4.0),
}
