"""From probabilities to label sets: by one threshold, or by the largest expected F2.

Expected F2 needs nothing tuned. For independent labels the best set is the k most probable ones for some k
(Lewis 1995), and
    E[F2 | k] = sum over j <= k of p_j * E[5 / (k + 4 (1 + S_j))],
where S_j counts the true labels other than j, a Poisson-binomial number. With u = z^4,
    E[1 / (k + 4 + 4 S_j)] = integral over z in [0, 1] of z^(k + 3) * product over i != j of (1 - p_i + p_i u),
a polynomial in z, which Gauss-Legendre nodes integrate exactly.
"""

from typing import Literal

import numpy as np

from imet_ray.errors import ConfigError
from imet_ray.metrics import BETA2
from imet_ray.specs import Frozen

TAIL = 0.02  # labels below it count only through the power sums of their probabilities, and are not chosen
POWERS = (
    4  # of these sums; the error of a log is below the tail's sum times TAIL^4 / 5, i.e. 3e-8 a true label
)
MAX_NODES = 128
BLOCK = 4_000_000  # numbers in one temporary array


class Decoder(Frozen):
    """How an ensemble decides."""

    name: Literal["threshold", "expected-f2"]
    threshold: float | None = None


def decode(probs: np.ndarray, decoder: Decoder) -> np.ndarray:
    """Label sets, none of them empty.

    Args:
        probs: (N, C) float in [0, 1].

    Returns:
        (N, C) bool.
    """
    if decoder.name == "expected-f2":
        return at_least_one(probs, decode_expected_f2(probs))
    if decoder.threshold is None:
        raise ConfigError("the decoder 'threshold' needs a threshold")
    return at_least_one(probs, decode_threshold(probs, decoder.threshold))


def decode_threshold(probs: np.ndarray, threshold: float) -> np.ndarray:
    """All labels above the threshold: (N, C) bool."""
    return np.asarray(probs > threshold)


def at_least_one(probs: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The same sets; where one is empty, the most probable label."""
    decoded = decoded.copy()
    empty = np.flatnonzero(~decoded.any(axis=1))
    decoded[empty, probs[empty].argmax(axis=1)] = True
    return decoded


def decode_expected_f2(probs: np.ndarray) -> np.ndarray:
    """For each picture the set with the largest expected F2 under independent labels.

    Args:
        probs: (N, C) float in [0, 1].

    Returns:
        (N, C) bool; a set is empty only where all probabilities are 0.
    """
    n, c = probs.shape
    decoded = np.zeros((n, c), dtype=bool)
    matter = np.count_nonzero(probs > TAIL, axis=1)
    # pictures with a like number of labels that matter share their arrays
    width = np.minimum(c, np.maximum(8, 2 ** np.ceil(np.log2(np.maximum(matter, 1) + 1)).astype(int)))
    again: list[np.ndarray] = []
    for k in np.unique(width):
        rows = np.flatnonzero(width == k)
        chosen, expected = _choose(probs, rows, int(k), decoded)
        if k < c:  # labels of the tail may belong to a set that is worth this little
            again.append(rows[(chosen == k) | (expected < 5 * TAIL)])
    rest = np.concatenate(again) if again else np.zeros(0, dtype=np.int64)
    if len(rest):
        _choose(probs, rest, c, decoded)
    return decoded


def expected_f2(probs: np.ndarray, k_max: int) -> np.ndarray:
    """E[F2 | k] of choosing the k most probable labels, for k = 1..k_max.

    Args:
        probs: (B, C) float, falling along each row.

    Returns:
        (B, k_max) float64.
    """
    head, tail = probs[:, :k_max].astype(np.float64), probs[:, k_max:].astype(np.float64)
    degree = k_max + BETA2 * probs.shape[1]
    n_nodes = int(min(MAX_NODES, degree // 2 + 1))
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    z, weights = (nodes + 1) / 2, weights / 2
    absent = 1 - z**BETA2  # 1 - u: (Q,)
    factors = 1 - head[:, None, :] * absent[:, None]  # 1 - p + p u: (B, Q, k_max)
    product = factors.prod(axis=2)
    if tail.shape[1]:
        sums = np.stack([(tail**r).sum(axis=1) / r for r in range(1, POWERS + 1)], axis=1)
        powers = absent ** np.arange(1, POWERS + 1)[:, None]
        product *= np.exp(-(sums @ powers))
    shares = np.cumsum(head[:, None, :] / factors, axis=2)
    shares *= (weights * product)[:, :, None]
    reach = z[:, None] ** (np.arange(1, k_max + 1) + BETA2 - 1)  # (Q, k_max)
    return (1 + BETA2) * np.einsum("bqk,qk->bk", shares, reach)


def _choose(
    probs: np.ndarray, rows: np.ndarray, k: int, decoded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decide for `rows` among their k most probable labels; how many each got, and the F2 it expects."""
    counts, values = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
    size = max(1, BLOCK // (k * MAX_NODES))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        p = probs[block].astype(np.float32)
        if k < p.shape[1]:
            head = np.argpartition(-p, k - 1, axis=1)
        else:
            head = np.broadcast_to(np.arange(k), p.shape)
        inner = np.argsort(-np.take_along_axis(p, head[:, :k], axis=1), axis=1, kind="stable")
        order = np.concatenate([np.take_along_axis(head[:, :k], inner, axis=1), head[:, k:]], axis=1)
        expected = expected_f2(np.take_along_axis(p, order, axis=1), k)
        best = expected.argmax(axis=1)
        take = np.arange(k) <= best[:, None]
        inner_rows, inner_columns = np.nonzero(take & (np.take_along_axis(p, order[:, :k], 1) > 0))
        decoded[block] = False
        decoded[block[inner_rows], order[inner_rows, inner_columns]] = True
        counts[start : start + size] = best + 1
        values[start : start + size] = expected[np.arange(len(block)), best]
    return counts, values
