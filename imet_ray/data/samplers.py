"""Which training pictures an epoch shows, and how often: rare labels more often than they come.

Without a sampler an epoch shows each picture once. What a shown picture looks like is no matter of the sampler.
"""

from dataclasses import dataclass

import numpy as np

from imet_ray.specs import Sampler


@dataclass(frozen=True)
class EpochOrder:
    """What an epoch shows of n training pictures."""

    repeats: np.ndarray  # (n,) int64: how often it shows each of them
    chances: np.ndarray | None = (
        None  # (n,) float64 of sum 1: it draws with these instead, n times, with replacement
    )

    @property
    def size(self) -> int:
        """Pictures in an epoch."""
        return int(self.repeats.sum())

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """One epoch's order: (size,) int64.

        Picture i, shown for the k-th time (from 0), is k * n + i.
        """
        n = len(self.repeats)
        if self.chances is not None:
            drawn = generator.choice(n, size=n, p=self.chances)
        else:
            drawn = np.repeat(np.arange(n), self.repeats)[generator.permutation(self.size)]
        return np.asarray(drawn + n * _times_before(drawn))


def epoch_order(sampler: Sampler | None, labels: np.ndarray, rows: np.ndarray) -> EpochOrder:
    """What an epoch shows of some pictures.

    Args:
        sampler: None: each picture once.
        labels: (N, C), of all pictures; above 0 means that a picture has the label.
        rows: (n,) int64, those that are trained on. Only their labels count.
    """
    if sampler is not None and sampler.rare:
        weights = rarity(labels[rows]) ** sampler.rare
        return EpochOrder(np.ones(len(rows), np.int64), weights / weights.sum())
    if sampler is not None and sampler.oversample:
        return EpochOrder(repeats(labels[rows], sampler.oversample))
    return EpochOrder(np.ones(len(rows), np.int64))


def rarity(labels: np.ndarray) -> np.ndarray:
    """How rare the rarest label of each picture is: n / pictures that have it, (n,) float64.

    Repeat factor sampling (Gupta, Dollar, Girshick 2019) takes the rarest label, too, and the power 0.5. To have none
    of the labels counts as a label.

    >>> rarity(np.array([[1, 0], [1, 0], [1, 1], [0, 0]])).tolist()
    [1.3333333333333333, 1.3333333333333333, 4.0, 4.0]
    """
    pictures, found = np.nonzero(labels)
    fewest = np.full(len(labels), len(labels))
    np.minimum.at(fewest, pictures, np.bincount(found, minlength=labels.shape[1])[found])
    none = np.bincount(pictures, minlength=len(labels)) == 0
    fewest[none] = none.sum()
    return np.asarray(len(labels) / fewest)


def repeats(labels: np.ndarray, least: int) -> np.ndarray:
    """How often to show each picture so that each label comes at least `least` times: (n,) int64, at least 1.

    The rarest label first: what it adds counts for the picture's other labels. A label's pictures share what it lacks
    evenly. Labels without a picture stay without.

    >>> repeats(np.array([[1, 0], [1, 0], [1, 1]]), 4).tolist()
    [1, 1, 4]
    """
    found = np.ones(len(labels), np.int64)
    having, pictures = np.nonzero(labels.T)
    counts = np.bincount(having, minlength=labels.shape[1])
    of_label = np.split(pictures, np.cumsum(counts)[:-1])
    for label in np.argsort(counts, kind="stable"):
        own = of_label[label]
        lacking = least - int(found[own].sum())
        if len(own) and lacking > 0:
            each, rest = divmod(lacking, len(own))
            found[own] += each
            found[own[np.argsort(found[own], kind="stable")[:rest]]] += 1
    return found


def _times_before(drawn: np.ndarray) -> np.ndarray:
    """How often each entry of (m,) has come before it: (m,) int64."""
    order = np.argsort(drawn, kind="stable")
    ordered = drawn[order]
    first = np.searchsorted(ordered, ordered)
    times = np.empty(len(drawn), np.int64)
    times[order] = np.arange(len(drawn)) - first
    return times
