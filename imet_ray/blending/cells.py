"""The blend's exact objective on the cells that members disagree about.

A cell (picture i, label c) is predicted where sum_m w_m (p_m[i, c] - t_m) > 0. Where all members stand on one side
of their thresholds no weights >= 0 can change it: such cells are counted once, and only the others are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imet_ray.metrics import f2_of_counts

ROWS = 2048  # pictures a block while building


@dataclass(frozen=True)
class DisputedCells:
    """What is left of the out-of-fold predictions once the agreed cells are counted."""

    margins: np.ndarray  # (M, D) float32: p_m - t_m of the disputed cells
    image: np.ndarray  # (D,) int32: the cell's picture
    label: np.ndarray  # (D,) bool: whether the label is true
    hits: np.ndarray  # (N,) int64: agreed and true
    chosen: np.ndarray  # (N,) int64: agreed
    true: np.ndarray  # (N,) int64

    @classmethod
    def build(
        cls, probs: Sequence[np.ndarray], thresholds: Sequence[float], labels: np.ndarray
    ) -> "DisputedCells":
        """Split the cells.

        Args:
            probs: M arrays (N, C) float16 or float32, memory-mapped or not.
            thresholds: M floats, one a member.
            labels: (N, C) uint8 or bool.

        Returns:
            The disputed cells, by picture; for one member there are none.
        """
        margins, images, truths, hits, chosen = [], [], [], [], []
        for start in range(0, len(labels), ROWS):
            block = slice(start, start + ROWS)
            truth = labels[block].astype(bool)
            margin = np.stack([member_margin(p[block], t) for p, t in zip(probs, thresholds, strict=True)])
            above = (margin > 0).sum(axis=0)
            agreed = above == len(probs)
            disputed = (above > 0) & ~agreed
            hits.append(np.count_nonzero(agreed & truth, axis=1))
            chosen.append(np.count_nonzero(agreed, axis=1))
            rows, columns = np.nonzero(disputed)
            margins.append(margin[:, rows, columns])
            images.append((rows + start).astype(np.int32))
            truths.append(truth[rows, columns])
        return cls(
            margins=np.concatenate(margins, axis=1),
            image=np.concatenate(images),
            label=np.concatenate(truths),
            hits=np.concatenate(hits),
            chosen=np.concatenate(chosen),
            true=np.count_nonzero(labels, axis=1),
        )

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels predicted and true, and labels predicted, of each picture: (N,) int64 each."""
        n = len(self.true)
        won = weighted_margin(self.margins, weights) > 0
        chosen = self.chosen + np.bincount(self.image[won], minlength=n)
        return self.hits + np.bincount(self.image[won & self.label], minlength=n), chosen

    def score(self, weights: np.ndarray) -> float:
        """Mean F2 under the weights: (M,) >= 0, not all 0."""
        hits, chosen = self.counts(weights)
        return float(f2_of_counts(hits, self.true, chosen).mean())


def member_margin(probs: np.ndarray, threshold: float) -> np.ndarray:
    """p - t in float32, the one arithmetic that every way of deciding a cell uses."""
    margin: np.ndarray = probs.astype(np.float32) - np.float32(threshold)
    return margin


def weighted_margin(margins: np.ndarray | Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """sum_m w_m margin_m in float32, in the order of the members: the sign decides."""
    total = np.float32(weights[0]) * margins[0]
    for weight, margin in zip(weights[1:], margins[1:], strict=True):
        total += np.float32(weight) * margin
    return np.asarray(total)
