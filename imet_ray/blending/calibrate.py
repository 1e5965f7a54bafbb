"""The calibration of an ensemble's probabilities: fitted on its out-of-fold predictions, and what it is worth.

Cells are counted by probability, rounded to float16, fold and truth: these counts are fitted and scored. Nested:
each fold by the calibration, weights and models that were fitted without it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import xlogy

from imet_ray.blending.cross_fit import CrossFit, Judged, blended
from imet_ray.cores import usable_cores
from imet_ray.prediction.calibration import HIGH, LOW, Calibration, log_odds
from imet_ray.prediction.metrics import FLOAT16_ONE

ROWS = 2048  # pictures per block
BINS = 15  # of equal width, of the expected calibration error (Guo et al. 2017)
SLOPES = (1e-2, 1e2)  # searched between
CODES = FLOAT16_ONE + 1  # of the float16 numbers from 0 to 1

# probabilities (n, C) float32 of the pictures (n,)
Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class CalibrationFound:
    """A calibration, and what it is worth."""

    calibration: Calibration
    log_loss_before: float  # per cell, nested, as the next ones
    log_loss: float
    error_before: float  # expected calibration error
    error: float

    def to_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return vars(self) | {"calibration": self.calibration.model_dump(mode="json")}

    def __str__(self) -> str:
        return (
            f"calibration (slope {self.calibration.slope:.3f}, intercept {self.calibration.intercept:+.3f}), nested: "
            f"log loss {self.log_loss_before:.5f} before, {self.log_loss:.5f} after; expected calibration error "
            f"{self.error_before:.5f} before, {self.error:.5f} after"
        )


def calibration_of(judged: Judged, found: CrossFit) -> CalibrationFound | None:
    """The calibration of a blend, or of level 2 in the problem of its own; None where members give no probabilities."""
    problem, fits = found.problem, found.fits
    if problem.margins:
        return None

    def own(rows: np.ndarray) -> np.ndarray:
        return blended(judged.whole, problem, fits, rows)

    def nested(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), problem.labels.shape[1]), np.float32)
        for fold in np.unique(problem.folds[rows]).tolist():
            of = problem.folds[rows] == fold
            out[of] = blended(judged.by_fold[fold], problem, fits, rows[of])
        return out

    return calibrate(
        count_cells(own, problem.labels, problem.folds), count_cells(nested, problem.labels, problem.folds)
    )


def count_cells(probs: Rows, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """How many cells have a probability: (F, 2, CODES) int64, by fold, truth and float16 code.

    Args:
        labels: (N, C) uint8.
        folds: (N,) int64.
    """
    names = np.unique(folds)
    place = np.searchsorted(names, folds)

    def counted(start: int) -> np.ndarray:
        rows = np.arange(start, min(start + ROWS, len(labels)))
        codes = np.clip(probs(rows), 0, 1).astype(np.float16).view(np.uint16).astype(np.int64)
        cells = (2 * place[rows, None] + labels[rows]) * CODES + codes
        return np.bincount(cells.ravel(), minlength=2 * len(names) * CODES)

    with ThreadPoolExecutor(usable_cores()) as pool:
        total: np.ndarray = sum(pool.map(counted, range(0, len(labels), ROWS)), np.zeros(1, np.int64))
    return total.reshape(len(names), 2, CODES)


def calibrate(own: np.ndarray, nested: np.ndarray) -> CalibrationFound:
    """Fit on all cells, and score without each fold.

    Args:
        own: (F, 2, CODES) counts of the ensemble's out-of-fold probabilities.
        nested: likewise, of the nested ones.
    """
    probs = np.arange(CODES, dtype=np.uint16).view(np.float16).astype(np.float64)
    total = nested.sum(axis=0)
    after = [fit(total - of_fold).applied(probs) for of_fold in nested]
    cells = nested.sum()
    before = [np.clip(probs, LOW, HIGH)] * len(nested)
    return CalibrationFound(
        calibration=fit(own.sum(axis=0)),
        log_loss_before=_log_loss(before, nested) / cells,
        log_loss=_log_loss(after, nested) / cells,
        error_before=_calibration_error(before, nested) / cells,
        error=_calibration_error(after, nested) / cells,
    )


def fit(counts: np.ndarray) -> Calibration:
    """Slope and intercept with the least log loss, for targets just inside 0 and 1 (Platt 1999): (2, CODES) counts."""
    seen = np.flatnonzero(counts.sum(axis=0))
    odds = log_odds(seen.astype(np.uint16).view(np.float16))
    absent, present = counts[:, seen].astype(np.float64)
    n_absent, n_present = absent.sum(), present.sum()
    low, high = 1 / (n_absent + 2), (n_present + 1) / (n_present + 2)
    weight, target = absent + present, absent * low + present * high

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        z = at[0] * odds + at[1]
        error = weight / (1 + np.exp(-np.clip(z, -500, 500))) - target
        value = float((weight * np.logaddexp(0, z) - target * z).sum())
        return value / weight.sum(), np.array([(error * odds).sum(), error.sum()]) / weight.sum()

    best = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[SLOPES, (None, None)], tol=1e-12)
    return Calibration(slope=float(best.x[0]), intercept=float(best.x[1]))


def _log_loss(probs: list[np.ndarray], counts: np.ndarray) -> float:
    """The sum over all cells: F arrays (CODES,) of the folds' probabilities, (F, 2, CODES) counts."""
    return -sum(
        float(
            (
                xlogy(present, np.clip(p, 1e-12, 1))
                + xlogy(absent, np.clip(1 - p.astype(np.float64), 1e-12, 1))
            ).sum()
        )
        for p, (absent, present) in zip(probs, counts, strict=True)
    )


def _calibration_error(probs: list[np.ndarray], counts: np.ndarray) -> float:
    """The sum over bins of how far the number of labels is from what was expected."""
    off = np.zeros(BINS)
    for p, (absent, present) in zip(probs, counts, strict=True):
        places = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        np.add.at(off, places, p * (absent + present) - present)
    return float(np.abs(off).sum())
