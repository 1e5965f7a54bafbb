"""Limits in the blend: fitted as well as trying all, blind to the fold that is scored, used beyond noise."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from blends import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.blending import label_limits
from imet_ray.blending.label_limits import fit_ranges
from imet_ray.blending.members import Member
from imet_ray.errors import ConfigError
from imet_ray.prediction.decode import at_least_one, decode_threshold
from imet_ray.prediction.limits import Limits, Range, parse_limits
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import averaged

F2 = METRICS["f2"]
GROUPS = ("culture", "tag") * 4  # of 8 labels


@pytest.fixture(scope="module")
def one_culture():
    """Pictures with exactly one culture, the most probable one, however probable, and with any tags."""
    rng = np.random.default_rng(0)
    n = 600
    labels = np.zeros((n, 8), np.uint8)
    labels[np.arange(n), 2 * rng.integers(0, 4, n)] = 1
    labels[:, 1::2] = rng.random((n, 4)) < 0.3
    probs = np.where(labels, 0.6, 0.1) + rng.uniform(-0.05, 0.05, labels.shape)
    probs[:, ::2] *= rng.uniform(0.1, 1.5, (n, 1))
    probs = np.clip(probs, 0, 1)
    return [Member("m", probs.astype(np.float16))], labels, rng.permutation(n) % 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_fitted_limits_score_as_the_best_of_all_limits_of_one_group(seed):
    rng = np.random.default_rng(seed)
    probs = rng.random((30, 5)).astype(np.float32)
    labels = (rng.random((30, 5)) < 0.4).astype(np.uint8)
    decoded = at_least_one(probs, decode_threshold(probs, 0.3))
    found = fit_ranges(probs, decoded, labels, np.zeros(5, int), "f2").get(0, Range())
    scores = []
    for least, most in itertools.product(range(3), (None, *range(1, 6))):
        if most is None or least <= most:
            limits = Limits.of({"": Range(least=least, most=most)}, ())
            scores.append(F2.score(limits.applied(probs, decoded, negatives=False), labels))
    own = Limits.of({"": found}, ()).applied(probs, decoded, negatives=False)
    assert F2.score(own, labels) == pytest.approx(max(scores))


def test_limits_that_help_are_found_and_used_and_their_worth_is_nested(one_culture):
    members, labels, folds = one_culture
    free = evaluate(members, labels, folds, groups=GROUPS, decoders=["threshold"])
    held = evaluate(members, labels, folds, groups=GROUPS, decoders=["threshold"], limits="fit")
    assert held.limits.used
    assert held.limits.limits.startswith("culture=1..1")
    assert held.limits.gain.low > 0
    assert held.nested == pytest.approx(free.nested + held.limits.gain.mean)
    assert held.chosen.over_single.mean == pytest.approx(held.limits.gain.mean)
    assert [row.nested for row in held.rows] == [row.nested for row in free.rows]
    assert "limits on labels, fitted: culture=1..1" in held.text()
    assert F2.score(held.decoder.decode(members[0].probs), labels) == pytest.approx(held.chosen.own)
    assert held.prefixes[-1].decoder == held.decoder


def test_the_limits_of_a_fold_are_blind_to_its_labels(one_culture, monkeypatch):
    members, labels, folds = one_culture
    fitted = {}
    original = label_limits._fitted

    def spy(solution, found, problem, without):
        fitted[without] = original(solution, found, problem, without)
        return fitted[without]

    monkeypatch.setattr(label_limits, "_fitted", spy)
    evaluate(members, labels, folds, groups=GROUPS, decoders=["threshold"], limits="fit", threshold=0.3)
    before = dict(fitted)
    changed = labels.copy()
    changed[folds == 1] = 1  # of that fold's pictures: all labels
    evaluate(members, changed, folds, groups=GROUPS, decoders=["threshold"], limits="fit", threshold=0.3)
    assert fitted[1] == before[1]
    assert fitted[0] != before[0]


def test_limits_that_gain_nothing_beyond_noise_are_not_used(three):
    members, labels, folds = three
    free = evaluate(members, labels, folds, methods=[], decoders=["threshold"])
    held = evaluate(members, labels, folds, methods=[], decoders=["threshold"], limits="fit")
    assert not held.limits.used
    assert held.decoder == free.decoder
    assert held.chosen == free.chosen
    assert "not beyond noise, so not used" in held.text()


@pytest.mark.parametrize("decoder", ["threshold", "expected-f2", "group-thresholds"])
def test_given_limits_are_used_whatever_they_are_worth_and_scored_alike(three, decoder):
    members, labels, folds = three
    how = {"groups": ("a", "b") * 3, "methods": [], "decoders": [decoder]}
    report = evaluate(members, labels, folds, **how, limits=parse_limits("..2,a=0..1"))
    assert report.limits.used
    assert not report.limits.fitted
    free = evaluate(members, labels, folds, **how)
    assert report.chosen.over_uniform == free.chosen.over_uniform
    mean = averaged([m.probs for m in members], np.array(report.weights), report.scale)
    decoded = report.decoder.decode(mean)
    assert decoded.sum(1).max() <= 2
    assert decoded[:, ::2].sum(1).max() <= 1
    assert F2.score(decoded, labels) == pytest.approx(report.chosen.own, abs=1e-9)
    assert all(prefix.decoder.limits == report.decoder.limits for prefix in report.prefixes)
    assert any("given by hand: limits" in remark for remark in report.remarks)
    assert report.to_dict()["limits"]["limits"] == "0..2,a=0..1"


def test_limits_go_with_the_decoder_that_is_best_under_them(three):
    members, labels, folds = three
    report = evaluate(members, labels, folds, methods=[], limits=parse_limits("..1"))
    alone = {
        name: evaluate(members, labels, folds, methods=[], decoders=[name], limits=parse_limits("..1"))
        for name in ("threshold", "expected-f2")
    }
    assert report.nested == pytest.approx(max(one.nested for one in alone.values()), abs=2e-4)
    assert report.decoder.name == report.chosen.decoder == report.limits.decoder


def test_margins_have_limits_too(three):
    members, labels, folds = three
    margins = [replace(m, probs=(m.probs - np.float16(0.3)), margins=True) for m in members]
    report = evaluate(margins, labels, folds, methods=[], limits=parse_limits("1..2"))
    total = averaged([m.probs for m in margins], np.array(report.weights), "probability")
    assert set(report.decoder.decode(total).sum(1)) == {1, 2}


def test_limits_of_a_group_that_the_labels_lack_are_refused(three):
    members, labels, folds = three
    with pytest.raises(ConfigError, match="unknown label group 'c'"):
        evaluate(members, labels, folds, groups=("a", "b") * 3, methods=[], limits=parse_limits("c=..1"))


def test_limits_hold_for_level_2_too(three):
    members, labels, folds = three
    how = {"groups": ("a", "b") * 3, "methods": [], "decoders": ["threshold"]}
    report = evaluate(members, labels, folds, **how, use="logistic", limits=parse_limits("..2,a=..1"))
    free = evaluate(members, labels, folds, **how, use="logistic")
    assert str(report.decoder.limits) == "0..2,a=0..1"
    assert report.taken.kind == "logistic"
    assert report.nested == report.limits.nested
    assert report.nested == pytest.approx(free.nested + report.limits.gain.mean)
    assert all(prefix.decoder.limits == report.decoder.limits for prefix in report.prefixes)
