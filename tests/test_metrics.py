"""F2 and the exact threshold, against loops over pictures and over all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.errors import DataError
from imet_ray.prediction.decode import decode_threshold
from imet_ray.prediction.metrics import best_threshold, f2_per_image, f2_score, per_label


def slow_f2(predicted, labels) -> list[float]:
    """Picture by picture, cell by cell."""
    scores = []
    for row, truth in zip(predicted.tolist(), labels.tolist(), strict=True):
        tp = sum(1 for p, t in zip(row, truth, strict=True) if p and t)
        below = 4 * sum(map(bool, truth)) + sum(map(bool, row))
        scores.append(5 * tp / below if below else 0.0)
    return scores


@st.composite
def predictions(draw, dtype):
    """Few distinct values, so that ties, zeros and ones abound, or many neighbouring ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, c = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    kind = draw(st.sampled_from(["few", "any", "neighbours"]))
    if kind == "few":
        probs = rng.choice([-0.0, 0.0, 0.25, 0.5, 1.0], size=(n, c)).astype(dtype)
    elif kind == "any":
        probs = rng.random((n, c)).astype(dtype)
    else:
        codes = [dtype(0.5)]
        for _ in range(4):
            codes.append(np.nextafter(codes[-1], dtype(1)))
        probs = rng.choice(np.array(codes, dtype), size=(n, c))
    labels = rng.random((n, c)) < draw(st.sampled_from([0.0, 0.2, 0.6]))
    if draw(st.booleans()):  # else the best is nearly always to predict everything
        labels = probs > rng.choice(probs.ravel())
    return probs, labels.astype(np.uint8)


@settings(deadline=None)
@given(predictions(np.float16))
def test_f2_is_what_a_loop_over_cells_says(case):
    probs, labels = case
    predicted = probs > 0.3
    assert np.allclose(f2_per_image(predicted, labels), slow_f2(predicted, labels), rtol=1e-14)
    assert f2_score(predicted, labels) == pytest.approx(np.mean(slow_f2(predicted, labels)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_threshold_is_better_than_the_best_one_and_it_scores_what_it_says(dtype, data):
    probs, labels = data.draw(predictions(dtype))
    threshold, f2 = best_threshold(probs, labels)
    every = [-1.0, *np.unique(probs).tolist()]
    oracle = max(np.mean(slow_f2(probs.astype(np.float64) > t, labels)) for t in every)
    assert f2 == pytest.approx(oracle, abs=1e-12)
    assert f2_score(decode_threshold(probs, threshold), labels) == pytest.approx(f2, abs=1e-12)


def test_the_threshold_lies_half_way_between_two_probabilities():
    probs = np.array([[0.75, 0.5, 0.25, 0.0]], np.float16)
    assert best_threshold(probs, np.array([[1, 1, 0, 0]], np.uint8)) == (0.375, 1.0)


def test_where_all_labels_are_true_the_threshold_is_below_zero():
    threshold, f2 = best_threshold(np.zeros((2, 3), np.float16), np.ones((2, 3), np.uint8))
    assert (threshold < 0, f2) == (True, 1.0)


def test_without_true_labels_nothing_is_predicted():
    threshold, f2 = best_threshold(np.full((2, 3), 1, np.float16), np.zeros((2, 3), np.uint8))
    assert (threshold, f2) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_probability_is_refused(dtype, value):
    with pytest.raises(DataError, match=r"0\.\.1"):
        best_threshold(np.array([[0.5, value]], dtype), np.array([[1, 0]], np.uint8))


def test_precision_and_recall_of_a_label_nobody_has_or_predicts_are_zero():
    predicted = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    precision, recall = per_label(predicted, np.array([[1, 0, 1, 0], [0, 0, 1, 0]], np.uint8))
    assert precision.tolist() == [0.5, 0, 0, 0]
    assert recall.tolist() == [1, 0, 0, 0]
