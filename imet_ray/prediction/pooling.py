"""How members are averaged: as probabilities, or as log-odds, from which the mean becomes a probability again.

Log-odds let a member that is sure outvote two that shrug; which of the two is better is measured by the blend
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
    total = np.zeros(values[0].shape, dtype=np.float32)
    for value, weight in zip(values, weights, strict=True):
        if weight > 0:
            total += np.float32(weight) * on_scale(value, scale)
    return as_probability(total, scale)


def as_probability(total: np.ndarray, scale: Scale) -> np.ndarray:
    """A mean on a scale as a probability."""
    return total if scale == "probability" else np.asarray(expit(total))


def threshold_on_scale(thresholds: np.ndarray, scale: Scale) -> np.ndarray:
    """Thresholds of a probability as those of a mean on a scale; float64, so that nothing is lost on the way back."""
    return thresholds if scale == "probability" else np.asarray(logit(np.clip(thresholds, LOW, HIGH)))
