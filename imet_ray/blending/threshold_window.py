"""Where the blend's thresholds are searched: members' first thresholds, and how far all of them may be moved together.

A search goes no further than the hill that it is on, so the window is laid around what is best for uniform weights on a
sample: in all of it and without each fold, for all labels and for each group, with all members and without one. It is
wider the more cells are in dispute within it; upwards these are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from imet_ray.blending.fit_jobs import Sample
from imet_ray.blending.methods import uniform
from imet_ray.blending.single_member import kth_largest, lowest
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import Scale, averaged, on_scale

ROOM = 0.3  # beyond what is best for uniform weights, in mean thresholds or log-odds
LEAST = 0.01
FEW = 10  # members; of more, one changes little
LEAST_THRESHOLD = 2**-10
PREDICTED = 1.75  # times the true labels: F2 weighs recall over precision, so it predicts more than there are


@dataclass(frozen=True)
class Window:
    """A range of shifts, on a scale."""

    first: tuple[float, ...]  # (M,) the members' first thresholds
    low: float
    high: float
    floor: float  # below, too many cells are in dispute
    ceiling: float  # above, nothing is predicted

    @classmethod
    def around(
        cls,
        thresholds: Sequence[float],
        scale: Scale,
        sample: Sample,
        folds: np.ndarray,
        mean_labels: float,
        of_label: np.ndarray | None,
    ) -> "Window":
        """The first one.

        Args:
            thresholds: (M,) first ones, probabilities.
            folds: (N,) int64.
            of_label: (C,) int, the group of each label.
        """
        first = on_scale(np.array(thresholds), scale).astype(np.float64)
        unit = float(first.mean()) if scale == "probability" else 1.0
        even = averaged(sample.probs, uniform(len(first)), scale).clip(0, 1).astype(np.float16)
        parts = [np.ones(len(even), dtype=bool), *(folds[sample.rows] != fold for fold in np.unique(folds))]
        best = [
            METRICS["f2"].best_threshold(even[part], sample.labels[part])[0] for part in parts if part.any()
        ]
        if of_label is not None:
            groups = [np.flatnonzero(of_label == group) for group in np.unique(of_label)]
            best += [
                METRICS["f2"].best_threshold(even[:, columns], sample.labels[:, columns])[0]
                for columns in groups
                if sample.labels[:, columns].any()
            ]
        if 2 < len(first) <= FEW:  # what each member is worth is told by the others' best threshold
            for rest in (1 - np.eye(len(first))) / (len(first) - 1):
                others = averaged(sample.probs, rest, scale).clip(0, 1).astype(np.float16)
                best.append(METRICS["f2"].best_threshold(others, sample.labels)[0])
        wanted = on_scale(np.array(best), scale).astype(np.float64) - first.mean()
        top = on_scale(sample.probs[0], scale) - np.float32(first[0])
        for probs, own in zip(sample.probs[1:], first[1:], strict=True):
            np.maximum(top, on_scale(probs, scale) - np.float32(own), out=top)
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

    def wider(self, down: bool, up: bool) -> "Window":
        """Longer by its length towards the ends that are asked for; itself where these cannot move."""
        length = self.high - self.low
        return replace(
            self,
            low=max(self.floor, self.low - length) if down else self.low,
            high=max(self.high, min(self.ceiling, self.high + length)) if up else self.high,
        )


def first_thresholds(sample: Sample, mean_labels: float) -> list[float]:
    """For each member the threshold that predicts PREDICTED times as many labels as pictures have on average.

    It is only where the search begins, and knows of the labels nothing but their number, so nothing leaks from fold to
    fold. Not so low that cells of probability 0 would be in dispute.

    Args:
        mean_labels: a picture.
    """
    found = []
    for probs in sample.probs:
        count = int(np.clip(PREDICTED * mean_labels * len(probs), 1, probs.size))
        found.append(max(LEAST_THRESHOLD, kth_largest(probs, count)))
    return found
