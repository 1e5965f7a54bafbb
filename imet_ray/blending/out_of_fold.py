"""What level 2 is fitted on: the members' out-of-fold predictions, the truth, and whose labels a fit may see."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from imet_ray.prediction.level2 import Level2Model

PICTURES = 8192  # predicted at a time: their rows are copied


@dataclass(frozen=True)
class OutOfFold:
    """Level 2 is fitted without each fold in turn, and at last on all: F + 1 fits."""

    probs: Sequence[
        np.ndarray
    ]  # M arrays (N, C) float16 or float32 in [0, 1], not margins; memory-mapped or not
    labels: np.ndarray  # (N, C) uint8
    folds: np.ndarray  # (N,) int64, at least two of them
    metric: str = "f2"  # a key of `METRICS`
    seed: int = 0

    @cached_property
    def fold(self) -> np.ndarray:
        """(N,) int, the folds numbered 0..F - 1."""
        return np.asarray(np.unique(self.folds, return_inverse=True)[1])

    @property
    def n_folds(self) -> int:
        return int(self.fold.max()) + 1

    @cached_property
    def seen(self) -> np.ndarray:
        """Whose labels each fit sees: (F + 1, N) bool."""
        return np.asarray(self.fold != np.arange(self.n_folds + 1)[:, None])

    def nested(self, models: Sequence[Level2Model]) -> np.ndarray:
        """Each picture by the model that never saw its fold: (N, C) float16.

        Args:
            models: F or F + 1, of the fits in their order.
        """
        stacked = np.empty(self.labels.shape, dtype=np.float16)
        for fold, model in enumerate(models[: self.n_folds]):
            for rows in _runs(np.flatnonzero(self.fold == fold)):
                stacked[rows] = model.predict([p[rows] for p in self.probs])
        return stacked


def _runs(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + PICTURES] for start in range(0, len(rows), PICTURES)]


def bar(total: int, unit: str) -> "tqdm[Any]":
    """How far a fit is, where it takes over two seconds."""
    return tqdm(total=total, desc="level 2", unit=unit, delay=2, disable=None)
