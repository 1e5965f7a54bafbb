"""A directory of level-1 files as the solution of 2019 leaves it, small."""

from pathlib import Path

import numpy as np
import pytest

from imet_ray.blending.imet2019_files import read_2019
from imet_ray.errors import ImetError

FOLDS = np.array([1, 0, 2, 1, 0, 1])
LABELS = ["0 2", "1", "3", "0", "2", "1 3"]
N, C = 6, 4
MODEL = "2b_se_resnext50"


def margins(seed: int = 0) -> np.ndarray:
    """(N, C) float32 in -1..1."""
    return np.random.default_rng(seed).uniform(-1, 1, (N, C)).astype(np.float32)


class Folder:
    """A directory as the solution leaves it."""

    def __init__(self, root: Path):
        self.root = root
        self.folds, self.labels = root / "folds.npy", root / "train.csv"
        np.save(self.folds, FOLDS)
        self.write_labels(LABELS)

    def write_labels(self, rows, start="id,attribute_ids\n", end="\n"):
        text = start + "".join(f"p{i},{row}{end}" for i, row in enumerate(rows))
        self.labels.write_bytes(text.encode())

    def file(self, fold: int, model: str = MODEL) -> Path:
        return self.root / f"level1_train_{model}_f{fold}_e0{fold}_0.59{fold}0.npy"

    def add(self, model: str = MODEL, values: np.ndarray | None = None) -> Path:
        """All folds of a model; the file of fold 0."""
        values = margins() if values is None else values
        for fold in range(3):
            np.save(self.file(fold, model), values[np.equal(FOLDS, fold)])
        return self.file(0, model)

    def read(self, *files: Path):
        return read_2019(files, self.folds, self.labels)

    def refusal(self, kind: type[ImetError], *files: Path) -> str:
        with pytest.raises(kind) as caught:
            self.read(*files)
        assert "\n" not in str(caught.value)
        return str(caught.value)
