"""Averages of members as probabilities and as log-odds."""

import numpy as np
import pytest
from scipy.special import expit, logit

from imet_ray.prediction.pooling import HIGH, LOW, SCALES, as_probability, averaged, on_scale


def test_log_odds_are_those_of_float64():
    probs = np.array([1e-7, 1e-3, 0.2, 0.5, 0.9, 0.999], np.float32)
    assert on_scale(probs, "log-odds") == pytest.approx(logit(probs.astype(np.float64)), rel=1e-5, abs=1e-6)


def test_log_odds_of_all_float16_numbers_rise_and_are_finite():
    numbers = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # 0..1
    odds = on_scale(numbers, "log-odds")
    assert np.isfinite(odds).all()
    assert (np.diff(odds) >= 0).all()
    assert (np.diff(odds[numbers < HIGH]) > 0).all()
    assert odds[0] == on_scale(np.float32([LOW]), "log-odds")[0]


@pytest.mark.parametrize("scale", SCALES)
def test_a_probability_comes_back_from_its_scale(scale):
    numbers = np.linspace(0, 1, 1001, dtype=np.float32)
    assert as_probability(on_scale(numbers, scale), scale) == pytest.approx(numbers, abs=3e-4)


def test_a_blend_of_probabilities_is_their_weighted_mean():
    values = [np.full((2, 3), 0.5, np.float16), np.full((2, 3), 1.0, np.float32)]
    mean = averaged(values, np.array([0.25, 0.75]), "probability")
    assert mean.dtype == np.float32
    assert mean.tolist() == np.full((2, 3), 0.875).tolist()


def test_a_blend_of_log_odds_is_the_geometric_mean_of_the_odds():
    values = [np.full((1, 1), p, np.float32) for p in (0.2, 0.9)]
    odds = (0.2 / 0.8) ** 0.25 * (0.9 / 0.1) ** 0.75
    assert averaged(values, np.array([0.25, 0.75]), "log-odds") == pytest.approx(odds / (1 + odds), rel=1e-5)
    assert expit(0.25 * logit(0.2) + 0.75 * logit(0.9)) == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("scale", SCALES)
def test_a_member_of_weight_0_is_not_looked_at(scale):
    values = [np.full((2, 3), 0.5, np.float16), np.full((2, 3), np.nan, np.float32)]
    assert averaged(values, np.array([1.0, 0.0]), scale).tolist() == np.full((2, 3), 0.5).tolist()
