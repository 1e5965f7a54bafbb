"""A sample of a data directory for a first look: some pictures of it, by label.

It depends on the data and the number alone. Its digests are its own, so that nothing takes it for the whole.
"""

import numpy as np

from imet_ray.data.catalog import Catalog, part_of

SEED = 0  # of all samples: a run that goes on finds its own again


def sample(catalog: Catalog, limit: int) -> Catalog:
    """At most `limit` training pictures, by label, and as many test pictures at random; all labels stay known."""
    n_test = len(catalog.test.ids)
    test = np.random.default_rng(SEED).permutation(n_test)[:limit]
    return part_of(catalog, sample_rows(catalog.labels, limit), np.sort(test))


def sample_rows(labels: np.ndarray, n: int) -> np.ndarray:
    """Rows of a sample that keeps as many labels as it can: (min(n, N),) int64, ascending.

    Half of it is drawn at random, which keeps what is common as common as it is. The other half is taken one by one:
    the picture with the most labels that the sample lacks yet. Once none is lacking the rest is random, too.

    Args:
        labels: (N, C) uint8.
    """
    order = np.random.default_rng(SEED).permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    chosen[order[: n - n // 2]] = True
    lacking = np.asarray(labels.any(axis=0) & ~labels[chosen].any(axis=0))
    gain = np.asarray(labels[:, lacking].sum(1, dtype=np.int64))  # (N,) labels that each picture would add
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels))
    while chosen.sum() < n and lacking.any():
        best = np.flatnonzero(gain == gain.max())
        row = best[np.argmin(place[best])]
        chosen[row] = True
        for label in np.flatnonzero(labels[row] & lacking):
            gain[labels[:, label] > 0] -= 1
            lacking[label] = False
    rest = order[~chosen[order]]
    chosen[rest[: max(0, n - int(chosen.sum()))]] = True
    return np.flatnonzero(chosen)
