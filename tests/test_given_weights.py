"""Weights and a threshold by hand, and earlier blends: scored as fitted ones are, taken only where asked for."""

import numpy as np
import pytest
from blends import evaluate

from imet_ray.blending.methods import METHODS
from imet_ray.errors import ConfigError
from imet_ray.prediction.decode import DECODERS
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import averaged

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")


@pytest.mark.parametrize("decoder", DECODERS)
def test_weights_by_hand_are_taken_and_scored_as_fitted_ones_are(three, decoder):
    members, labels, folds = three
    hand = {"noise0": 3, "noise1": 1, "noise2": 0}
    how = {"groups": ("a", "b") * 3, "methods": [], "decoders": [decoder]}
    report = evaluate(members, labels, folds, **how, weights=hand)
    assert report.chosen.method == "by-hand"
    assert report.weights == (0.75, 0.25, 0.0)
    assert report.chosen.weights_by_fold == (report.weights,) * 3
    mean = averaged([m.probs for m in members], np.array(report.weights), report.scale)
    assert F2.score(report.decoder.decode(mean), labels) == pytest.approx(report.chosen.own, abs=2e-4)
    assert "by-hand was asked for; over uniform weights" in report.verdict()
    assert any("weights by hand add up to 4: divided by that" in remark for remark in report.remarks)
    assert any("given by hand: weights;" in remark for remark in report.remarks)


def test_uniform_weights_by_hand_are_worth_what_uniform_weights_are(three):
    members, labels, folds = three
    report = evaluate(members, labels, folds, methods=[], weights={m.name: 1 for m in members})
    rows = {(row.method, row.decoder): row for row in report.rows}
    for decoder in ("threshold", "expected-f2"):
        assert rows["by-hand", decoder].nested == rows["uniform", decoder].nested
        assert rows["by-hand", decoder].own == rows["uniform", decoder].own
        assert not rows["by-hand", decoder].transferred


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"noise0": 1, "noise1": 1}, "must name every member, and lacks noise2: give it 0"),
        ({"noise0": 1, "noise1": 1, "noise3": 1}, "unknown member 'noise3'.*Blended: noise0, noise1, noise2"),
        ({"noise0": -1, "noise1": 1, "noise2": 1}, "takes numbers of at least 0"),
        ({"noise0": float("nan"), "noise1": 1, "noise2": 1}, "takes numbers of at least 0"),
        ({"noise0": 0, "noise1": 0, "noise2": 0}, "one of them above"),
    ],
)
def test_weights_that_cannot_be_are_one_line(three, weights, expected):
    with pytest.raises(ConfigError, match=expected):
        evaluate(*three, weights=weights)


def test_an_earlier_blend_is_a_row_and_is_not_chosen_by_its_flattering_score(make_members):
    members, labels, folds = make_members([0.3, 4.0, 4.0, 4.0])
    start = {"old": {"noise0": 1.0}}
    report = evaluate(members, labels, folds, methods=[], decoders=["threshold"], starts=start)
    rows = {row.method: row for row in report.rows if not row.is_single}
    assert rows["as old"].weights == (1, 0, 0, 0)
    assert rows["as old"].over_uniform.low > 0
    assert report.chosen.method == report.best.method == "uniform"
    assert any(
        "the weights of old may have been fitted on the pictures" in remark for remark in report.remarks
    )


def test_searches_begin_at_an_earlier_blend_too(three, monkeypatch):
    members, labels, folds = three
    begun = []

    def here(objective, start, rng):
        begun.append(tuple(start[:3]))
        return start, ()

    monkeypatch.setitem(METHODS, "line", METHODS["line"].__class__(here))
    start = {"old": {"noise0": 0.8, "noise2": 0.2}}
    evaluate(members, labels, folds, methods=["line"], decoders=["threshold"], starts=start)
    assert set(begun) == {(1 / 3,) * 3, (0.8, 0, 0.2)}


def test_an_earlier_blend_of_other_members_is_refused(three):
    with pytest.raises(ConfigError, match="--start old has b, not among the members: blend it, too"):
        evaluate(*three, starts={"old": {"noise0": 0.5, "b": 0.5, "c": 0}})


@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.97])
def test_a_threshold_by_hand_is_used_and_scored_wherever_it_lies(three, threshold):
    members, labels, folds = three
    how = {"methods": ["greedy"], "decoders": ["threshold"], "threshold": threshold}
    report = evaluate(members, labels, folds, **how)
    assert report.decoder.threshold == threshold
    mean = averaged([m.probs for m in members], np.array(report.weights), report.scale)
    assert F2.score(report.decoder.decode(mean), labels) == pytest.approx(report.chosen.own)
    assert all(prefix.decoder.threshold == threshold for prefix in report.prefixes)
    assert {row.thresholds for row in report.rows if not row.is_single} == {(threshold,)}
    uniform = next(row for row in report.rows if row.method == "uniform")
    assert uniform.nested == pytest.approx(uniform.own)
    assert any("given by hand: threshold" in remark for remark in report.remarks)


def test_a_threshold_by_hand_is_compared_with_single_members_at_their_own_best_thresholds(three):
    how = {"methods": [], "decoders": ["threshold"], "scale": "probability"}
    by_hand, fitted = (evaluate(*three, **how, threshold=threshold) for threshold in (0.5, None))
    assert [row for row in by_hand.rows if row.is_single] != []
    for mine, theirs in zip(by_hand.rows, fitted.rows, strict=True):
        if mine.is_single:
            assert (mine.nested, mine.thresholds) == (theirs.nested, theirs.thresholds)
    assert by_hand.chosen.over_single.mean == pytest.approx(by_hand.nested - fitted.single.nested)


def test_what_is_not_used_changes_nothing(three):
    assert (
        evaluate(*three, methods=["greedy"]).to_dict()
        == evaluate(
            *three, methods=["greedy"], weights=None, starts={}, threshold=None, limits=None
        ).to_dict()
    )
