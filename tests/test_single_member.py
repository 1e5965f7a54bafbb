"""A member's own best threshold, wherever it lies."""

import numpy as np
import pytest
from blends import evaluate
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from imet_ray.blending.cross_fit import score_pictures
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import refitted
from imet_ray.blending.members import Member
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.blending.threshold_range import single_cells
from imet_ray.prediction.decode import decode_threshold
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES, on_scale

F2 = METRICS["f2"]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    c=st.integers(1, 8),
    dtype=st.sampled_from([np.float16, np.float32]),
    scale=st.sampled_from(SCALES),
    sharp=st.sampled_from([0.5, 1, 4, 12]),
)
def test_the_fitted_threshold_scores_as_the_best_of_all_thresholds(seed, n, c, dtype, scale, sharp):
    rng = np.random.default_rng(seed)
    probs = expit(sharp * rng.normal(-1, 1, (n, c))).clip(1e-5, 0.999).astype(dtype)
    labels = rng.integers(0, 2, (n, c)).astype(np.uint8)
    labels[np.arange(n), probs.argmax(axis=1)] = 1  # a threshold of 1, above all, is never best
    first = float(on_scale(np.array(rng.uniform(0.05, 0.5)), scale))
    cells = DisputedCells.build([probs], [first], labels, half_range=0.01, scale=scale, metric="f2")
    every = np.zeros((1, 1), probs.dtype)  # a sample that has the lowest probability: no cell is left out
    singles = (single_cells(probs, every, labels, groups=None, metric="f2"),)
    fits = FitProblem(cells, np.zeros(n, int), np.zeros(c, int), None, 0, singles=singles)
    found = refitted(np.ones(1), "threshold", fits)
    best = F2.best_threshold(probs, labels)[1]
    own, weights = fits.deciding(found.weights)
    shifts = own.shifts_of(weights, found.decoder.thresholds(fits.groups))
    assert own.score(weights, own.in_reach(shifts)) == pytest.approx(best, abs=1e-9)
    assert F2.score(decode_threshold(probs, found.decoder.threshold), labels) == pytest.approx(best, abs=1e-9)
    problem = BlendProblem([Member("a", probs)], labels, np.zeros(n, int), "f2")
    scores = score_pictures(found, np.arange(n), problem, fits)
    assert scores.mean() == pytest.approx(F2.score(found.decoder.decode(probs), labels), abs=1e-9)


def test_few_cells_are_kept_of_a_member_with_a_floor_under_its_probabilities():
    rng = np.random.default_rng(0)
    probs = (0.025 + 0.95 * expit(2 * rng.normal(-3, 1, (200, 500)))).astype(np.float16)
    labels = (rng.random((200, 500)) < 0.006).astype(np.uint8)
    cells = single_cells(probs, probs, labels, groups=None, metric="f2")
    assert len(cells.image) <= 200 * 17  # and ties


def two_hills(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose first threshold lies on a hill of F2 beside a higher one, far away."""
    labels = np.zeros((n, 10), dtype=np.uint8)
    labels[:, :2] = 1
    probs = np.full((n, 10), 0.01)
    probs[:, 0] = 0.9  # always right
    probs[:, 1] = 0.9 - 0.1 * (np.arange(n) % 2)
    probs[:, 2:5] = 0.5  # wrong ones between: three more are predicted than there are labels
    return (probs + rng.uniform(0, 0.01, probs.shape)).astype(np.float16), labels


@pytest.mark.parametrize("scale", SCALES)
def test_a_single_member_finds_the_threshold_far_from_where_the_search_began(scale):
    probs, labels = two_hills(np.random.default_rng(0), 60)
    members = [Member("a", probs), Member("b", probs)]
    report = evaluate(
        members, labels, np.arange(60) % 3, seed=0, methods=(), decoders=["threshold"], scale=scale
    )
    best = F2.best_threshold(probs, labels)[1]
    assert best == pytest.approx(1)
    for row in report.rows:
        assert row.own == pytest.approx(best), row.method  # uniform, too: the range holds what is best for it
