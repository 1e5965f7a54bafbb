"""What else is said of a blend: each member's worth, whose errors are alike, the threshold curve, intervals."""

from dataclasses import replace

import numpy as np
import pytest
from blends import evaluate

from imet_ray.blending.cross_fit import bootstrap
from imet_ray.blending.methods import uniform, weights_of
from imet_ray.prediction.decode import Threshold, decode_threshold
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES, averaged

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")


def test_a_members_worth_is_what_the_blend_loses_without_it_with_a_threshold_of_its_own(make_members):
    members, labels, folds = make_members([0.7, 2.0, 2.0], n=400)  # of fewer two thresholds may be best
    report = evaluate(members, labels, folds, seed=0, methods=(), decoders=["threshold"], scale="probability")
    for i, worth in enumerate(report.worth):
        rest = np.delete(uniform(3) * 1.5, i)
        mean = averaged([member.probs for member in members if member is not members[i]], rest, "probability")
        scores = np.empty(len(labels))
        for fold in range(3):
            rows = folds == fold
            threshold, _ = F2.best_threshold(mean[~rows], labels[~rows])
            scores[rows] = F2.per_picture(Threshold(threshold=threshold).decode(mean[rows]), labels[rows])
        assert (worth.name, worth.without) == (members[i].name, pytest.approx(scores.mean(), abs=2e-4))
        assert worth.gain.mean == pytest.approx(report.nested - worth.without, abs=1e-12)
        assert worth.gain.low <= worth.gain.mean <= worth.gain.high


def test_the_weight_of_a_member_that_has_all_goes_to_the_others_evenly():
    assert weights_of([0, 2], np.array([0.2, 0.6, 0.2])).tolist() == [0.5, 0, 0.5]
    assert weights_of([0, 2], np.array([0.0, 1.0, 0.0])).tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("decoder", ["threshold", "expected-f2"])
def test_a_member_without_weight_adds_nothing(make_members, decoder):
    members, labels, folds = make_members([0.5, 0.5, 6.0, 6.0, 6.0, 6.0], n=120)
    how = {"methods": (), "use": "greedy", "decoders": [decoder], "max_members": 2}
    report = evaluate(members, labels, folds, seed=0, **how)
    by_fold = np.array(report.chosen.weights_by_fold)
    unused = [worth for i, worth in enumerate(report.worth) if not by_fold[:, i].any()]
    assert len(unused) >= 3
    assert [worth.gain.mean for worth in unused] == [0.0] * len(unused)


def test_a_copy_of_a_member_is_worth_nothing_beyond_noise(make_members):
    members, labels, folds = make_members([1.0], n=300)
    report = evaluate(
        [*members, replace(members[0], name="copy")],
        labels,
        folds,
        seed=0,
        methods=(),
        decoders=["threshold"],
    )
    assert [worth.gain.mean for worth in report.worth] == [0, 0]


def test_a_member_that_is_no_better_than_the_most_frequent_labels_is_named_and_asked_for_its_columns(
    make_members,
):
    members, labels, folds = make_members([0.5, 0.5], n=400)
    wrong = replace(members[1], name="wrong", probs=members[1].probs[:, ::-1].copy())
    ours = replace(wrong, name="ours", trials=("t0", "t1", "t2"))
    how = {"methods": (), "decoders": ["threshold"], "scale": "probability"}
    remarks = evaluate([members[0], wrong, ours], labels, folds, **how).remarks
    frequent = np.argsort(-labels.sum(axis=0), kind="stable")
    best = max(
        F2.score(np.isin(np.arange(labels.shape[1]), frequent[:k]) & np.ones(labels.shape, bool), labels)
        for k in range(1, labels.shape[1] + 1)
    )
    told = [line for line in remarks if "no better than no model" in line]
    assert [line.split()[0] for line in told] == ["wrong", "ours"]
    assert f"frequent labels for each picture {best:.4f}" in told[0]
    assert ["each column that of its label?" in line for line in told] == [True, False]
    assert not evaluate(members, labels, folds, **how).remarks


def test_a_member_that_harms_the_blend_beyond_noise_is_named(make_members):
    members, labels, folds = make_members([1.0, 1.0, 0.0], n=400)
    upside_down = replace(members[2], name="upside-down", probs=1 - members[2].probs)
    remarks = evaluate([*members[:2], upside_down], labels, folds, methods=(), decoders=["threshold"]).remarks
    assert [line for line in remarks if line.startswith("upside-down makes the blend worse beyond noise (-")]
    assert not [line for line in remarks if line.startswith(members[0].name)]


def test_errors_of_a_member_and_its_copy_are_alike(three):
    members, labels, folds = three
    members = [*members, replace(members[0], name="copy")]
    found = np.array(evaluate(members, labels, folds, seed=0, methods=(), decoders=["threshold"]).correlation)
    assert found == pytest.approx(found.T)
    assert np.diag(found) == pytest.approx(1)
    assert found[0, 3] == pytest.approx(1)
    assert np.abs(found[:3, :3] - np.eye(3)).max() < 0.9


@pytest.mark.parametrize("scale", SCALES)
def test_the_threshold_curve_is_f2_of_the_blend_at_each_threshold(three, scale):
    members, labels, folds = three
    report = evaluate(members, labels, folds, seed=0, methods=(), decoders=["threshold"], scale=scale)
    mean = averaged([member.probs for member in members], uniform(3), scale)
    assert len(report.threshold_curve) > 10
    for threshold, f2 in report.threshold_curve:
        assert f2 == pytest.approx(F2.score(decode_threshold(mean, threshold), labels), abs=1e-3)
    limits = [threshold for threshold, _ in report.threshold_curve]
    assert limits == sorted(limits)
    assert limits[0] < report.decoder.threshold < limits[-1]


def test_intervals_that_hold_together_cover_the_best_of_many_where_single_ones_do_not():
    rng = np.random.default_rng(0)
    missed = {False: 0, True: 0}
    for trial in range(40):
        differences = rng.normal(0, 1, (12, 200))  # no candidate gains anything
        for together in missed:
            gains = bootstrap(differences, trial, together=together)
            missed[together] += max(gain.low for gain in gains) > 0
    assert missed[False] > 5  # 12 chances of 2.5 %: about 10 of 40
    assert missed[True] <= 3


def test_the_bootstrap_interval_is_the_normal_one_for_many_pictures():
    differences = np.random.default_rng(0).normal([[0.1], [-0.2]], 1, (2, 2000))
    for row, gain in zip(differences, bootstrap(differences, seed=0), strict=True):
        half = 1.96 * row.std() / np.sqrt(2000)
        assert gain.mean == pytest.approx(row.mean())
        assert gain.low == pytest.approx(row.mean() - half, abs=0.01)
        assert gain.high == pytest.approx(row.mean() + half, abs=0.01)
    assert bootstrap(differences, seed=0) == bootstrap(differences, seed=0)
