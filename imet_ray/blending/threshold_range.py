"""Where thresholds are searched: the blend's, around what is best for uniform weights, and a single member's.

A search finds the nearest maximum. So the blend's range holds what is best for uniform weights on a sample: on all of
it and without each fold, for all labels and for each group, with all members and without one.

A single member's best threshold may lie anywhere. Its cells above a low probability are kept, some 16 per picture, on
log-odds, on which small thresholds are as far apart as large ones.
"""

from dataclasses import dataclass, replace

import numpy as np

from imet_ray.blending.disputed_cells import INSIDE, DisputedCells, member_margin
from imet_ray.blending.methods import uniform
from imet_ray.prediction.metrics import Metric, metric_named
from imet_ray.prediction.pooling import LOW, Scale, averaged, on_scale

ROOM = 0.3  # beyond what is best for uniform weights, in mean thresholds or log-odds
LEAST = 0.01
FEW = 10  # members; of more, one changes little
LEAST_THRESHOLD = 2**-10
# predicted labels per true one where the search begins; measured for F2, and for others only a start: the range is laid
# around the metric's own best thresholds
PREDICTED = 1.75
MOST_CELLS = 16  # per picture, or TIMES its labels: twice or three times as many as any blend predicts
TIMES = 5


@dataclass(frozen=True)
class Sample:
    """Some pictures: where thresholds begin, and what decoders without a short cut are fitted on."""

    rows: np.ndarray  # (S,) rising
    probs: np.ndarray  # (M, S, C) float16 or float32
    labels: np.ndarray  # (S, C) uint8
    folds: np.ndarray  # (S,) int64


@dataclass(frozen=True)
class ThresholdRange:
    """A range of shifts of the members' first thresholds, on a scale."""

    first: tuple[float, ...]  # (M,)
    low: float
    high: float
    floor: float  # below, too many cells are in dispute
    ceiling: float  # above, nothing is predicted

    @classmethod
    def around(
        cls, sample: Sample, scale: Scale, *, groups: np.ndarray, mean_labels: float, metric: str
    ) -> "ThresholdRange":
        """The first one.

        Args:
            groups: (C,) int, the group of each label.
            mean_labels: per picture.
        """
        first = on_scale(np.array(first_thresholds(sample, mean_labels)), scale).astype(np.float64)
        unit = float(first.mean()) if scale == "probability" else 1.0
        best = np.array(_best_of_uniform(sample, scale, groups, metric_named(metric)))
        wanted = on_scale(best, scale).astype(np.float64) - first.mean()
        top = np.full(sample.labels.shape, -np.inf, dtype=np.float32)
        for probs, own in zip(sample.probs, first, strict=True):
            np.maximum(top, member_margin(probs, own, scale), out=top)
        floor = min(lowest(top, mean_labels), float(wanted.min()) - LEAST)
        ceiling = float(on_scale(np.array(1.0), scale)) - float(first.min())
        low = max(floor, float(wanted.min()) - ROOM * unit)
        high = max(low + 2 * LEAST, min(ceiling, float(wanted.max()) + ROOM * unit))
        return cls(tuple(first.tolist()), low, high, floor, ceiling)

    @property
    def thresholds(self) -> list[float]:
        """(M,) from which shifts go as far up as down."""
        return [first + (self.low + self.high) / 2 for first in self.first]

    @property
    def half(self) -> float:
        """How far they go."""
        return (self.high - self.low) / 2

    def wider(self, down: bool, up: bool) -> "ThresholdRange":
        """Longer by its length towards the ends that are asked for; itself where these cannot move."""
        length = self.high - self.low
        return replace(
            self,
            low=max(self.floor, self.low - length) if down else self.low,
            high=max(self.high, min(self.ceiling, self.high + length)) if up else self.high,
        )


def _best_of_uniform(sample: Sample, scale: Scale, groups: np.ndarray, metric: Metric) -> list[float]:
    """The best thresholds of uniform weights on the sample and on parts of it, of fewer members too: probabilities."""
    m = len(sample.probs)
    mean = averaged(sample.probs, uniform(m), scale).clip(0, 1).astype(np.float16)
    folds = np.unique(sample.folds)
    parts = [np.ones(len(mean), dtype=bool), *(sample.folds != fold for fold in folds)]
    best = [metric.best_threshold(mean[part], sample.labels[part])[0] for part in parts if part.any()]
    numbers = np.unique(groups)
    for group in numbers if len(numbers) > 1 else ():
        columns = np.flatnonzero(groups == group)
        rows = np.flatnonzero(sample.labels[:, columns].any(axis=1))  # the others have labels of other groups
        if len(rows):
            own = np.ix_(rows, columns)
            best.append(metric.best_threshold(mean[own], sample.labels[own])[0])
    if 2 < m <= FEW:  # what each member is worth is told by the others' best threshold
        for rest in (1 - np.eye(m)) / (m - 1):
            others = averaged(sample.probs, rest, scale).clip(0, 1).astype(np.float16)
            best.append(metric.best_threshold(others, sample.labels)[0])
    return best


def first_thresholds(sample: Sample, mean_labels: float) -> list[float]:
    """For each member the threshold that predicts PREDICTED times as many labels as pictures have on average.

    Only the number of labels is seen, so nothing leaks from fold to fold. It is above 0, else cells of probability 0
    would be in dispute.
    """
    count = PREDICTED * mean_labels * len(sample.labels)
    return [max(LEAST_THRESHOLD, kth_largest(probs, count)) for probs in sample.probs]


def single_cells(
    probs: np.ndarray, seen: np.ndarray, labels: np.ndarray, *, groups: np.ndarray | None, metric: str
) -> DisputedCells:
    """The cells of a single member between a low probability and 1; arguments as of `DisputedCells.build`.

    Args:
        seen: (S, C) of `probs`: a sample of pictures, which says what is low.
    """
    low = lowest(seen, float(labels.sum() / len(labels)))
    bottom, top = (float(on_scale(np.array(end), "log-odds")) for end in (max(low, 2 * LOW), 1.0))
    return DisputedCells.build(
        [probs],
        [(bottom + top) / 2],
        labels,
        half_range=(top - bottom) / 2 / INSIDE,
        scale="log-odds",
        groups=groups,
        metric=metric,
    )


def lowest(values: np.ndarray, mean_labels: float) -> float:
    """The value that as many cells of a sample (S, C) reach as are worth keeping."""
    return kth_largest(values, len(values) * max(MOST_CELLS, TIMES * mean_labels))


def kth_largest(values: np.ndarray, k: float) -> float:
    """The k-th largest of the values, 1 being the largest; the smallest where there are fewer."""
    place = values.size - int(np.clip(k, 1, values.size))
    return float(np.partition(values.ravel(), place)[place])
