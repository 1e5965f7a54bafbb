"""Disputed cells against the whole matrix, count for count."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.blending import disputed_cells as cells_module
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES, Scale, on_scale

F2 = METRICS["f2"]


@dataclass(frozen=True)
class Case:
    """A blend, and one point of its search."""

    values: list[np.ndarray]  # M arrays (N, C)
    thresholds: list[float]
    labels: np.ndarray
    groups: np.ndarray
    half_range: float
    scale: Scale
    weights: np.ndarray
    shifts: np.ndarray | None  # in -1..1, to be multiplied by the reach

    def build(self) -> DisputedCells:
        return DisputedCells.build(
            self.values,
            self.thresholds,
            self.labels,
            half_range=self.half_range,
            scale=self.scale,
            groups=self.groups,
            metric="f2",
        )

    def margins(self) -> list[np.ndarray]:
        """p - t of every cell of every member, in float32: M arrays (N, C)."""
        wide = [on_scale(value, self.scale) for value in self.values]
        return [value - np.float32(t) for value, t in zip(wide, self.thresholds, strict=True)]

    def shifts_in(self, cells: DisputedCells) -> np.ndarray | None:
        return None if self.shifts is None else self.shifts * cells.reach

    def dense(self, shifts: np.ndarray | None) -> np.ndarray:
        """What is predicted, summed in the order of the members: (N, C) bool."""
        total = np.zeros(self.labels.shape, np.float32)
        for margin, weight in zip(self.margins(), self.weights, strict=True):
            total += np.float32(weight) * margin
        if shifts is None:
            return total > 0
        return total > np.float32(shifts[0] if len(shifts) == 1 else shifts[self.groups])


@st.composite
def cases(draw):
    """Members that agree, tie, stand exactly at their thresholds, or come as margins below 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, n, c = draw(st.integers(1, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 7))
    steps = draw(st.sampled_from([2, 5, 1000]))
    scale = draw(st.sampled_from(SCALES))
    margins = scale == "probability" and draw(st.booleans())
    values = []
    for _ in range(m):
        value = rng.integers(-steps * margins, steps + 1, (n, c)) / steps
        if draw(st.booleans()):
            value[value == 0] = -0.0
        values.append(value.astype(draw(st.sampled_from([np.float16, np.float32]))))
    if draw(st.booleans()):
        values = [values[0]] * m
    thresholds = np.zeros(m) if margins else on_scale(rng.integers(0, steps + 1, m) / steps, scale)
    raw = rng.integers(0, 3, m) + draw(st.sampled_from([0.0, 0.1]))
    raw[rng.integers(m)] += raw.sum() == 0
    n_groups = draw(st.integers(1, 3))
    shifts = draw(st.sampled_from([None, rng.uniform(-1, 1, 1), rng.uniform(-1, 1, n_groups), -np.ones(1)]))
    return Case(
        values=values,
        thresholds=thresholds.tolist(),
        labels=(rng.random((n, c)) < draw(st.sampled_from([0.0, 0.4]))).astype(np.uint8),
        groups=np.append(rng.integers(0, n_groups, c - 1), n_groups - 1),
        half_range=draw(st.sampled_from([0.0, 0.01, 0.2, 1.0])),
        scale=scale,
        weights=raw / raw.sum(),
        shifts=shifts,
    )


def check(cells, weights, shifts, whole, labels):
    hits, chosen = cells.counts(weights, shifts)
    assert chosen.tolist() == whole.sum(axis=1).tolist()
    assert hits.tolist() == (whole & labels.astype(bool)).sum(axis=1).tolist()
    assert cells.score(weights, shifts) == pytest.approx(F2.score(whole, labels), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([1, 5, 1024]), st.sampled_from([1, 7, 1 << 15]))
def test_disputed_cells_count_what_the_whole_matrix_counts_in_blocks_of_any_size(case, rows, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells_module, "ROWS", rows)
        patch.setattr(cells_module, "CHUNK", chunk)
        cells = case.build()
        shifts = case.shifts_in(cells)
        check(cells, case.weights, shifts, case.dense(shifts), case.labels)
        assert cells.true.tolist() == case.labels.sum(axis=1).tolist()


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_some_of_the_pictures_count_the_same_for_themselves(case, data):
    n = len(case.labels)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    cells = case.build().pictures(rows)
    shifts = case.shifts_in(cells)
    check(cells, case.weights, shifts, case.dense(shifts)[rows], case.labels[rows])


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_some_of_the_members_count_what_all_do_with_weight_0_for_the_others(case, data):
    kept = np.flatnonzero(case.weights)
    extra = data.draw(st.sets(st.integers(0, len(case.weights) - 1)))
    kept = sorted({*kept.tolist(), *extra})
    cells = case.build().members(kept)
    shifts = case.shifts_in(cells)
    check(cells, case.weights[kept], shifts, case.dense(shifts), case.labels)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_only_cells_that_some_weights_and_shift_change_are_kept(case):
    cells = case.build()
    lowest, highest = np.min(case.margins(), axis=0), np.max(case.margins(), axis=0)
    end = np.float32(case.half_range)
    assert len(cells.image) == ((lowest <= end) & (highest > -end)).sum()
    assert (np.diff(cells.image) >= 0).all()


def test_one_member_or_equal_members_dispute_nothing_without_a_range():
    p = np.random.default_rng(0).random((20, 5)).astype(np.float16)
    labels = (p > 0.5).astype(np.uint8)
    assert DisputedCells.build([p], [0.5], labels, metric="f2").margins.shape == (1, 0)
    assert DisputedCells.build([p, p], [0.5, 0.5], labels, metric="f2").margins.shape == (2, 0)


def test_members_may_be_memory_mapped(make_members, tmp_path):
    members, labels, _ = make_members([1.0, 2.0])
    mapped = []
    for member in members:
        np.save(tmp_path / f"{member.name}.npy", member.probs)
        mapped.append(np.load(tmp_path / f"{member.name}.npy", mmap_mode="r"))
    one = DisputedCells.build([m.probs for m in members], [0.3, 0.3], labels, half_range=0.1, metric="f2")
    two = DisputedCells.build(mapped, [0.3, 0.3], labels, half_range=0.1, metric="f2")
    assert np.array_equal(one.margins, two.margins)
    assert np.array_equal(one.chosen, two.chosen)
