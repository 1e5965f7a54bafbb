"""What level 2 is worth beside the weights: nested, blind, and used where it wins."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from blends import evaluate
from scipy.special import expit

from imet_ray.blending.blend_run import frozen
from imet_ray.blending.cross_fit import silent
from imet_ray.blending.evaluate import score_level2
from imet_ray.blending.fit_jobs import solve_here
from imet_ray.blending.members import Member
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.stacking import STACKERS
from imet_ray.errors import ConfigError
from imet_ray.prediction.ensemble import Ensemble, combined
from imet_ray.prediction.level2 import Packed, PerLabel
from imet_ray.prediction.metrics import METRICS

F2 = METRICS["f2"]


def score(kind, members, labels, folds):
    """The scores of each picture, own and nested, by decoder."""
    problem = BlendProblem(members, labels, folds, "f2")
    found, _ = score_level2(kind, problem, BlendOptions(), solve_here, silent)
    return {one.decoder: (one.own, one.nested) for one in found}


@pytest.fixture(scope="module")
def two(make_members):
    return make_members([0.7, 2.0], c=6)


@pytest.fixture(scope="module")
def shifted():
    """Members that are as good as each other; each label needs another threshold."""
    rng = np.random.default_rng(0)
    n, c = 900, 8
    odds = rng.normal(-1.5, 2.5, (n, c))
    labels = (rng.random((n, c)) < expit(2 * odds)).astype(np.uint8)
    labels[~labels.any(axis=1), 0] = 1
    shift = np.linspace(-2.5, 2.5, c)
    values = [expit(odds + shift + rng.normal(0, 0.5, (n, c))).astype(np.float16) for _ in range(3)]
    return [Member(f"m{i}", p) for i, p in enumerate(values)], labels, rng.permutation(n) % 3


@pytest.fixture
def second_of_two(monkeypatch):
    """A stacker that takes the second member, the worse one, as it is."""
    weights = np.zeros((3, 6), np.float32)
    weights[2] = 1
    model = PerLabel(weights=Packed.of(weights))
    monkeypatch.setitem(STACKERS, "logistic", lambda data: [model] * 4)


def test_stacked_probabilities_are_scored_by_picture_own_and_nested_under_both_decoders(two, second_of_two):
    members, labels, folds = two
    stacked = members[1].probs
    found = score("logistic", members, labels, folds)
    own, nested = found["threshold"]
    assert set(found) == {"threshold", "expected-f2"}
    assert own.shape == nested.shape == (len(labels),)
    threshold = F2.best_threshold(stacked, labels)[0]
    assert own.mean() >= F2.score(stacked.astype(np.float32) > np.float32(threshold), labels) - 1e-3
    alone = {row.decoder: row for row in evaluate(members[1:], labels, folds, seed=0).rows if row.is_single}
    for decoder, (own, nested) in found.items():
        far = (
            2e-3 if decoder == "expected-f2" else 0.02
        )  # the thresholds' ranges differ; probabilities are clipped
        assert own.mean() == pytest.approx(alone[decoder].own, abs=far)
        assert nested.mean() == pytest.approx(alone[decoder].nested, abs=far)


@pytest.mark.parametrize("decoder", ["threshold", "expected-f2"])
def test_threshold_and_temperature_of_a_fold_are_blind_to_its_labels(two, second_of_two, decoder):
    members, labels, folds = two
    most, others = np.split(np.flatnonzero(folds == 1), [80])
    changed = labels.copy()
    changed[most] = 1
    before, after = (score("logistic", members, truth, folds)[decoder][1] for truth in (labels, changed))
    assert before[others].tolist() == after[others].tolist()
    assert before[folds == 0].tolist() != after[folds == 0].tolist()


def test_labels_that_are_always_true_are_all_predicted(two):
    members, labels, folds = two
    for own, nested in score("logistic", members, np.ones_like(labels), folds).values():
        assert own.mean() > 0.99
        assert nested.mean() > 0.99


def test_level_2_that_does_not_win_stands_beside_the_blend_and_changes_nothing(two, second_of_two):
    how = {"seed": 0, "methods": (), "scale": "probability"}
    report, plain = evaluate(*two, level2=["logistic"], **how), evaluate(*two, **how)
    assert [found.decoder for found in report.level2] == ["threshold", "expected-f2"]
    assert report.chosen == plain.chosen
    assert (report.model, report.decoder, report.nested) == (None, plain.decoder, plain.nested)
    assert plain.level2 == ()
    for found in report.level2:
        assert not found.used
        assert found.kind == "logistic"
        assert found.over_best.mean == pytest.approx(found.nested - report.best.nested, abs=1e-12)
        assert f"level 2, logistic, {found.decoder}: nested {found.nested:.4f}" in report.text()
    assert "level 2 does not beat uniform weights beyond noise" in report.verdict()


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_level_2_that_wins_is_the_ensemble(shifted, kind):
    members, labels, folds = shifted
    report = evaluate(members, labels, folds, methods=["line"], level2=[kind])
    best = max(report.level2, key=lambda row: row.nested)
    assert [row for row in report.level2 if row.used] == [best]
    assert best.over_uniform.low > 0
    assert report.nested == best.nested > report.best.nested
    assert report.model is not None
    assert (report.model.stacker, report.model.members) == (kind, ["m0", "m1", "m2"])
    text = report.text()
    assert f"level 2, {kind}, {best.decoder}: nested {best.nested:.4f}" in text
    assert text.count("; used") == 1
    assert f"level 2, {kind} under {report.decoder}, is the ensemble: over the best uniform blend" in text
    assert text.splitlines()[-1] == f"its nested F2: {best.nested:.4f}"
    assert report.to_dict()["nested"] == best.nested
    assert f"level 2 beats the best single variant by {best.over_single}" in text


def test_the_frozen_ensemble_has_the_stacker_with_its_decoder_and_the_weights_with_theirs(shifted):
    members, labels, folds = shifted
    report = evaluate(members, labels, folds, methods=(), level2=["logistic"])
    ensemble = frozen("x", members, report, list("abcdefgh"))
    ensemble = Ensemble.model_validate_json(ensemble.model_dump_json())
    used = next(row for row in report.level2 if row.used)
    pairs = list(zip(ensemble.members, (member.probs for member in members), strict=True))
    decoded = ensemble.decoder.decode(combined(ensemble, pairs))
    assert F2.score(decoded, labels) == pytest.approx(used.own, abs=0.01)
    weights = combined(ensemble.model_copy(update={"level2": None}), pairs)
    last = ensemble.prefixes[-1]
    assert F2.score(last.decoder.decode(weights), labels) == pytest.approx(report.chosen.own, abs=1e-3)
    assert [member.weight for member in ensemble.members] == list(report.weights)


def test_a_level_2_that_wins_by_luck_alone_is_not_taken(two, monkeypatch):
    members, labels, folds = two
    share = 0.5 + np.random.default_rng(0).normal(0, 0.03, 6)
    lucky = PerLabel(weights=Packed.of(np.stack([np.zeros(6), share, 1 - share]).astype(np.float32)))
    monkeypatch.setitem(STACKERS, "logistic", lambda data: [lucky] * 4)
    report = evaluate(members, labels, folds, methods=(), scale="log-odds", level2=["logistic"])
    assert max(abs(row.over_uniform.mean) for row in report.level2) < 0.02
    assert report.model is None


def test_all_candidates_share_one_interval(shifted):
    members, labels, folds = shifted
    one = evaluate(members, labels, folds, methods=(), level2=["logistic"]).level2[0].over_uniform
    many = evaluate(members, labels, folds, methods=["line"], level2=["logistic", "linear", "net"])
    again = many.level2[0].over_uniform
    assert again.mean == pytest.approx(one.mean, abs=1e-12)
    assert again.high - again.low > one.high - one.low


def test_a_stacker_that_is_asked_for_is_used_whatever_it_is_worth(two, second_of_two):
    report = evaluate(*two, methods=(), use="logistic", scale="probability")
    assert report.model is not None
    assert report.model.stacker == "logistic"
    assert report.chosen.method == "uniform"
    assert "was asked for" in report.verdict()


def test_weights_that_are_asked_for_are_used_though_level_2_is_better(shifted):
    report = evaluate(*shifted, methods=(), use="uniform", level2=["logistic"])
    assert max(row.over_uniform.low for row in report.level2) > 0
    assert report.model is None
    assert "level 2 is not used, for uniform was asked for" in report.verdict()


def test_level_2_of_one_member_is_judged_too(shifted):
    members, labels, folds = shifted
    report = evaluate(members[:1], labels, folds, level2=["logistic"])
    assert report.model is not None
    assert report.model.members == ["m0"]


def test_all_means_every_stacker():
    assert BlendOptions(level2=("all",)).stackers(2) == tuple(STACKERS)
    assert BlendOptions(level2=("net", "linear")).stackers(2) == ("net", "linear")
    assert BlendOptions().stackers(2) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"level2": ["logistic"], "max_members": 1},
            "needs all members, and there are 2, but --max-members allows 1",
        ),
        (
            {"level2": ["logistic"], "decoders": ["group-thresholds"]},
            "is decoded by threshold or expected-f2",
        ),
        ({"use": "net", "min_weight": 0.1}, "needs all members, but --min-weight leaves some out"),
    ],
)
def test_options_that_level_2_cannot_have_are_refused(two, options, message):
    members, labels, folds = two
    with pytest.raises(ConfigError, match=message):
        evaluate(members, labels, folds, groups=["a", "b"] * 3, **options)


def test_members_whose_thresholds_are_subtracted_are_refused(two):
    members, labels, folds = two
    margins = [replace(member, probs=member.probs - np.float16(0.2), margins=True) for member in members]
    with pytest.raises(ConfigError, match="level 2 needs probabilities"):
        evaluate(margins, labels, folds, methods=(), level2=["logistic"])


def test_lightgbm_that_is_not_installed_says_how_to_get_it(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match="uv sync --extra lightgbm"):
        score("lightgbm", *two)


@pytest.mark.parametrize("kind", ["lightgbm", "net"])
def test_models_of_cells_are_judged_likewise(two, kind):
    pytest.importorskip("lightgbm")
    found = score(kind, *two)
    assert set(found) == {"threshold", "expected-f2"}
    assert all(0.3 < nested.mean() < 0.9 for _, nested in found.values())
