"""What a blend is said to be worth: honest, reproducible, chosen beyond noise, and refused where it cannot be had."""

import json
from dataclasses import replace

import numpy as np
import pytest

from imet_ray.averaging import SCALES, averaged
from imet_ray.blending import evaluate as evaluate_module
from imet_ray.blending import fit as fit_module
from imet_ray.blending import line, window
from imet_ray.blending.contest import Contest
from imet_ray.blending.diagnostics import without_member
from imet_ray.blending.evaluate import DECODERS, draw_sample, evaluate
from imet_ray.blending.fit import uniform
from imet_ray.blending.members import Member
from imet_ray.blending.run import frozen
from imet_ray.blending.scoring import bootstrap, decoder_of
from imet_ray.blending.solve import Job
from imet_ray.decode import Decoder, at_least_one, decode, decode_threshold
from imet_ray.errors import ConfigError
from imet_ray.metrics import best_threshold, f2_per_image, f2_score

GROUPS = ("a", "b") * 3  # of 6 labels
LABELS, FOLDS = np.array([[0, 1], [1, 0]], np.uint8), np.array([0, 1])
GOOD = Member("good", np.full((2, 2), 0.5, np.float16))


@pytest.fixture(autouse=True)
def quick_lines(monkeypatch):
    """One start and one kick of `line`: a tenth of the time, and how far it comes is not what is tested here."""
    monkeypatch.setattr(fit_module, "LINE_STARTS", 1)
    monkeypatch.setattr(line, "KICKS", (1, 1))


@pytest.fixture(scope="module")
def three(make_members):
    """One good member and two worse ones."""
    return make_members([0.7, 2.0, 2.0], n=90, c=6)


@pytest.fixture
def contests(monkeypatch) -> list[Contest]:
    """What was fitted and scored, by call of `evaluate`: the last of them with all methods."""
    found: list[Contest] = []
    original = evaluate_module.contest

    def spy(*args):
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(evaluate_module, "contest", spy)
    return found


def row_of(report, method, decoder):
    return next(row for row in report.rows if (row.method, row.decoder) == (method, decoder))


@pytest.mark.parametrize("scale", SCALES)
def test_the_nested_scores_of_a_fold_are_blind_to_its_labels(three, contests, scale, monkeypatch):
    monkeypatch.setattr(window, "ROOM", 50.0)  # how far thresholds are searched sees all folds
    members, labels, folds = three
    half = np.flatnonzero(folds == 1)[::2]
    changed = labels.copy()
    changed[half] = labels[half[::-1]]
    for truth in (labels, changed):
        evaluate(members, truth, folds, seed=0, groups=GROUPS, methods=["greedy"], scale=scale)
    others = np.setdiff1d(np.flatnonzero(folds == 1), half)  # of that fold, with the labels that they had
    before, after = (contest.scored for contest in contests)
    leaks = [key for key in before if not np.allclose(before[key][1][others], after[key][1][others])]
    assert leaks == []
    rest = folds != 1
    assert not all(np.array_equal(before[key][1][rest], after[key][1][rest]) for key in before)


@pytest.mark.parametrize("scale", SCALES)
def test_nested_scores_are_those_of_decoding_each_fold_with_what_was_fitted_without_it(
    three, contests, scale
):
    members, labels, folds = three
    report = evaluate(members, labels, folds, seed=0, groups=GROUPS, methods=["greedy"], scale=scale)
    solved, of_label = contests[0].solved, np.arange(6) % 2
    for row in report.rows:
        method = f"member {report.names.index(row.method)}" if row.is_single else row.method
        scores = np.empty(len(labels))
        for fold in range(3):
            rows = folds == fold
            fitted = solved[Job(method, row.decoder, fold)]
            decoder = decoder_of(fitted, row.decoder, contests[0].problem.cells.thresholds, of_label, scale)
            mean = averaged([member.probs[rows] for member in members], fitted.weights, scale)
            scores[rows] = f2_per_image(decode(mean, decoder), labels[rows])
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
    assert f2_score(decode(mean, report.decoder), labels) == pytest.approx(report.chosen.own, abs=2e-4)
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
    original = evaluate_module.contest
    noise = np.random.default_rng(0).normal(0, 0.5, len(labels))

    def staged(*args):
        found = original(*args)
        even = found.scored["uniform", "threshold"]
        steady, noisy = 0.005, 0.02 + noise - noise.mean()
        for method, gain in (("greedy", steady), ("line", noisy)):
            found.scored[method, "threshold"] = (even[0] + gain, even[1] + gain)
        return found

    monkeypatch.setattr(evaluate_module, "contest", staged)
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
    original = evaluate_module.contest
    rng = np.random.default_rng(1)
    methods = ["greedy", "nelder-mead", "powell", "line", "smooth"]
    draws = rng.normal(0, 1, (len(methods), len(labels)))
    draws = (draws - draws.mean(axis=1, keepdims=True)) / draws.std(axis=1, keepdims=True)
    gains = 0.1 * draws + 2.2 * 0.1 / np.sqrt(len(labels))  # each 2.2 standard errors above 0

    def staged(*args):
        found = original(*args)
        even = found.scored["uniform", "threshold"]
        for method, gain in zip(methods, gains, strict=True):
            found.scored[method, "threshold"] = (even[0] + gain, even[1] + gain)
        return found

    monkeypatch.setattr(evaluate_module, "contest", staged)
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
    assert report.scale == max(SCALES, key=lambda each: report.even_by_scale[each])
    given = evaluate(*three, seed=0, methods=(), scale=scale)
    assert (given.scale, given.even_by_scale) == (scale, {})
    best = max(row.nested for row in given.rows if row.method == "uniform")
    assert report.even_by_scale[scale] == pytest.approx(best, abs=1e-12)


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
    own = f2_score(at_least_one(total, total > 0), labels)
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


def test_a_members_worth_is_what_the_blend_loses_without_it_with_a_threshold_of_its_own(make_members):
    members, labels, folds = make_members([0.7, 2.0, 2.0], n=400)  # of fewer two thresholds may be best
    report = evaluate(members, labels, folds, seed=0, methods=(), decoders=["threshold"], scale="probability")
    for i, worth in enumerate(report.worth):
        rest = np.delete(uniform(3) * 1.5, i)
        mean = averaged([member.probs for member in members if member is not members[i]], rest, "probability")
        scores = np.empty(len(labels))
        for fold in range(3):
            rows = folds == fold
            threshold, _ = best_threshold(mean[~rows], labels[~rows])
            scores[rows] = f2_per_image(
                decode(mean[rows], Decoder(name="threshold", threshold=threshold)), labels[rows]
            )
        assert (worth.name, worth.without) == (members[i].name, pytest.approx(scores.mean(), abs=2e-4))
        assert worth.gain.mean == pytest.approx(report.nested - worth.without, abs=1e-12)
        assert worth.gain.low <= worth.gain.mean <= worth.gain.high


def test_the_weight_of_a_member_that_has_all_goes_to_the_others_evenly():
    assert without_member(np.array([0.2, 0.6, 0.2]), 1).tolist() == [0.5, 0, 0.5]
    assert without_member(np.array([0.0, 1.0, 0.0]), 1).tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("decoder", ["threshold", "expected-f2"])
def test_a_member_without_weight_adds_nothing(make_members, decoder):
    members, labels, folds = make_members([0.5, 0.5, 6.0, 6.0, 6.0, 6.0], n=120)
    how = {"methods": (), "use": "greedy", "decoders": [decoder], "max_members": 2}
    report = evaluate(members, labels, folds, seed=0, **how)
    by_fold = np.array(report.chosen.weights_by_fold)
    unused = [worth for i, worth in enumerate(report.worth) if not by_fold[:, i].any()]
    assert len(unused) >= 3
    assert [worth.gain.mean for worth in unused] == [0.0] * len(unused)


def test_a_fold_that_no_picture_of_the_sample_is_outside_of_has_temperature_1(
    make_members, contests, monkeypatch
):
    members, labels, _ = make_members([1.0, 1.5], n=80)
    rows = evaluate_module.draw_sample([m.probs for m in members], labels, 0, pictures=20).rows
    folds = np.isin(np.arange(80), rows).astype(int)
    monkeypatch.setattr(evaluate_module, "draw_sample", lambda *args: draw_sample(*args, pictures=20))
    evaluate(
        members, labels, folds, seed=0, methods=["nelder-mead"], decoders=["expected-f2"], scale="probability"
    )
    assert contests[-1].solved[Job("nelder-mead", "expected-f2", 1)].temperature == 1


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
        assert f2 == pytest.approx(f2_score(decode_threshold(mean, threshold), labels), abs=1e-3)
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


def test_the_frozen_ensemble_is_what_the_report_says(three):
    members, labels, folds = three
    members = [replace(members[0], seconds=0.5, size=7), *members[1:]]
    report = evaluate(members, labels, folds, seed=0, methods=["greedy"], remarks=["take care"])
    ensemble = frozen(
        "x", members, report, list("abcdef"), {"noise0": ["t0", "t1"]}, {"noise0": ["d0", "d1"]}
    )
    assert [member.weight for member in ensemble.members] == list(report.weights)
    for found, member in zip(ensemble.members, members, strict=True):
        alone = at_least_one(member.probs, decode_threshold(member.probs, found.threshold))
        assert f2_score(alone, labels) == pytest.approx(
            row_of(report, member.name, "threshold").own, abs=2e-4
        )
    assert [member.trials for member in ensemble.members] == [["t0", "t1"], [], []]
    assert (ensemble.members[0].seconds, ensemble.members[0].size) == (0.5, 7)
    assert (ensemble.decoder, ensemble.scale) == (report.decoder, report.scale)
    for member in ensemble.members:
        assert member.f2 == row_of(report, member.variant, report.chosen.decoder).nested
    assert "take care" in ensemble.report["text"]


@pytest.mark.parametrize("scale", SCALES)
def test_a_frozen_members_threshold_is_the_one_that_its_own_score_was_had_with(three, scale):
    members, labels, folds = three
    report = evaluate(members, labels, folds, seed=0, methods=(), scale=scale)
    for member, kept in zip(members, frozen("x", members, report, list("abcdef")).members, strict=True):
        decoder = Decoder(name="threshold", threshold=kept.threshold)
        own = f2_score(decode(member.probs, decoder), labels)
        assert own == pytest.approx(row_of(report, member.name, "threshold").own, abs=2e-4)


MARGINS = replace(GOOD, margins=True)


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
            "group-thresholds' cannot be had: labels.csv needs a column",
        ),
        (GOOD, {"decoders": ["group-thresholds"], "groups": ["a", "a"]}, "cannot be had: labels.csv needs"),
        (MARGINS, {"decoders": ["expected-f2"]}, "expected-f2' cannot be had: the members' thresholds"),
        (MARGINS, {"level2": "logistic"}, "need probabilities"),
        (MARGINS, {"scale": "log-odds"}, "need probabilities"),
        (GOOD, {"level2": "logistics"}, "unknown level 2 'logistics': did you mean 'logistic'"),
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
