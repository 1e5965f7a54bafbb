"""What a blend is said to be worth: honest, reproducible, chosen beyond noise, and refused where it cannot be had."""

import json
from dataclasses import replace

import numpy as np
import pytest
from blends import evaluate

from imet_ray.blending import evaluate as evaluate_module
from imet_ray.blending import problem as problem_module
from imet_ray.blending import threshold_range
from imet_ray.blending.cross_fit import CrossFit
from imet_ray.blending.members import Member
from imet_ray.blending.methods import uniform
from imet_ray.blending.problem import BlendProblem
from imet_ray.errors import ConfigError
from imet_ray.prediction.decode import DECODERS
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES, averaged

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")

GROUPS = ("a", "b") * 3  # of 6 labels
LABELS, FOLDS = np.array([[0, 1], [1, 0]], np.uint8), np.array([0, 1])
GOOD = Member("good", np.full((2, 2), 0.5, np.float16))
MARGINS = replace(GOOD, margins=True)


@pytest.fixture
def cross_fits(monkeypatch) -> list[CrossFit]:
    """What was fitted and scored, by call of `evaluate`: the last of them with all methods."""
    found: list[CrossFit] = []
    original = evaluate_module.cross_fit

    def spy(*args):
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(evaluate_module, "cross_fit", spy)
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_the_nested_scores_of_a_fold_are_blind_to_its_labels(three, cross_fits, scale, monkeypatch):
    monkeypatch.setattr(threshold_range, "ROOM", 50.0)  # how far thresholds are searched sees all folds
    members, labels, folds = three
    half = np.flatnonzero(folds == 1)[::2]
    changed = labels.copy()
    changed[half] = labels[half[::-1]]
    for truth in (labels, changed):
        evaluate(members, truth, folds, seed=0, groups=GROUPS, methods=["greedy"], scale=scale)
    others = np.setdiff1d(np.flatnonzero(folds == 1), half)  # of that fold, with the labels that they had
    before, after = ({key: one.nested for key, one in found.judged.items()} for found in cross_fits)
    leaks = [key for key in before if not np.allclose(before[key][others], after[key][others])]
    assert leaks == []
    rest = folds != 1
    assert not all(np.array_equal(before[key][rest], after[key][rest]) for key in before)


@pytest.mark.parametrize("scale", SCALES)
def test_nested_scores_are_those_of_decoding_each_fold_with_what_was_fitted_without_it(
    three, cross_fits, scale
):
    members, labels, folds = three
    report = evaluate(members, labels, folds, seed=0, groups=GROUPS, methods=["greedy"], scale=scale)
    for row in report.rows:
        method = f"member {report.names.index(row.method)}" if row.is_single else row.method
        scores = np.empty(len(labels))
        for fold in range(3):
            rows = folds == fold
            fitted = cross_fits[0].judged[method, row.decoder].by_fold[fold]
            mean = averaged([member.probs[rows] for member in members], fitted.weights, scale)
            scores[rows] = F2.per_picture(fitted.decoder.decode(mean), labels[rows])
        assert row.nested == pytest.approx(scores.mean(), abs=2e-4), (row.method, row.decoder)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", ["uniform", "nelder-mead"])
def test_the_ensembles_decoder_decodes_the_blend_to_the_own_score_of_the_report(
    three, method, decoder, scale
):
    members, labels, folds = three
    report = evaluate(
        members, labels, folds, seed=0, groups=GROUPS, methods=(), use=method, decoders=[decoder], scale=scale
    )
    mean = averaged([member.probs for member in members], np.array(report.weights), scale)
    assert F2.score(report.decoder.decode(mean), labels) == pytest.approx(report.chosen.own, abs=2e-4)
    assert report.decoder.name == decoder == report.chosen.decoder


def test_members_of_float16_and_float32_blend_alike(three):
    members, labels, folds = three
    wide = [replace(member, probs=member.probs.astype(np.float32)) for member in members]
    how = {"seed": 0, "methods": ["greedy"], "decoders": ["threshold"]}
    one, two = (evaluate(given, labels, folds, **how).to_dict() for given in (members, wide))
    assert one == two


def test_where_nothing_beats_uniform_weights_beyond_noise_they_are_chosen(make_members):
    members = make_members([1.5, 1.5, 1.5], n=600)
    report = evaluate(*members, seed=0, methods=["greedy", "line"], decoders=["threshold"])
    assert report.chosen.method == "uniform"
    assert report.weights == pytest.approx(uniform(3))
    assert report.best.method == "uniform" or report.best_over_uniform.low <= 0
    assert report.single.is_single
    assert report.chosen.over_single.low > 0
    assert "the blend beats the best single variant by +" in report.text()


def test_where_weights_matter_the_best_nested_ones_are_chosen(make_members):
    members = make_members([0.3, 4.0, 4.0, 4.0])
    report = evaluate(*members, seed=0, methods=["greedy", "line"], decoders=["threshold"])
    blends = [row for row in report.rows if not row.is_single]
    assert report.chosen.method != "uniform"
    assert report.chosen is report.best is max(blends, key=lambda row: row.nested)
    assert report.best_over_uniform.low > 0
    assert max(report.weights) == report.weights[0] > 0.4
    assert f"{report.chosen.method} beats the best uniform blend by +" in report.text()


def test_the_gain_that_is_said_is_the_chosen_methods_and_sure_among_all_candidates(three, monkeypatch):
    members, labels, folds = three
    original = evaluate_module.cross_fit
    noise = np.random.default_rng(0).normal(0, 0.5, len(labels))

    def staged(*args):
        found = original(*args)
        uniform = found.judged["uniform", "threshold"]
        steady, noisy = 0.005, 0.02 + noise - noise.mean()
        for method, gain in (("greedy", steady), ("line", noisy)):
            found.judged[method, "threshold"] = replace(
                uniform, method=method, own=uniform.own + gain, nested=uniform.nested + gain
            )
        return found

    monkeypatch.setattr(evaluate_module, "cross_fit", staged)
    report = evaluate(
        members,
        labels,
        folds,
        seed=0,
        methods=["greedy", "line"],
        decoders=["threshold"],
        scale="probability",
    )
    assert (report.chosen.method, report.best.method) == ("greedy", "line")
    assert "greedy beats the best uniform blend by +0.0050 [+0.0050, +0.0050]" in report.text()


def test_a_candidate_that_is_sure_alone_but_not_among_many_is_not_chosen(three, monkeypatch):
    members, labels, folds = three
    original = evaluate_module.cross_fit
    rng = np.random.default_rng(1)
    methods = ["greedy", "nelder-mead", "powell", "line", "smooth"]
    draws = rng.normal(0, 1, (len(methods), len(labels)))
    draws = (draws - draws.mean(axis=1, keepdims=True)) / draws.std(axis=1, keepdims=True)
    gains = 0.1 * draws + 2.2 * 0.1 / np.sqrt(len(labels))  # each 2.2 standard errors above 0

    def staged(*args):
        found = original(*args)
        uniform = found.judged["uniform", "threshold"]
        for method, gain in zip(methods, gains, strict=True):
            found.judged[method, "threshold"] = replace(
                uniform, method=method, own=uniform.own + gain, nested=uniform.nested + gain
            )
        return found

    monkeypatch.setattr(evaluate_module, "cross_fit", staged)
    report = evaluate(
        members, labels, folds, seed=0, methods=methods, decoders=["threshold"], scale="probability"
    )
    assert all(row.over_uniform.low > 0 for row in report.rows if row.method in methods)
    assert report.chosen.method == "uniform"


def test_a_blend_with_noise_says_that_it_does_not_beat_the_best_variant(make_members):
    members, labels, folds = make_members([1.0])
    noise = Member("noise", np.random.default_rng(1).random(labels.shape).astype(np.float16))
    report = evaluate([*members, noise], labels, folds, seed=0, methods=["greedy"], decoders=["threshold"])
    assert report.single.method == "noise0"
    assert report.chosen.over_single.low <= 0
    assert "the blend beats the best single variant by" not in report.text()


def test_the_method_that_is_asked_for_is_used_whatever_it_is_worth(make_members):
    report = evaluate(
        *make_members([1.5, 1.5]), seed=0, methods=(), use="greedy", decoders=["threshold", "expected-f2"]
    )
    assert {row.method for row in report.rows if not row.is_single} == {"uniform", "greedy"}
    assert report.chosen.method == "greedy"
    assert report.nested == max(row.nested for row in report.rows if row.method == "greedy")
    assert report.forced
    assert "greedy was asked for" in report.text()


def test_limits_hold_for_all_blends_but_uniform_weights_of_what_they_leave(three):
    report = evaluate(
        *three, seed=0, methods=["greedy", "line"], decoders=["threshold"], max_members=2, min_weight=0.2
    )
    for row in report.rows:
        for weights in (row.weights, *row.weights_by_fold):
            used = [weight for weight in weights if weight > 0]
            assert len(used) <= 2
            assert min(used) >= 0.2


@pytest.mark.parametrize("scale", SCALES)
def test_members_are_averaged_on_the_scale_whose_uniform_blend_is_better_nested(three, scale):
    report = evaluate(*three, seed=0, methods=())
    assert report.scale == max(SCALES, key=lambda each: report.uniform_by_scale[each])
    given = evaluate(*three, seed=0, methods=(), scale=scale)
    assert (given.scale, given.uniform_by_scale) == (scale, {})
    best = max(row.nested for row in given.rows if row.method == "uniform")
    assert report.uniform_by_scale[scale] == pytest.approx(best, abs=1e-12)


def test_one_variant_is_a_blend_of_weight_one(make_members):
    report = evaluate(*make_members([1.0]), seed=0)
    assert (report.weights, report.chosen.method) == ((1.0,), "uniform")
    assert report.nested == report.single.nested
    assert "nothing to blend" in report.text()


def test_margins_are_decided_at_0(make_members):
    members, labels, folds = make_members([1.0, 2.0])
    shifted = [
        replace(m, probs=m.probs.astype(np.float32) - np.float32(t), margins=True)
        for m, t in zip(members, (0.2, 0.1), strict=True)
    ]
    report = evaluate(shifted, labels, folds, seed=0, methods=["line"])
    total = averaged([m.probs for m in shifted], np.array(report.weights), "probability")
    assert {row.decoder for row in report.rows} == {"threshold"}
    assert report.decoder.threshold == 0
    assert report.thresholds == (0, 0)
    own = F2.score(total > 0, labels)  # the 2019 solution's rule: no label where none is above 0
    assert report.chosen.own == pytest.approx(own, abs=1e-12)


def test_the_same_seed_gives_the_same_report_as_json(three):
    how = {"methods": ["greedy"], "groups": GROUPS}
    one, two = (json.dumps(evaluate(*three, seed=4, **how).to_dict(), allow_nan=False) for _ in range(2))
    assert one == two
    assert json.loads(one)["text"].startswith(" ")
    assert json.loads(one)["nested"] == json.loads(one)["chosen"]["nested"]


def test_variants_may_have_the_names_of_methods(three):
    members, labels, folds = three
    names = ("uniform", "greedy", "member 0")
    renamed = [replace(member, name=name) for member, name in zip(members, names, strict=True)]
    plain, other = (
        evaluate(given, labels, folds, seed=0, methods=["greedy"]) for given in (members, renamed)
    )
    assert other.nested == plain.nested
    assert other.text().count("\n") == plain.text().count("\n")


@pytest.mark.parametrize("value", [0, 1])
def test_members_and_labels_that_are_all_the_same_can_be_judged(value):
    probs = np.full((12, 3), value, np.float16)
    for labels in (np.zeros((12, 3), np.uint8), np.ones((12, 3), np.uint8)):
        members = [Member("a", probs), Member("b", probs)]
        report = evaluate(members, labels, np.arange(12) % 3, seed=0, methods=["smooth"])
        assert report.chosen.method == "uniform"
        assert json.dumps(report.to_dict(), allow_nan=False)


def test_a_fold_that_no_picture_of_the_sample_is_outside_of_has_temperature_1(
    make_members, cross_fits, monkeypatch
):
    members, labels, _ = make_members([1.0, 1.5], n=80)
    monkeypatch.setattr(problem_module, "SAMPLE", 20)
    rows = BlendProblem(members, labels, np.zeros(80, int), "f2").sample.rows
    folds = np.isin(np.arange(80), rows).astype(int)
    evaluate(
        members, labels, folds, seed=0, methods=["nelder-mead"], decoders=["expected-f2"], scale="probability"
    )
    assert cross_fits[-1].judged["nelder-mead", "expected-f2"].by_fold[1].decoder.temperature == 1


@pytest.mark.parametrize(
    ("member", "options", "message"),
    [
        (GOOD, {"methods": ["lines"]}, "unknown method 'lines': did you mean 'line'"),
        (GOOD, {"methods": (), "use": "best"}, "unknown method 'best'"),
        (GOOD, {"use": "best"}, "unknown method 'best'"),
        (GOOD, {"decoders": ["treshold"]}, "unknown decoder 'treshold': did you mean 'threshold'"),
        (
            GOOD,
            {"decoders": ["group-thresholds"]},
            "group-thresholds' cannot be used: labels.csv needs a column",
        ),
        (GOOD, {"decoders": ["group-thresholds"], "groups": ["a", "a"]}, "cannot be used: labels.csv needs"),
        (MARGINS, {"decoders": ["expected-f2"]}, "expected-f2' cannot be used: the members' thresholds"),
        (GOOD, {"level2": ["logistics"]}, "unknown level 2 'logistics': did you mean 'logistic'"),
        (GOOD, {"min_weight": 1.5}, r"--min-weight must be in 0\.\.1, got 1\.5"),
        (GOOD, {"min_weight": float("nan")}, "--min-weight must be in"),
        (GOOD, {"max_members": 0}, "--max-members must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_fitted(member, options, message):
    def runner(problem, tasks):
        raise AssertionError("fitted")

    with pytest.raises(ConfigError, match=message):
        evaluate([member, replace(member, name="b")], LABELS, FOLDS, seed=0, runner=runner, **options)


@pytest.mark.parametrize("decoder", ["threshold", "group-thresholds", "expected-f2"])
def test_where_pictures_have_no_label_the_blend_is_scored_and_decoded_with_empty_sets(make_members, decoder):
    members, labels, folds = make_members([1.0, 1.5], n=90, c=6, negatives=True)
    assert not labels.any(axis=1).all()
    given = {"groups": GROUPS, "methods": ["uniform"], "decoders": [decoder], "scale": "probability"}
    report = evaluate(members, labels, folds, **given)
    assert report.decoder.negatives
    probs = averaged([member.probs for member in members], np.array(report.weights), "probability")
    decoded = report.decoder.decode(probs)
    assert not decoded.any(axis=1).all()
    assert report.chosen.own == pytest.approx(F2.score(decoded, labels), abs=1e-12)
    always = report.decoder.model_copy(update={"negatives": False})
    assert report.chosen.own > F2.score(always.decode(probs), labels)
