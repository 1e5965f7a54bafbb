"""Decoders, and expected F-beta against the sum over all label sets and all truths."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from imet_ray.errors import ConfigError
from imet_ray.prediction import expected_fbeta
from imet_ray.prediction.decode import (
    ExpectedScore,
    GroupThresholds,
    Threshold,
    at_least_one,
    decode_threshold,
    read_decoder,
    with_temperature,
)
from imet_ray.prediction.expected_fbeta import CANDIDATE, TAIL, expected_score
from imet_ray.prediction.metrics import METRICS, FBeta

F2 = METRICS["f2"]
SETS = np.array(list(itertools.product([0, 1], repeat=10)))


def expectation_of_all_sets(p, beta) -> np.ndarray:
    """E[F] of each of the 2^10 sets, over all 2^10 truths: (1024,)."""
    b = beta**2
    scores = (1 + b) * (SETS @ SETS.T) / np.maximum(b * SETS.sum(1) + SETS.sum(1)[:, None], 1)  # (set, truth)
    return scores @ np.where(SETS, p, 1 - p).prod(axis=1)


def expectation_by_counting(p, k, b=4.0) -> float:
    """E[F | k] with the Poisson-binomial distribution built label by label."""
    total = 0.0
    for j in range(k):
        counts = np.array([1.0])
        for i in range(len(p)):
            if i != j:
                counts = np.append(counts * (1 - p[i]), 0) + np.append(0, counts * p[i])
        total += p[j] * (counts * (1 + b) / (k + b * (1 + np.arange(len(counts))))).sum()
    return total


probability = st.one_of(
    st.floats(0, 1), st.floats(0, 0.1), st.sampled_from([0.0, 1e-4, CANDIDATE, 0.02, 0.1, 0.5, 1.0])
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(probability, min_size=10, max_size=10),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from([2.0, 2.0, 1.0, 0.5]),
)
def test_no_label_set_has_a_larger_expected_score(values, dtype, beta):
    probs = np.array([values], dtype)
    expected = expectation_of_all_sets(probs[0].astype(np.float64), beta)
    chosen = FBeta(beta).decode_expected(probs)[0]
    place = int((chosen == SETS).all(axis=1).argmax())
    assert expected[place] == pytest.approx(expected.max(), rel=1e-7, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.02, 0.3, 2.0]),
    st.sampled_from([0, 3]),
    st.sampled_from([4.0, 4.0, 1.0, 0.25]),
)
def test_expected_scores_are_exact_where_most_labels_are_in_the_tail(seed, scale, certain, beta2):
    rng = np.random.default_rng(seed)
    p = np.minimum(rng.exponential(scale, size=40) * rng.random(40) ** 4, 1)
    p[:certain] = 1
    p = -np.sort(-p)
    head = max(8, int((p > TAIL).sum()))
    fast = expected_score(p[None], beta2, head=head, k_max=40)[0]
    slow = [expectation_by_counting(p, k, beta2) for k in range(1, 41)]
    assert np.allclose(fast, slow, rtol=2e-7, atol=1e-15)


@pytest.mark.parametrize(("scale", "certain"), [(0.3, 3), (2.4, 40), (30.0, 0)])
def test_more_quadrature_nodes_change_nothing(monkeypatch, scale, certain):
    rng = np.random.default_rng(0)
    p = np.minimum(rng.exponential(scale, size=1103) * rng.random(1103) ** 4, 1)
    p[:certain] = 1
    p = -np.sort(-p)[None]
    head = max(8, int((p > TAIL).sum()))
    few = expected_score(p, 4.0, head=head, k_max=1103)
    monkeypatch.setattr(expected_fbeta, "_node_count", lambda *_: 600)
    assert np.allclose(few, expected_score(p, 4.0, head=head, k_max=1103), rtol=2e-9, atol=0)


def test_labels_of_the_tail_are_chosen_where_nothing_better_is_there():
    assert F2.decode_expected(np.full((3, 300), 0.004, np.float16)).sum() > 3 * 100


def test_a_picture_is_decoded_alike_alone_and_among_others():
    rng = np.random.default_rng(0)
    probs = (rng.random((40, 50)) ** rng.integers(1, 40, size=(40, 1))).astype(np.float16)
    together = F2.decode_expected(probs)
    alone = np.concatenate([F2.decode_expected(row[None]) for row in probs])
    assert (together == alone).all()


def test_a_threshold_between_two_neighbouring_float16_numbers_parts_them():
    low = np.float16(0.5)
    for _ in range(2):  # rounding half to even would fail at one of two
        high = np.nextafter(low, np.float16(1))
        middle = (float(low) + float(high)) / 2
        assert decode_threshold(np.array([[low, high]]), middle).tolist() == [[False, True]]
        low = high


def test_a_label_at_the_threshold_is_not_predicted():
    assert decode_threshold(np.array([[0.5, 0.75]], np.float32), 0.5).tolist() == [[False, True]]


def test_an_empty_set_gets_its_most_probable_label_and_others_stay():
    probs = np.array([[0.1, 0.3, 0.2], [0.9, 0.1, 0.8]])
    decoded = np.array([[False, False, False], [False, True, False]])
    assert at_least_one(probs, decoded).tolist() == [[False, True, False], [False, True, False]]


SOME = [
    Threshold(threshold=0.5),
    GroupThresholds(label_thresholds=(0.5, 0.7, 0.5)),
    ExpectedScore(metric="f2"),
    ExpectedScore(temperature=2.0, metric="f2"),
]


@pytest.mark.parametrize("decoder", SOME)
def test_no_decoder_leaves_a_picture_without_a_label(decoder):
    probs = np.array([[0.0, 0.0, 0.0], [0.01, 0.02, 0.0], [1.0, 1.0, 0.0]], np.float16)
    assert decoder.decode(probs).any(axis=1).all()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"name": "threshold"}, "threshold"),
        ({"name": "threshold", "threshold": None}, "threshold"),
        ({"name": "group-thresholds", "label_thresholds": None}, "label_thresholds"),
        ({"name": "top-k"}, "unknown decoder 'top-k'. Known: threshold, group-thresholds, expected-f2"),
        ("threshold?", "unknown decoder"),
        ({"name": ["threshold"]}, "unknown decoder"),
    ],
)
def test_what_is_stored_of_no_decoder_is_refused(stored, message):
    with pytest.raises(ValueError, match=message):
        read_decoder(stored)


def test_decoders_of_earlier_versions_are_read_which_kept_the_parameters_of_all():
    stored = {"name": "threshold", "threshold": 0.25, "label_thresholds": None, "temperature": 1.0}
    assert read_decoder(stored) == Threshold(threshold=0.25)


@pytest.mark.parametrize("limits", [(0.5,), (0.5, 0.5, 0.5)])
def test_group_thresholds_that_do_not_fit_the_labels_are_refused(limits):
    with pytest.raises(ConfigError, match="needs a threshold for each of 2 labels: blend again"):
        GroupThresholds(label_thresholds=limits).decode(np.zeros((1, 2)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_group_thresholds_decide_each_label_by_its_own(dtype):
    probs = np.random.default_rng(0).random((50, 4)).astype(dtype)
    limits = (0.2, 0.6, 0.2, 0.6)
    found = GroupThresholds(label_thresholds=limits).decode(probs)
    by_label = np.stack([decode_threshold(probs[:, i], limit) for i, limit in enumerate(limits)], axis=1)
    assert np.array_equal(found, at_least_one(probs, by_label))


def test_equal_group_thresholds_decide_like_one_threshold():
    probs = (np.random.default_rng(0).integers(0, 20, (50, 4)) / 20).astype(np.float16)
    one = Threshold(threshold=float(np.float16(0.35)))
    each = GroupThresholds(label_thresholds=(one.threshold,) * 4)
    assert np.array_equal(one.decode(probs), each.decode(probs))


@pytest.mark.parametrize("decoder", SOME)
def test_a_decoder_is_read_as_it_was_written(decoder):
    assert read_decoder(json.loads(decoder.model_dump_json())) == decoder


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.3, 2.0])
def test_the_temperature_divides_the_logits(temperature):
    probs = np.linspace(1e-4, 1 - 1e-4, 999)
    warmed = with_temperature(probs.astype(np.float32), temperature)
    assert warmed.dtype == np.float32
    assert warmed == pytest.approx(expit(logit(probs) / temperature), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_no_temperature_moves_0_1_or_a_half_or_changes_the_order(dtype, temperature):
    probs = np.sort(np.append(np.random.default_rng(0).random(200), [0, 0.5, 1])).astype(dtype)
    warmed = with_temperature(probs, temperature)
    assert (np.diff(warmed) >= 0).all()
    assert (warmed[probs == 0] == 0).all()
    assert (warmed[probs == 1] == 1).all()
    assert warmed[probs == 0.5] == pytest.approx(0.5, abs=1e-7)


def test_a_temperature_of_1_is_the_same_array():
    probs = np.array([[1.0000001, 0.5]], np.float32)
    assert with_temperature(probs, 1.0) is probs


def test_a_rounding_above_one_has_a_temperature_too():
    assert with_temperature(np.array([1.0000001, -1e-9], np.float32), 2.0).tolist() == [1, 0]


def test_expected_f2_is_decoded_at_its_temperature():
    probs = np.random.default_rng(0).random((60, 5)).astype(np.float32) ** 3
    for temperature in (0.5, 2.0):
        found = ExpectedScore(temperature=temperature, metric="f2").decode(probs)
        assert np.array_equal(
            found, at_least_one(probs, F2.decode_expected(with_temperature(probs, temperature)))
        )
    cool, warm = (ExpectedScore(temperature=t, metric="f2").decode(probs) for t in (0.5, 2.0))
    assert warm.sum() > cool.sum()  # less sure: more labels


def test_probabilities_a_rounding_above_one_are_taken_for_one():
    probs = np.array([[1.0000001, 0.5] + [0.0] * 30], np.float32)
    assert F2.decode_expected(probs).sum() == F2.decode_expected(np.minimum(probs, 1)).sum()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0, 1.0, 0.5]))
def test_where_a_picture_may_have_no_label_the_empty_set_is_weighed_too(seed, beta):
    probs = np.random.default_rng(seed).random((1, 5)) ** 3
    worlds = np.array(list(itertools.product([0, 1], repeat=5)), bool)
    chances = np.where(worlds, probs, 1 - probs).prod(axis=1)
    metric = FBeta(beta)
    expected = [chances @ metric.per_picture(np.broadcast_to(sets, worlds.shape), worlds) for sets in worlds]
    chosen = metric.decode_expected(probs, negatives=True)[0]
    assert expected[int(chosen @ (2 ** np.arange(4, -1, -1)))] == pytest.approx(max(expected), abs=1e-9)


@pytest.mark.parametrize("decoder", [Threshold(threshold=0.5), ExpectedScore(metric="f2")])
def test_an_empty_set_is_given_only_where_pictures_may_have_no_label(decoder):
    probs = np.array([[0.01, 0.02], [0.9, 0.1]], np.float32)
    assert decoder.decode(probs).any(axis=1).all()
    with_negatives = decoder.model_copy(update={"negatives": True})
    assert with_negatives.decode(probs).any(axis=1).tolist() == [False, True]
    assert read_decoder(with_negatives.model_dump(mode="json")) == with_negatives
