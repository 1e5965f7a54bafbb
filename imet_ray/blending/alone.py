"""Each member alone: its best threshold wherever that lies, for a search near the blend's would find a hill beside it.

All cells above a tenth of the member's first threshold are kept, a few a picture. A member's shifts are those of all
solutions, on the blend's scale and from its first threshold; here they become thresholds of its probabilities and back.
"""

import numpy as np

from imet_ray.averaging import Scale, as_probability, on_scale
from imet_ray.blending.cells import DisputedCells
from imet_ray.blending.fit import settled_shifts

LOWEST = (
    0.1  # of the first threshold, which predicts more labels than there are: nobody wants ten times as many
)
ALONE = np.ones(1)  # the only weights


def cells_alone(
    probs: np.ndarray, threshold: float, labels: np.ndarray, groups: np.ndarray | None
) -> DisputedCells:
    """The cells between a tenth of the threshold and 1.

    Args:
        probs: (N, C) float16 or float32, no margins.
        threshold: the member's first one, a probability.
        labels: (N, C) uint8.
        groups: (C,) int, the group of each label.
    """
    low = LOWEST * threshold
    return DisputedCells.build([probs], [(low + 1) / 2], labels, window=(1 - low) / 2, groups=groups)


def best_shifts(alone: DisputedCells, start: np.ndarray, first: float, scale: Scale) -> np.ndarray:
    """The member's best threshold, or one for each group, as shifts from its first one.

    Args:
        alone: of `cells_alone`, of the pictures to fit on.
        start: (1,) or (G,) shifts.
        first: the member's first threshold, on the scale.
    """
    found = settled_shifts(alone, ALONE, _inside(alone, start, first, scale))
    return np.asarray(on_scale(found + alone.thresholds[0], scale) - first)


def counts_alone(
    alone: DisputedCells, shifts: np.ndarray, first: float, scale: Scale
) -> tuple[np.ndarray, np.ndarray]:
    """Labels predicted and true, and labels predicted, of each picture: (N,) int64 each."""
    return alone.counts(ALONE, _inside(alone, shifts, first, scale))


def _inside(alone: DisputedCells, shifts: np.ndarray, first: float, scale: Scale) -> np.ndarray:
    limits = as_probability(first + shifts, scale) - alone.thresholds[0]
    return np.asarray(np.clip(limits, -alone.reach, alone.reach))
