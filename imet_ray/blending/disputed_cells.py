"""The blend's exact objective on the cells that members disagree about.

A cell (picture i, label c) is predicted where sum_m w_m (p_m[i, c] - t_m) > s: t_m is a first threshold of each
member, and s, the shift, moves all of them together (one for all labels, or one per label group). While s stays in a
range around 0, a cell whose margins p_m - t_m all lie above the range, or all below, is decided: no weights >= 0 change
it. Such cells are counted once, and only the others are kept. Shifts are the search's own; all others speak of
thresholds of the blended probability (`thresholds_of`, `shifts_of`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from imet_ray.cores import usable_cores
from imet_ray.prediction.metrics import FLOAT16_ONE, metric_named
from imet_ray.prediction.pooling import Scale, as_probability, on_scale, threshold_on_scale

ROWS = 1024  # pictures per block while building
CHUNK = 1 << 15  # cells whose margins are weighed at once: they stay in the cache
HIT_BITS = 16
HIT = 1 << HIT_BITS  # a cell's count: 1, and HIT more if its label is true
INSIDE = 0.999  # of the range may be used: rounding must not carry a decided cell over its edge


@dataclass(frozen=True)
class DisputedCells:
    """What is left of the out-of-fold predictions once the decided cells are counted."""

    margins: np.ndarray  # (M, D) float32: p_m - t_m of the disputed cells, by picture
    image: np.ndarray  # (D,) int32: the cell's picture, rising
    label: np.ndarray  # (D,) bool: whether the label is true
    group: np.ndarray  # (D,) int16: the label's group
    hits: np.ndarray  # (N,) int64: decided and true
    chosen: np.ndarray  # (N,) int64: decided
    true: np.ndarray  # (N,) int64
    thresholds: np.ndarray  # (M,) float64: t_m
    half_range: float  # shifts stay in -half_range..half_range
    n_groups: int
    scale: Scale
    metric: str

    @classmethod
    def build(
        cls,
        values: Sequence[np.ndarray],
        thresholds: Sequence[float],
        labels: np.ndarray,
        *,
        half_range: float = 0.0,
        scale: Scale = "probability",
        groups: np.ndarray | None = None,
        metric: str,
    ) -> "DisputedCells":
        """Split the cells, in one pass over the arrays. One member without a range has no cell in dispute.

        Args:
            values: M arrays (N, C) float16 or float32, memory-mapped or not.
            thresholds: M floats on the scale.
            labels: (N, C) uint8 or bool.
            half_range: how far the shift may move from 0.
            scale: of thresholds and range, and on which the weights average.
            groups: (C,) int, the group of each label; one group if None.
            metric: a key of `METRICS`.
        """
        n, c = labels.shape
        of_label = np.zeros(c, dtype=np.int16) if groups is None else groups.astype(np.int16)
        bounds = [
            _Bounds.of(value.dtype, threshold, half_range, scale)
            for value, threshold in zip(values, thresholds, strict=True)
        ]

        def split(start: int) -> tuple[np.ndarray, ...]:
            block = slice(start, start + ROWS)
            cells, *rest = _split([value[block] for value in values], labels[block].astype(bool), bounds)
            image, column = np.divmod(cells, c)
            return (image + start).astype(np.int32), of_label[column], *rest

        with ThreadPoolExecutor(usable_cores()) as pool:
            blocks = list(pool.map(split, range(0, n, ROWS)))
        image, group, margins, label, hits, chosen, true = (
            np.concatenate(part, axis=-1) for part in zip(*blocks, strict=True)
        )
        return cls(
            margins=margins,
            image=image,
            label=label,
            group=group,
            hits=hits,
            chosen=chosen,
            true=true,
            thresholds=np.array(thresholds, dtype=np.float64),
            half_range=half_range,
            n_groups=int(of_label.max(initial=0)) + 1,
            scale=scale,
            metric=metric,
        )

    @property
    def n_members(self) -> int:
        return len(self.margins)

    @property
    def reach(self) -> float:
        """The largest shift that may be asked for."""
        return INSIDE * self.half_range

    def thresholds_of(self, weights: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Shifts as thresholds of the blended probability: float64."""
        return as_probability(weights @ self.thresholds + shifts, self.scale)

    def shifts_of(self, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Thresholds of the blended probability as shifts, which may be out of reach."""
        return np.asarray(threshold_on_scale(thresholds, self.scale) - weights @ self.thresholds)

    def in_reach(self, shifts: np.ndarray) -> np.ndarray:
        """The same shifts; one that is out of reach becomes the end of the range."""
        return np.asarray(np.clip(shifts, -self.reach, self.reach))

    def counts(self, weights: np.ndarray, shifts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels predicted and true, and labels predicted, of each picture: (N,) int64 each.

        Args:
            weights: (M,) >= 0, not all 0.
            shifts: (1,) or (G,) in -reach..reach; 0 if None.
        """
        return self._counts_with(self._won(weights, shifts))

    def counts_of(self, won: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`counts` where these of the cells are predicted: (D,) bool."""
        return self._counts_with(self._counts * won)

    def score(self, weights: np.ndarray, shifts: np.ndarray | None = None) -> float:
        """Mean score under the weights and shifts; arguments as for `counts`."""
        counted = self._by_picture(self._won(weights, shifts))
        hits, chosen, true = self._decided
        scores = metric_named(self.metric).of_counts(
            hits + (counted >> HIT_BITS), true, chosen + (counted & (HIT - 1))
        )
        return float((self._decided_score + scores.sum()) / len(self.true))

    def pictures(self, rows: np.ndarray) -> "DisputedCells":
        """The same cells of some pictures only.

        Args:
            rows: (n,) rising indices of pictures.
        """
        place = np.full(len(self.true), -1, dtype=np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        image = place[self.image]
        kept = image >= 0
        return replace(
            self,
            margins=np.ascontiguousarray(self.margins[:, kept]),
            image=image[kept],
            label=self.label[kept],
            group=self.group[kept],
            hits=self.hits[rows],
            chosen=self.chosen[rows],
            true=self.true[rows],
        )

    def members(self, kept: Sequence[int]) -> "DisputedCells":
        """The same cells for some of the members: some are decided now, and only make it slower."""
        chosen = list(kept)
        return replace(self, margins=self.margins[chosen], thresholds=self.thresholds[chosen])

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """sum_m w_m margin_m of each cell: (D,) float32."""
        total = np.empty(self.margins.shape[1], dtype=np.float32)
        for start in range(0, len(total), CHUNK):
            block = slice(start, start + CHUNK)
            total[block] = weighted_margin(self.margins[:, block], weights)
        return total

    def per_cell(self, shifts: np.ndarray) -> np.ndarray:
        """The shift of each cell: (D,), or one number where all have the same."""
        return np.asarray(shifts[0] if len(shifts) == 1 else shifts[self.group])

    def _won(self, weights: np.ndarray, shifts: np.ndarray | None) -> np.ndarray:
        """What each cell counts: 0 where it is not predicted, else 1, and HIT more where it is true: (D,) int32."""
        limits = np.zeros(1, dtype=np.float32) if shifts is None else shifts.astype(np.float32)
        assert np.abs(limits).max() <= np.float32(self.half_range)
        limit, counts = self.per_cell(limits), self._counts
        counted = np.empty_like(counts)
        for start in range(0, len(counts), CHUNK):
            block = slice(start, start + CHUNK)
            bound = limit if limit.ndim == 0 else limit[block]
            won = weighted_margin(self.margins[:, block], weights) > bound
            np.multiply(counts[block], won, out=counted[block])
        return counted

    def _counts_with(self, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is decided, and what the disputed cells add: hits and chosen, (N,) int64 each."""
        hits, chosen = self.hits.copy(), self.chosen.copy()
        added = self._by_picture(counted)
        hits[self._pictures] += added >> HIT_BITS
        chosen[self._pictures] += added & (HIT - 1)
        return hits, chosen

    def _by_picture(self, counted: np.ndarray) -> np.ndarray:
        """Sums of the cells' counts over each picture that has any: int32. Overwrites what is given."""
        # running sums wrap around, and their differences back: a third of the time of reduceat
        summed = np.cumsum(counted, dtype=np.int32, out=counted)[self._ends]
        return np.asarray(np.diff(summed, prepend=np.int32(0)))

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.asarray(1 + HIT * self.label.astype(np.int32))

    @cached_property
    def _ends(self) -> np.ndarray:
        """The last cell of each picture that has any."""
        return np.flatnonzero(np.diff(self.image, append=-1))

    @cached_property
    def _pictures(self) -> np.ndarray:
        return np.asarray(self.image[self._ends])

    @cached_property
    def _decided(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is decided of the pictures that have disputed cells: hits, chosen, true."""
        return self.hits[self._pictures], self.chosen[self._pictures], self.true[self._pictures]

    @cached_property
    def _decided_score(self) -> float:
        """The sum over pictures without a disputed cell."""
        decided = np.ones(len(self.true), dtype=bool)
        decided[self._pictures] = False
        return float(
            metric_named(self.metric)
            .of_counts(self.hits[decided], self.true[decided], self.chosen[decided])
            .sum()
        )


@dataclass(frozen=True)
class _Bounds:
    """Where a member's values leave the range, in the values' own numbers."""

    threshold: float
    half_range: float
    scale: Scale
    bits: (
        tuple[np.int16, np.int16] | None
    )  # of float16 in 0..1: below the first it is lost, from the second on won

    @classmethod
    def of(cls, dtype: np.dtype, threshold: float, half_range: float, scale: Scale) -> "_Bounds":
        if dtype != np.float16:
            return cls(threshold, half_range, scale, None)
        numbers = np.arange(FLOAT16_ONE + 1, dtype=np.uint16).view(np.float16)
        margins = member_margin(numbers, threshold, scale)  # rises with the bits
        lost, won = (np.searchsorted(margins, np.float32(w), side="right") for w in (-half_range, half_range))
        return cls(threshold, half_range, scale, (np.int16(lost), np.int16(won)))

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cells that are not lost, and cells that are won: bool each."""
        if self.bits is not None:
            bits = np.ascontiguousarray(values).view(np.int16)
            if bits.min(initial=0) >= 0:  # else margins of another tool, or -0.0
                return bits >= self.bits[0], bits >= self.bits[1]
        margin = member_margin(values, self.threshold, self.scale)
        return margin > np.float32(-self.half_range), margin > np.float32(self.half_range)


def _split(
    parts: Sequence[np.ndarray], truth: np.ndarray, bounds: Sequence[_Bounds]
) -> tuple[np.ndarray, ...]:
    """Of a block of pictures the disputed cells, their margins and labels, and the pictures' decided counts.

    Args:
        parts: M arrays (n, C).
        truth: (n, C) bool.

    Returns:
        Places in the block (D,), margins (M, D), labels (D,); hits, chosen and true (n,) each.
    """
    some, every = bounds[0].split(parts[0])
    for bound, part in zip(bounds[1:], parts[1:], strict=True):
        not_lost, won = bound.split(part)
        some |= not_lost
        every &= won
    cells = np.flatnonzero(some & ~every)
    margins = np.stack(
        [
            member_margin(part.ravel()[cells], bound.threshold, bound.scale)
            for part, bound in zip(parts, bounds, strict=True)
        ]
    )
    counted = (np.count_nonzero(kind, axis=1) for kind in (every & truth, every, truth))
    return cells, margins, truth.ravel()[cells], *counted


def member_margin(probs: np.ndarray, threshold: float, scale: Scale) -> np.ndarray:
    """p - t on the scale in float32, the one arithmetic that every way of deciding a cell uses."""
    margin: np.ndarray = on_scale(probs, scale) - np.float32(threshold)
    return margin


def weighted_margin(margins: np.ndarray | Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """sum_m w_m margin_m in float32, in the order of the members: the sign decides."""
    total = np.float32(weights[0]) * margins[0]
    for weight, margin in zip(weights[1:], margins[1:], strict=True):
        total += np.float32(weight) * margin
    return np.asarray(total)
