"""What out-of-fold predictions get wrong, as data: counts of each label, and the most confident mistakes.

Often it is the label that is wrong; `report_page` shows such mistakes with their pictures. All is done in blocks:
iMet's predictions are 482 MB.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from imet_ray.cores import usable_cores
from imet_ray.data.catalog import Catalog
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.metrics import Metric

ROWS = 2048  # pictures per block
COLUMNS = 64  # labels per block
PER_LABEL = 2  # so that one label does not fill the page


@dataclass(frozen=True)
class LabelCounts:
    """Cells of each label: (C,) int64 each."""

    hits: np.ndarray
    chosen: np.ndarray
    true: np.ndarray

    def score(self, labels: np.ndarray, metric: Metric) -> float:
        """The score of some labels, (C,) bool, pooled over all their cells; 0 where no picture has or gets one."""
        hits, true, chosen = (counts[labels].sum() for counts in (self.hits, self.true, self.chosen))
        return float(metric.of_counts(hits, true, chosen)) if true + chosen else 0.0


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
    with ThreadPoolExecutor(usable_cores()) as pool:
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
        ids, labels = catalog.train.ids, catalog.label_ids
        return [{"id": ids[m.row], "label": labels[m.label], "probability": m.probability} for m in found]

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
    return (_most_confident(probs, labels, k, present=False), _most_confident(probs, labels, k, present=True))


def _most_confident(probs: np.ndarray, labels: np.ndarray, k: int, *, present: bool) -> list[Mistake]:
    sign = -1 if present else 1
    found = []
    for first in range(0, probs.shape[1], COLUMNS):
        columns = slice(first, first + COLUMNS)
        scores = sign * probs[:, columns].astype(np.float32)
        scores[labels[:, columns].astype(bool) != present] = -np.inf
        for _ in range(PER_LABEL):
            for column, row in enumerate(scores.argmax(axis=0).tolist()):  # of equal ones the first
                if np.isfinite(scores[row, column]):
                    found.append(Mistake(row, first + column, sign * float(scores[row, column])))
                    scores[row, column] = -np.inf
    return sorted(found, key=lambda mistake: (-sign * mistake.probability, mistake.row, mistake.label))[:k]
