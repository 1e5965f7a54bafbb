"""F-beta and the exact threshold, against loops over pictures and over all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.errors import ConfigError, DataError
from imet_ray.prediction.decode import decode_threshold
from imet_ray.prediction.metrics import METRICS, FBeta, Metric, log_loss, metric_named

F2 = METRICS["f2"]
BETAS = [0.5, 1.0, 1.5, 2.0]


def slow_scores(predicted, labels, beta=2.0) -> list[float]:
    """Picture by picture, cell by cell."""
    scores = []
    for row, truth in zip(predicted.tolist(), labels.tolist(), strict=True):
        tp = sum(1 for p, t in zip(row, truth, strict=True) if p and t)
        below = beta**2 * sum(map(bool, truth)) + sum(map(bool, row))
        scores.append((1 + beta**2) * tp / below if below else 1.0)
    return scores


class Jaccard(Metric):
    """Another metric: true and predicted labels over all; 1 where there are none of either."""

    title = "Jaccard"

    def of_counts(self, hits, true, chosen):
        either = true + chosen - hits
        return np.where(either > 0, hits / np.maximum(either, 1), 1.0)


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
@given(predictions(np.float16), st.sampled_from(BETAS))
def test_f_beta_is_what_a_loop_over_cells_says(case, beta):
    probs, labels = case
    predicted, metric = probs > 0.3, FBeta(beta)
    slow = slow_scores(predicted, labels, beta)
    assert np.allclose(metric.per_picture(predicted, labels), slow, rtol=1e-14)
    assert metric.score(predicted, labels) == pytest.approx(np.mean(slow))


@pytest.mark.parametrize("metric", [F2, FBeta(1.0), FBeta(0.5), Jaccard()], ids=lambda metric: metric.title)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_threshold_is_better_than_the_best_one_and_it_scores_what_it_says(metric, dtype, data):
    probs, labels = data.draw(predictions(dtype))
    threshold, score = metric.best_threshold(probs, labels)
    every = [-1.0, *np.unique(probs).tolist()]
    oracle = max(metric.score(probs.astype(np.float64) > t, labels) for t in every)
    assert score == pytest.approx(oracle, abs=1e-12)
    assert metric.score(decode_threshold(probs, threshold), labels) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_slopes_are_those_of_the_score(beta):
    rng = np.random.default_rng(0)
    true, chosen = rng.integers(1, 6, 50), rng.uniform(1.0, 6, 50)
    hits = rng.random(50) * np.minimum(true, chosen)
    metric = FBeta(beta)
    assert np.allclose(
        metric.slopes(hits, true, chosen), Metric.slopes(metric, hits, true, chosen), atol=1e-6
    )


def test_metrics_are_named_for_people_and_an_unknown_one_lists_the_known():
    assert (F2.title, FBeta(0.5).title) == ("F2", "F0.5")
    assert metric_named("f2") is F2
    with pytest.raises(ConfigError, match="f2"):
        metric_named("f3")


def test_a_metric_without_expectations_says_so():
    assert not Jaccard().expects
    with pytest.raises(ConfigError, match="Jaccard"):
        Jaccard().decode_expected(np.zeros((1, 2)))


def test_the_threshold_lies_half_way_between_two_probabilities():
    probs = np.array([[0.75, 0.5, 0.25, 0.0]], np.float16)
    assert F2.best_threshold(probs, np.array([[1, 1, 0, 0]], np.uint8)) == (0.375, 1.0)


def test_where_all_labels_are_true_the_threshold_is_below_zero():
    threshold, score = F2.best_threshold(np.zeros((2, 3), np.float16), np.ones((2, 3), np.uint8))
    assert (threshold < 0, score) == (True, 1.0)


def test_without_true_labels_nothing_is_predicted():
    threshold, score = F2.best_threshold(np.full((2, 3), 1, np.float16), np.zeros((2, 3), np.uint8))
    assert (threshold, score) == (1.0, 1.0)  # and that is right


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_probability_is_refused(dtype, value):
    with pytest.raises(DataError, match=r"0\.\.1"):
        F2.best_threshold(np.array([[0.5, value]], dtype), np.array([[1, 0]], np.uint8))


def test_the_log_loss_of_a_sure_mistake_is_finite():
    assert log_loss(np.array([[0.0, 0.5]]), np.array([[1, 0]])) == pytest.approx(
        (-np.log(1e-6) + np.log(2)) / 2
    )
