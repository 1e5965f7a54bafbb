"""The label set with the largest expected F-beta, if labels are independent. Nothing needs to be tuned for it.

The best set is the k most probable labels for some k (Lewis 1995). With b = beta^2
    E[F | k] = sum over j <= k of p_j * E[(1 + b) / (k + b (1 + S_j))],
where S_j counts the true labels other than j, a Poisson-binomial number. With u = z^e, e = max(b, 1),
    E[1 / (k + b + b S_j)] = e / b * integral over z in [0, 1] of z^(k e / b + e - 1) * product over i != j of
    (1 - p_i + p_i u):
where b is a whole number, a polynomial in z with coefficients >= 0, so that Gauss-Legendre nodes integrate it with the
relative error of its worst power of z. What is not exact for F2, relative to E[F | k]: 2e-9 from the nodes; and from
labels up to `TAIL`, which count through the power sums of their probabilities, less than TAIL^8 (2 + sum of them / 8),
i.e. 2e-8 where 8 are expected.

Where a picture may have no label, F of nothing predicted is 1 if nothing is true: E[F | 0] = product of (1 - p_j).

A label of the best set has p >= E[F] / (1 + b). (Else dropping it would raise the expectation: the change of F from
label j is ((1 + b) y_j - F) / (b true + k - 1), and 1 / (b true + k) and its neighbour fall together.) So labels up
to `CANDIDATE` are tried only where the best set without them is worth less than (1 + b) CANDIDATE.
"""

from functools import lru_cache

import numpy as np

TAIL = 3 / 32  # it and the next are float16 numbers, so comparing with float16 is exact
POWERS = 8  # of the power sums
CANDIDATE = 1 / 64
LOG_1E9 = 20.7  # -log of the share of a sum's distribution that the nodes may miss
BLOCK = 500_000  # numbers in one temporary array: 4 MB stay in the cache


def decode(probs: np.ndarray, beta2: float, *, negatives: bool = False) -> np.ndarray:
    """For each picture the set with the largest expected score.

    Args:
        probs: (N, C) float in [0, 1].
        beta2: the square of beta, > 0.
        negatives: k may be 0.

    Returns:
        (N, C) bool; without `negatives` a set is empty only where all probabilities are 0.
    """
    n, c = probs.shape
    decoded = np.zeros((n, c), dtype=bool)
    # pictures with like numbers of labels that matter share their arrays
    shapes = np.stack([_width(probs > TAIL), _width(probs > CANDIDATE)], axis=1)
    for head, k_max in np.unique(shapes, axis=0).tolist():
        rows = np.flatnonzero((shapes == (head, k_max)).all(axis=1))
        worth = _choose(probs, rows, decoded, beta2, head=head, k_max=k_max)
        if k_max < c:
            short = worth < (1 + beta2) * CANDIDATE
            worth[short] = _choose(probs, rows[short], decoded, beta2, head=head, k_max=c)
        if negatives:
            none = np.prod(1 - np.minimum(probs[rows], 1), axis=1, dtype=np.float64)
            decoded[rows[none >= worth]] = False
    return decoded


def expected_score(probs: np.ndarray, beta2: float, *, head: int, k_max: int) -> np.ndarray:
    """E[F | k] of choosing the k most probable labels, for k = 1..k_max.

    Args:
        probs: (B, C) float in [0, 1]; the first k_max fall along each row, none of the rest is above them.
        head: labels taken one by one; those after it, up to `TAIL`, count through power sums.
        k_max: at least `head`.

    Returns:
        (B, k_max) float64.
    """
    first, tail = probs[:, :head].astype(np.float64), probs[:, head:].astype(np.float64)
    exponent = max(beta2, 1.0)  # u = z^exponent
    z, node_weights = _nodes(_node_count(k_max, probs, beta2))
    absent = 1 - z**exponent  # 1 - u: (Q,)
    factors = (1 - first)[:, None, :] + first[:, None, :] * (z**exponent)[:, None]  # (B, Q, head)
    product = factors.prod(axis=2) * node_weights  # (B, Q)
    power = np.ones_like(tail)
    logarithm = np.zeros_like(product)  # of the tail's product: log(1 - p a) = -p a - (p a)^2 / 2 - ...
    for r in range(1, POWERS + 1):
        power *= tail
        logarithm -= power.sum(axis=1)[:, None] / r * absent**r
    product *= np.exp(logarithm)
    reach = z[:, None] ** (np.arange(1, k_max + 1) * (exponent / beta2) + exponent - 1)  # (Q, k_max)
    shares = np.cumsum(first[:, None, :] / factors, axis=2) * product[:, :, None]
    expected = np.empty((len(probs), k_max))
    expected[:, :head] = np.einsum("bqk,qk->bk", shares, reach[:, :head])
    if k_max > head:
        beyond = shares[:, :, -1] @ reach[:, head:]
        power = np.ones((len(probs), k_max - head))
        for r in range(1, POWERS + 1):  # p / (1 - p a) = p + p^2 a + ...
            power *= tail[:, : k_max - head]
            beyond += np.cumsum(power, axis=1) * ((product * absent ** (r - 1)) @ reach[:, head:])
        expected[:, head:] = beyond
    return (1 + beta2) * exponent / beta2 * expected


def _choose(
    probs: np.ndarray, rows: np.ndarray, decoded: np.ndarray, beta2: float, *, head: int, k_max: int
) -> np.ndarray:
    """Decide for `rows` among their k_max most probable labels; the score that each expects: (len(rows),)."""
    worth = np.zeros(len(rows))
    size = max(1, BLOCK // max(32 * head, probs.shape[1]))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        p = np.minimum(probs[block].astype(np.float32), 1)  # rounded weights may sum to a little more
        order = _order(p, k_max)
        ranked = np.take_along_axis(p, order, axis=1)
        expected = expected_score(ranked, beta2, head=head, k_max=k_max)
        best = expected.argmax(axis=1)
        take = (np.arange(k_max) <= best[:, None]) & (ranked[:, :k_max] > 0)
        chosen_rows, places = np.nonzero(take)
        decoded[block] = False
        decoded[block[chosen_rows], order[chosen_rows, places]] = True
        worth[start : start + size] = expected[np.arange(len(block)), best]
    return worth


def _width(matter: np.ndarray) -> np.ndarray:
    """The number of cells in each row of a (N, C) mask, rounded up to a power of two, 8..C: (N,) int."""
    counts = np.count_nonzero(matter, axis=1)
    powers = 2 ** np.ceil(np.log2(np.maximum(counts, 8))).astype(int)
    return np.asarray(np.minimum(powers, matter.shape[1]))


def _order(p: np.ndarray, k: int) -> np.ndarray:
    """Columns with the k most probable first, falling; the rest as it comes: (B, C)."""
    if k == p.shape[1]:
        return np.argsort(-p, axis=1, kind="stable")
    parted = np.argpartition(-p, k - 1, axis=1)
    inner = np.argsort(-np.take_along_axis(p, parted[:, :k], axis=1), axis=1, kind="stable")
    parted[:, :k] = np.take_along_axis(parted[:, :k], inner, axis=1)
    return parted


def _node_count(k_max: int, probs: np.ndarray, beta2: float) -> int:
    """Nodes that integrate all powers of z that matter with a relative error of 1e-9."""
    mean = float(probs.sum(axis=1, dtype=np.float64).max())
    most = min(probs.shape[1], mean + LOG_1E9 / 3 + np.sqrt(LOG_1E9**2 / 9 + 2 * LOG_1E9 * mean))  # Bernstein
    exponent = max(beta2, 1.0)
    degree = k_max * exponent / beta2 + exponent * most
    # Q nodes are exact up to degree 2 Q - 1, and 1e-9 up to 0.17 Q^2 (measured for Q = 12..128)
    enough = min(degree // 2 + 1, np.sqrt(degree / 0.17))
    return int(8 * np.ceil(enough / 8))


@lru_cache(maxsize=64)
def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2
