"""Scores: F2 a picture, averaged over pictures, and the one threshold that is best for it.

Everywhere a label is predicted where its probability is *above* the threshold. Deciding without a threshold is
`imet_ray.prediction.decode`.
"""

import numpy as np

from imet_ray.errors import DataError

BETA2 = 4.0  # F2 weighs recall over precision: beta squared
ROWS = 4096  # pictures a block
HALF_ONE = 0x3C00  # the bits of 1.0 in float16
PREDICT_ALL = -5e-4  # a threshold that every probability is above, and close: margins are weighed in a blend
OUTSIDE = "probabilities must be numbers in 0..1, got NaN or one outside: the predictions cannot be used"


def f2_per_image(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F2 of each picture: 5 tp / (4 true + predicted), 0 where there is neither.

    Args:
        predicted: (N, C) bool.
        labels: (N, C) uint8 or bool.

    Returns:
        (N,) float64.
    """
    truth = labels.astype(bool)
    hits = np.count_nonzero(predicted & truth, axis=1)
    return f2_of_counts(hits, np.count_nonzero(truth, axis=1), np.count_nonzero(predicted, axis=1))


def f2_score(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `f2_per_image`."""
    return float(f2_per_image(predicted, labels).mean())


def best_threshold(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The threshold with the best F2, found exactly: every distinct probability is tried.

    As the threshold falls, each cell that passes it changes its picture's F2 by a known amount; the changes are
    summed in the order of the probabilities.

    Args:
        probs: (N, C) float16 or float32 in [0, 1]; float16 takes a fifth of the time.
        labels: (N, C) uint8 or bool.

    Returns:
        The threshold, half-way between two neighbouring probabilities (below 0 where all labels should be
        predicted), and its F2. Compare it in float32, as `decode_threshold` does: float16 would round it.

    Raises:
        DataError: if a probability is NaN or outside 0..1.
    """
    if probs.dtype == np.float16:
        values, gains = _gains_by_code(probs, labels)
    else:
        values, gains = _gains_by_sorting(probs, labels)
    totals = np.cumsum(gains)
    if totals.max(initial=0.0) <= 0:
        return 1.0, 0.0
    best = int(np.argmax(totals))
    f2 = float(totals[best] / len(probs))
    if best + 1 == len(values):
        return PREDICT_ALL, f2
    above, below = float(values[best]), float(values[best + 1])
    middle = (above + below) / 2
    # between neighbours of float32 there is no number left; "above the lower one" says the same
    return (middle if np.float32(middle) < above else below), f2


def per_label(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each label: (C,) float64 each, 0 where undefined."""
    truth = labels.astype(bool)
    hits = np.count_nonzero(predicted & truth, axis=0)
    chosen, true = np.count_nonzero(predicted, axis=0), np.count_nonzero(truth, axis=0)
    return hits / np.maximum(chosen, 1), hits / np.maximum(true, 1)


def f2_of_counts(hits: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """F2 of counts that broadcast: (1 + beta^2) tp / (beta^2 true + predicted), 0 where there is neither."""
    score: np.ndarray = (1 + BETA2) * hits / np.maximum(BETA2 * true + chosen, 1)
    return score


def _gains(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each cell adds to its picture's F2 when it passes the threshold: (n, C) float64, in `order`."""
    truth = np.take_along_axis(labels.astype(bool), order, axis=1)
    hits = np.cumsum(truth, axis=1)
    chosen = np.arange(1, order.shape[1] + 1)
    scores = f2_of_counts(hits, np.count_nonzero(labels, axis=1)[:, None], chosen)
    return np.diff(scores, axis=1, prepend=0.0)


def _gains_by_code(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct probabilities, falling, and the gain at each; float16 has 15,361 of them in [0, 1]."""
    gains = np.zeros(HALF_ONE + 1)
    seen = np.zeros(HALF_ONE + 1, dtype=bool)
    for start in range(0, len(probs), ROWS):
        # + 0.0 makes -0.0 a 0.0; of numbers >= 0 the bits sort like the numbers, NaN and negative ones come last
        bits = (probs[start : start + ROWS] + np.float16(0)).view(np.uint16)
        if bits.max(initial=0) > HALF_ONE:
            raise DataError(OUTSIDE)
        codes = HALF_ONE - bits
        order = np.argsort(codes, axis=1, kind="stable")
        block = _gains(order, labels[start : start + ROWS])
        ranked = np.take_along_axis(codes, order, axis=1)
        gains += np.bincount(ranked.ravel(), block.ravel(), minlength=len(gains))
        seen[ranked] = True
    present = np.flatnonzero(seen)
    values = (HALF_ONE - present).astype(np.uint16).view(np.float16).astype(np.float64)
    return values, gains[present]


def _gains_by_sorting(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct probabilities, falling, and the gain at each."""
    if not ((probs >= 0) & (probs <= 1)).all():
        raise DataError(OUTSIDE)
    order = np.argsort(-probs, axis=1, kind="stable")
    gains = _gains(order, labels).ravel()
    values = np.take_along_axis(probs, order, axis=1).ravel()
    by_value = np.argsort(-values, kind="stable")
    values, gains = values[by_value].astype(np.float64), gains[by_value]
    first = np.flatnonzero(np.diff(values, prepend=np.inf))
    return values[first], np.add.reduceat(gains, first) if len(first) else gains


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Binary cross-entropy, the mean over all entries of (n, C) probabilities and labels."""
    p = np.clip(probs.astype(np.float32), 1e-6, 1 - 1e-6)
    return float(-np.where(labels, np.log(p), np.log1p(-p)).mean())
