"""Label sets as arrays, and what can be said of a whole collection of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def multi_hot(rows: Sequence[Sequence[int]], n_labels: int) -> np.ndarray:
    """Lists of label indices as (N, C) uint8."""
    hot = np.zeros((len(rows), n_labels), dtype=np.uint8)
    for i, labels in enumerate(rows):
        hot[i, list(labels)] = 1
    return hot


@dataclass(frozen=True)
class LabelStatistics:
    """How labels are spread."""

    mean: float  # a picture
    most: int  # on one picture
    counts: np.ndarray  # (C,) int64

    @classmethod
    def of(cls, labels: np.ndarray) -> "LabelStatistics":
        """From (N, C) uint8."""
        per_picture = labels.sum(axis=1, dtype=np.int64)
        return cls(
            mean=float(per_picture.mean()) if len(labels) else 0.0,
            most=int(per_picture.max(initial=0)),
            counts=labels.sum(axis=0, dtype=np.int64),
        )

    def text(self, names: Sequence[str], shown: int = 5) -> str:
        """Mean, head and tail, for people."""
        order = np.argsort(-self.counts, kind="stable")
        used = int(np.count_nonzero(self.counts))

        def listed(part: np.ndarray) -> str:
            return ", ".join(f"{names[c]} {self.counts[c]:,}" for c in part)

        lines = [
            f"labels        {len(names):,}, of which {used:,} are used; {self.mean:.2f} a picture, at most {self.most}",
            f"  head        {listed(order[:shown])}",
            f"  tail        {listed(order[-shown:])}",
        ]
        for bound in (10, 100):
            lines.append(f"  under {bound:<6}{int(np.count_nonzero(self.counts < bound)):,} labels")
        return "\n".join(lines)
