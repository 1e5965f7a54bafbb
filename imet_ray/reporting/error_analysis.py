"""What out-of-fold predictions get wrong, as data: counts of each label, and the most confident mistakes.

Often it is the label that is wrong; `report_page` shows such mistakes with their pictures. All is done in blocks
of rows: iMet's predictions are 482 MB.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from imet_ray.data.catalog import Catalog
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.metrics import Metric

ROWS = 2048  # pictures per block
PER_LABEL = 2  # so that one label does not fill the page


@dataclass(frozen=True)
class LabelCounts:
    """Cells of each label: (C,) int64 each."""

    hits: np.ndarray
    chosen: np.ndarray
    true: np.ndarray

    def score(self, labels: np.ndarray, metric: Metric) -> float:
        """The score of some labels, (C,) bool, pooled over all their cells."""
        hits, true, chosen = (counts[labels].sum() for counts in (self.hits, self.true, self.chosen))
        return float(metric.of_counts(hits, true, chosen))


@dataclass(frozen=True)
class Mistake:
    """One cell: the label that a picture has or has not, and how probable it was."""

    row: int
    label: int
    probability: float


def count_labels(probs: np.ndarray, labels: np.ndarray, decoder: Decoder) -> LabelCounts:
    """Decode and count, on all cores.

    Args:
        probs: (N, C) float.
        labels: (N, C) uint8 or bool.
    """

    def count(start: int) -> np.ndarray:
        decoded = decoder.decode(probs[start : start + ROWS])
        truth = labels[start : start + ROWS].astype(bool)
        return np.stack([np.count_nonzero(kind, axis=0) for kind in (decoded & truth, decoded, truth)])

    starts = range(0, len(probs), ROWS)
    total = np.zeros((3, probs.shape[1]), dtype=np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in tqdm(pool.map(count, starts), total=len(starts), desc="decoding", disable=None):
            total += part
    return LabelCounts(*total)


def label_findings(
    probs: np.ndarray, catalog: Catalog, decoder: Decoder, metric: Metric, k: int
) -> dict[str, Any]:
    """The score of each label and label group, and the most confident mistakes, for a program.

    Args:
        probs: (N, C) float, out of fold.
        k: mistakes of each kind.
    """
    counts = count_labels(probs, catalog.labels, decoder)
    each = np.eye(len(catalog.label_ids), dtype=bool)
    groups = np.array(catalog.label_groups)

    def listed(found: list[Mistake]) -> list[dict[str, Any]]:
        return [
            {
                "id": catalog.train.ids[mistake.row],
                "label": catalog.label_ids[mistake.label],
                "probability": mistake.probability,
            }
            for mistake in found
        ]

    missing, unseen = confident_mistakes(probs, catalog.labels, k)
    return {
        "labels": [
            {
                "label": label,
                "score": counts.score(own, metric),
                "true": int(counts.true[i]),
                "predicted": int(counts.chosen[i]),
                "hits": int(counts.hits[i]),
            }
            for i, (label, own) in enumerate(zip(catalog.label_ids, each, strict=True))
        ],
        "score_by_group": {
            group: counts.score(groups == group, metric) for group in sorted(set(catalog.label_groups))
        },
        "probable_labels_that_are_missing": listed(missing),
        "improbable_labels_that_are_there": listed(unseen),
    }


def confident_mistakes(probs: np.ndarray, labels: np.ndarray, k: int) -> tuple[list[Mistake], list[Mistake]]:
    """The most probable labels that pictures lack, and the least probable ones that they have.

    Args:
        probs: (N, C) float16 or float32.
        labels: (N, C) uint8 or bool.
        k: of each kind at most, and `PER_LABEL` of them per label; of equal ones the first row, then label, wins.

    Returns:
        Absent labels, the most probable first; present labels, the least probable first.
    """
    absent = _top(probs, labels, wanted=False)
    present = _top(probs, labels, wanted=True)
    return _first(*absent, k, sign=1), _first(*present, k, sign=-1)


def _top(probs: np.ndarray, labels: np.ndarray, *, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each label the cells that contradict most, where the label is as `wanted`.

    Returns:
        rows: (PER_LABEL, C) int64, and scores: (PER_LABEL, C) float32, falling, -inf where there is none: the
        probability, negated for present labels.
    """
    c = probs.shape[1]
    rows = np.zeros((PER_LABEL, c), dtype=np.int64)
    scores = np.full((PER_LABEL, c), -np.inf, dtype=np.float32)
    columns = np.arange(c)
    for start in range(0, len(probs), ROWS):
        block = probs[start : start + ROWS].astype(np.float32)
        if wanted:
            np.negative(block, out=block)
        block[labels[start : start + ROWS].astype(bool) != wanted] = -np.inf
        found_rows, found_scores = [rows], [scores]
        for _ in range(PER_LABEL):
            best = block.argmax(axis=0)
            found_rows.append(best[None] + start)
            found_scores.append(block[best, columns][None])
            block[best, columns] = -np.inf
        rows, scores = np.concatenate(found_rows), np.concatenate(found_scores)
        order = np.argsort(-scores, axis=0, kind="stable")[:PER_LABEL]  # earlier rows stand first
        rows, scores = np.take_along_axis(rows, order, axis=0), np.take_along_axis(scores, order, axis=0)
    return rows, scores


def _first(rows: np.ndarray, scores: np.ndarray, k: int, *, sign: int) -> list[Mistake]:
    labels = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    order = np.lexsort((labels.ravel(), rows.ravel(), -scores.ravel()))[:k]
    return [
        Mistake(int(rows.flat[i]), int(labels.flat[i]), sign * float(scores.flat[i]))
        for i in order
        if np.isfinite(scores.flat[i])
    ]
