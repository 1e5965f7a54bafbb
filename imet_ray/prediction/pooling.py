"""How members are averaged: as probabilities, or as log-odds, from which the mean becomes a probability again.

With log-odds a member that is sure outvotes two that are not; which of the two is better is measured by the blend
(a logarithmic against a linear opinion pool, Genest & Zidek 1986).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import expit, logit

Scale = Literal["probability", "log-odds"]
SCALES: tuple[Scale, ...] = ("probability", "log-odds")
LOW = 2.0**-25  # float16's numbers begin at twice that
HIGH = 1 - 2.0**-12  # what is above it float16 rounds to 1
ROWS = 4096  # pictures per block


def on_scale(probs: np.ndarray, scale: Scale) -> np.ndarray:
    """Probabilities as what is averaged, float32; a probability of 0 or 1 is a large number, not an infinite one.

    Args:
        probs: any shape, float16 or float32; with "probability" also margins.
    """
    wide = probs.astype(np.float32)
    if scale == "probability":
        return wide
    clipped = np.clip(wide, np.float32(LOW), np.float32(HIGH))
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def averaged(values: Sequence[np.ndarray] | np.ndarray, weights: np.ndarray, scale: Scale) -> np.ndarray:
    """The weighted mean of M arrays (n, C) on a scale, as probabilities: (n, C) float32.

    Args:
        weights: (M,) with sum 1; members of weight 0 are not looked at.
    """
    total: np.ndarray | None = None
    for value, weight in zip(values, weights, strict=True):
        if weight > 0:
            total = add_share(total, weight, value, scale)
    assert total is not None
    return as_probability(total, scale, out=total)


def add_share(total: np.ndarray | None, share: float, probs: np.ndarray, scale: Scale) -> np.ndarray:
    """total + share * probs on the scale, in blocks: no other array of that size."""
    if total is None:
        total = np.zeros(probs.shape, dtype=np.float32)
    for start in range(0, len(probs), ROWS):
        block = slice(start, start + ROWS)
        total[block] += np.float32(share) * on_scale(probs[block], scale)
    return total


def as_probability(total: np.ndarray, scale: Scale, *, out: np.ndarray | None = None) -> np.ndarray:
    """A mean on a scale as a probability.

    Args:
        out: where it is written, such as `total` itself; None: a new array.
    """
    return total if scale == "probability" else np.asarray(expit(total, out=out))


def threshold_on_scale(thresholds: np.ndarray, scale: Scale) -> np.ndarray:
    """Thresholds of a probability as those of a mean on a scale; float64, so that nothing is lost on the way back."""
    return thresholds if scale == "probability" else np.asarray(logit(np.clip(thresholds, LOW, HIGH)))
