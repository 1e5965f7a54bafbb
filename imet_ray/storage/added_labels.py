"""Labels that a trial's training pictures got beside those of the data: what `added.npz` holds.

Which labels are chosen is `imet_ray.training.pseudo_labels`.
"""

from dataclasses import dataclass

import numpy as np

from imet_ray.errors import StoreError
from imet_ray.storage.checked_read import read_arrays
from imet_ray.storage.files import write_arrays
from imet_ray.storage.run_directory import TrialDirectory


@dataclass(frozen=True)
class Added:
    """Labels that pictures get, the surest first."""

    rows: np.ndarray  # (k,) int64, of the training split
    labels: np.ndarray  # (k,) int64, columns
    probs: np.ndarray  # (k,) float32, by which they were chosen

    def onto(self, labels: np.ndarray, target: float) -> np.ndarray:
        """What is learnt: (N, C) float32, the data's labels with the target where one is added."""
        found = labels.astype(np.float32)
        found[self.rows, self.labels] = target
        return found

    def __str__(self) -> str:
        pictures = len(np.unique(self.rows))
        return f"{len(self.rows):,} labels on {pictures:,} pictures"


def write_added(trial: TrialDirectory, added: Added) -> None:
    """Write `added.npz`."""
    write_arrays(trial.added, trial.files, rows=added.rows, labels=added.labels, probs=added.probs)


def read_added(trial: TrialDirectory) -> Added:
    """Read `added.npz`.

    Raises:
        StoreError: if it is missing or damaged.
    """
    trial.fetch(trial.added)
    arrays = read_arrays(trial.added)
    try:
        return Added(arrays["rows"], arrays["labels"], arrays["probs"])
    except KeyError as error:
        raise StoreError(f"{trial.added} has no array {error}: it holds no pseudo-labels") from None
