"""What predictions are judged by: a score per picture, averaged over pictures; higher is better.

A metric says what it makes of three counts of a picture: labels predicted and true, labels true, labels predicted. All
else follows from these: the score of decoded label sets, the one threshold that is best, the blend's exact search.
Everywhere a label is predicted where its probability is *above* the threshold.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from imet_ray.errors import ConfigError, DataError, unknown_name
from imet_ray.prediction import expected_fbeta

ROWS = 4096  # pictures per block
FLOAT16_ONE = 0x3C00  # the bits of 1.0 in float16
PREDICT_ALL = -5e-4  # a threshold that every probability is above, and close: margins are weighed in a blend
STEP = 1e-6  # of numeric slopes, in labels


class Metric(ABC):
    """A score of each picture, 0 to 1, from its counts. `of_counts` is all that a new one must have."""

    title: str  # for people: "F2"
    expects: bool = False  # whether it has `decode_expected`

    @abstractmethod
    def of_counts(self, hits: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The score of pictures, float64, of counts that broadcast and need not be whole.

        Args:
            hits: labels predicted and true.
            true: labels true.
            chosen: labels predicted.
        """

    def slopes(self, hits: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How the score grows with hits and with chosen labels: (N,) float64 each; arguments as of `of_counts`."""
        with_hits = self.of_counts(hits + STEP, true, chosen) - self.of_counts(hits - STEP, true, chosen)
        with_chosen = self.of_counts(hits, true, chosen + STEP) - self.of_counts(hits, true, chosen - STEP)
        return with_hits / (2 * STEP), with_chosen / (2 * STEP)

    def decode_expected(self, probs: np.ndarray, *, negatives: bool = False) -> np.ndarray:
        """For each picture the label set with the largest expected score, if labels are independent.

        Args:
            probs: (N, C) float in [0, 1].
            negatives: a picture may have no label, so its set may be empty.

        Returns:
            (N, C) bool; without `negatives` a set may be empty where all probabilities are 0.

        Raises:
            ConfigError: if this metric has none.
        """
        raise ConfigError(f"{self.title} has no way to maximise its expectation: use the decoder 'threshold'")

    def per_picture(self, decoded: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The score of each picture: (N,) float64.

        Args:
            decoded: (N, C) bool.
            labels: (N, C) uint8 or bool.
        """
        truth = labels.astype(bool)
        hits = np.count_nonzero(decoded & truth, axis=1)
        return self.of_counts(hits, np.count_nonzero(truth, axis=1), np.count_nonzero(decoded, axis=1))

    def score(self, decoded: np.ndarray, labels: np.ndarray) -> float:
        """The mean of `per_picture`."""
        return float(self.per_picture(decoded, labels).mean())

    def best_threshold(self, probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """The threshold with the best score, found exactly: every distinct probability is tried.

        As the threshold falls, each cell that passes it changes its picture's score by a known amount; the changes
        are summed in the order of the probabilities.

        Args:
            probs: (N, C) float16 or float32 in [0, 1]; float16 takes a fifth of the time.
            labels: (N, C) uint8 or bool.

        Returns:
            The threshold, half-way between two neighbouring probabilities (below 0 where all labels should be
            predicted), and its score. Compare it in float32, as `decode_threshold` does: float16 would round it.

        Raises:
            DataError: if a probability is NaN or outside 0..1.
        """
        true = np.count_nonzero(labels, axis=1)
        nothing = float(self.of_counts(np.zeros_like(true), true, np.zeros_like(true)).mean())
        by_value = self._gains_by_code if probs.dtype == np.float16 else self._gains_by_sorting
        values, gains = by_value(probs, labels)
        totals = np.cumsum(gains)
        if totals.max(initial=0.0) <= 0:
            return 1.0, nothing
        best = int(np.argmax(totals))
        score = nothing + float(totals[best] / len(probs))
        if best + 1 == len(values):
            return PREDICT_ALL, score
        above, below = float(values[best]), float(values[best + 1])
        middle = (above + below) / 2
        # between neighbours of float32 there is no number left; "above the lower one" says the same
        return (middle if np.float32(middle) < above else below), score

    def _gains(self, order: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What each cell adds to its picture's score when it passes the threshold: (n, C) float64, in `order`."""
        truth = np.take_along_axis(labels.astype(bool), order, axis=1)
        true = np.count_nonzero(labels, axis=1)[:, None]
        scores = self.of_counts(np.cumsum(truth, axis=1), true, np.arange(1, order.shape[1] + 1))
        nothing = self.of_counts(np.zeros_like(true), true, np.zeros_like(true))
        return np.diff(scores, axis=1, prepend=nothing)

    def _gains_by_code(self, probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct probabilities, falling, and the gain at each; float16 has 15,361 of them in [0, 1]."""
        gains = np.zeros(FLOAT16_ONE + 1)
        seen = np.zeros(FLOAT16_ONE + 1, dtype=bool)
        for start in range(0, len(probs), ROWS):
            # + 0.0 makes -0.0 a 0.0; of numbers >= 0 the bits sort like the numbers, NaN and negative ones come last
            bits = (probs[start : start + ROWS] + np.float16(0)).view(np.uint16)
            if bits.max(initial=0) > FLOAT16_ONE:
                raise _no_probabilities()
            codes = FLOAT16_ONE - bits
            order = np.argsort(codes, axis=1, kind="stable")
            block = self._gains(order, labels[start : start + ROWS])
            ranked = np.take_along_axis(codes, order, axis=1)
            gains += np.bincount(ranked.ravel(), block.ravel(), minlength=len(gains))
            seen[ranked] = True
        present = np.flatnonzero(seen)
        values = (FLOAT16_ONE - present).astype(np.uint16).view(np.float16).astype(np.float64)
        return values, gains[present]

    def _gains_by_sorting(self, probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct probabilities, falling, and the gain at each."""
        if not ((probs >= 0) & (probs <= 1)).all():
            raise _no_probabilities()
        order = np.argsort(-probs, axis=1, kind="stable")
        gains = self._gains(order, labels).ravel()
        values = np.take_along_axis(probs, order, axis=1).ravel()
        by_value = np.argsort(-values, kind="stable")
        values, gains = values[by_value].astype(np.float64), gains[by_value]
        first = np.flatnonzero(np.diff(values, prepend=np.inf))
        return values[first], np.add.reduceat(gains, first) if len(first) else gains


@dataclass(frozen=True)
class FBeta(Metric):
    """The weighted harmonic mean of precision and recall (van Rijsbergen 1979); recall counts beta times as much."""

    beta: float
    expects = True

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"F{self.beta:g}"

    def of_counts(self, hits: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """(1 + beta^2) hits / (beta^2 true + chosen); 1 where no label is true and none is predicted."""
        below = self.beta**2 * true + chosen
        score: np.ndarray = (1 + self.beta**2) * hits / np.maximum(below, 1)
        nothing = below == 0
        return np.where(nothing, 1.0, score) if np.any(nothing) else score

    def slopes(self, hits: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = np.maximum(self.beta**2 * true + chosen, 1e-9)
        of_hit = (1 + self.beta**2) / below
        return of_hit, -of_hit * hits / below

    def decode_expected(self, probs: np.ndarray, *, negatives: bool = False) -> np.ndarray:
        return expected_fbeta.decode(probs, self.beta**2, negatives=negatives)


def _no_probabilities() -> DataError:
    return DataError(
        "probabilities must be numbers in 0..1, got NaN or one outside: the predictions cannot be used"
    )


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Binary cross-entropy, the mean over all entries of (n, C) probabilities and labels."""
    p = np.clip(probs.astype(np.float32), 1e-6, 1 - 1e-6)
    return float(-np.where(labels, np.log(p), np.log1p(-p)).mean())


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ConfigError: listing those that there are.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


METRICS: dict[str, Metric] = {
    "f2": FBeta(2.0),
}
