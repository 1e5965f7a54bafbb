"""How probabilities are best calibrated: the two numbers that a blend fits, beside the other usual ways.

    uv run python -m benchmarks.calibration [--name demo] [--runs runs]    seconds, after that run's sweep

The probabilities are the out-of-fold ones of all whole variants, averaged: nothing is fitted but the calibration, which
is fitted on all folds but the one that it is scored on. Log loss is per cell. The expected calibration error (Guo et
al. 2017) has 15 bins of equal width; "by label" is its mean over labels, which one calibration for all may miss.
The peers are scikit-learn's: isotonic regression, and a logistic regression for each label.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from benchmarks.recipes import out_of_fold, whole
from imet_ray.blending.calibrate import BINS, count_cells, fit
from imet_ray.commands.setup import reopen
from imet_ray.prediction.calibration import log_odds
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs

LEAST = 1e-6  # a probability, for the logarithm: isotonic regression says 0 and 1

# probabilities and labels to fit on, probabilities to calibrate: all (n, C)
Way = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def as_they_are(known: np.ndarray, labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    return probs


def blend_way(known: np.ndarray, labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    counts = count_cells(lambda rows: known[rows], labels, np.zeros(len(labels), np.int64))
    return fit(counts[0]).applied(probs)


def isotonic(known: np.ndarray, labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    found = IsotonicRegression(out_of_bounds="clip").fit(known.ravel(), labels.ravel())
    return np.asarray(found.predict(probs.ravel())).reshape(probs.shape)


def by_label(known: np.ndarray, labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    columns = []
    for c in range(labels.shape[1]):
        of, seen = log_odds(known[:, c : c + 1]), labels[:, c]
        if seen.min() == seen.max():
            columns.append(probs[:, c])
            continue
        found = LogisticRegression().fit(of, seen)
        columns.append(found.predict_proba(log_odds(probs[:, c : c + 1]))[:, 1])
    return np.stack(columns, axis=1)


WAYS: dict[str, Way] = {
    "as they are": as_they_are,
    "two numbers (the blend's)": blend_way,
    "isotonic regression": isotonic,
    "two numbers per label": by_label,
}


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    sure = np.clip(probs, LEAST, 1 - LEAST)
    return float(-np.where(labels == 1, np.log(sure), np.log1p(-sure)).mean())


def calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
    places = np.minimum((probs.ravel() * BINS).astype(np.int64), BINS - 1)
    off = np.bincount(places, weights=probs.ravel() - labels.ravel(), minlength=BINS)
    return float(np.abs(off).sum() / probs.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="demo", help="of the run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    run = reopen(Runs(args.runs), args.name, Cache.default())
    members = [out_of_fold(run, standing).probs for standing in whole(run).values()]
    probs = np.mean([np.asarray(one, np.float32) for one in members], axis=0, dtype=np.float32)
    labels, folds = run.data.labels, run.data.folds
    print(f"{args.name}: {len(members)} variants, {labels.shape[0]:,} pictures x {labels.shape[1]:,} labels")
    print(f"{'':<28}{'log loss':>10}{'error':>10}{'by label':>10}")
    for name, way in WAYS.items():
        found = np.empty(probs.shape)
        for fold in np.unique(folds):
            held_out = folds == fold
            found[held_out] = way(probs[~held_out], labels[~held_out], probs[held_out])
        error = calibration_error(found, labels)
        of_labels = [calibration_error(found[:, c], labels[:, c]) for c in range(labels.shape[1])]
        print(f"{name:<28}{log_loss(found, labels):>10.5f}{error:>10.5f}{np.mean(of_labels):>10.5f}")


if __name__ == "__main__":
    main()
