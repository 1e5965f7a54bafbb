"""Each member alone: its best threshold wherever that lies, for a search near the blend's would find a hill beside it.

The cells above a low probability are kept, some 16 a picture. Their thresholds are log-odds, on which small ones
are as far apart as large ones. A member's shifts are those of all solutions, on the blend's scale and from its first
threshold; here they become such thresholds and back.
"""

import numpy as np
from scipy.special import expit, logit

from imet_ray.blending.disputed_cells import INSIDE, DisputedCells
from imet_ray.blending.methods import settled_shifts
from imet_ray.prediction.pooling import HIGH, LOW, Scale, on_scale

MOST_CELLS = 16  # a picture, or TIMES its labels: twice or three times as many as any blend predicts
TIMES = 5
ALONE = np.ones(1)  # the only weights


def cells_alone(
    probs: np.ndarray, low: float, labels: np.ndarray, groups: np.ndarray | None
) -> DisputedCells:
    """The cells between `low` and 1.

    Args:
        probs: (N, C) float16 or float32, no margins.
        low: a probability, as of `lowest`.
        labels: (N, C) uint8.
        groups: (C,) int, the group of each label.
    """
    bottom, top = (float(on_scale(np.array(end), "log-odds")) for end in (max(low, 2 * LOW), 1.0))
    middle, window = (bottom + top) / 2, (top - bottom) / 2 / INSIDE
    return DisputedCells.build([probs], [middle], labels, window=window, scale="log-odds", groups=groups)


def most_cells(n_pictures: int, mean_labels: float, size: int) -> int:
    """How many cells of some pictures are worth keeping.

    Args:
        size: cells that there are.
    """
    return int(np.clip(n_pictures * max(MOST_CELLS, TIMES * mean_labels), 1, size))


def lowest(sample: np.ndarray, mean_labels: float) -> float:
    """The value that as many cells of a sample (S, C) reach as are worth keeping."""
    return kth_largest(sample, most_cells(len(sample), mean_labels, sample.size))


def kth_largest(values: np.ndarray, k: int) -> float:
    """1 is the largest."""
    return float(np.partition(values.ravel(), values.size - k)[values.size - k])


def best_shifts(alone: DisputedCells, n_shifts: int, first: float, scale: Scale) -> np.ndarray:
    """The member's best threshold, or one for each group, as shifts from its first one: (n_shifts,).

    Args:
        alone: of `cells_alone`, of the pictures to fit on.
        first: the member's first threshold, on the scale.
    """
    start = _inside(alone, np.zeros(n_shifts), first, scale)
    odds = settled_shifts(alone, ALONE, start) + alone.thresholds[0]
    return np.asarray((odds if scale == "log-odds" else expit(odds)) - first)


def counts_alone(
    alone: DisputedCells, shifts: np.ndarray, first: float, scale: Scale
) -> tuple[np.ndarray, np.ndarray]:
    """Labels predicted and true, and labels predicted, of each picture: (N,) int64 each."""
    return alone.counts(ALONE, _inside(alone, shifts, first, scale))


def score_alone(alone: DisputedCells, shifts: np.ndarray, first: float, scale: Scale) -> float:
    """Mean F2."""
    return alone.score(ALONE, _inside(alone, shifts, first, scale))


def _inside(alone: DisputedCells, shifts: np.ndarray, first: float, scale: Scale) -> np.ndarray:
    """Shifts on the scale as those of the cells."""
    limits = first + shifts
    odds = limits if scale == "log-odds" else logit(np.clip(limits, LOW, HIGH))
    return np.asarray(np.clip(odds - alone.thresholds[0], -alone.reach, alone.reach))
