"""Prefixes of the order of prediction: the last is the blend, each threshold is the best for what is there."""

import numpy as np
import pytest
from blends import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.blending import deadline_order as prefixes_module
from imet_ray.blending.blend_run import frozen
from imet_ray.blending.cross_fit import CrossFit, Judged
from imet_ray.blending.deadline_order import prefixes
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import Solution
from imet_ray.blending.members import Member
from imet_ray.blending.methods import settled_shifts
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.prediction.decode import DECODERS, decode_threshold
from imet_ray.prediction.ensemble import Prefix, read_ensemble, write_ensemble
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES, averaged, on_scale
from imet_ray.storage.files import write_json
from imet_ray.storage.run_directory import RunDirectory

F2 = METRICS["f2"]

NOISE = [0.8, 1.5, 2.0]
GROUPS = np.array([0, 1] * 4)


def with_seconds(members: list[Member], seconds) -> list[Member]:
    return [Member(m.name, m.probs, seconds=s) for m, s in zip(members, seconds, strict=True)]


def order_of(members, labels, folds) -> list[str]:
    report = evaluate(members, labels, folds, seed=0, methods=("uniform",), decoders=("threshold",))
    return report.prefixes[-1].members


def steps_of(
    members, labels, folds, weights, *, decoder="threshold", scale="probability"
) -> tuple[Prefix, ...]:
    """The prefixes of any weights, the cells in dispute being nearly all that a threshold could reach."""
    problem = BlendProblem(
        [Member(m.name, m.probs) for m in members], labels, folds, "f2", label_groups="ab" * 4
    )
    first = [float(on_scale(np.array(0.3), scale))] * len(members)
    cells = DisputedCells.build(
        problem.values,
        first,
        labels,
        half_range=0.299 if scale == "probability" else 7.0,
        scale=scale,
        groups=GROUPS,
        metric="f2",
    )
    kind = DECODERS[decoder]
    if decoder == "expected-f2":
        used = Solution(weights, kind(metric="f2"))
    else:
        shifts = settled_shifts(cells, weights, np.zeros(kind.how_many(2)))
        used = Solution(weights, kind.fitted(cells.thresholds_of(weights, shifts), GROUPS))
    fits = FitProblem(cells, folds, GROUPS, problem.sample, 0)
    chosen = Judged("line", decoder, used, {}, np.zeros(len(labels)), np.zeros(len(labels)))
    return prefixes(chosen, CrossFit(problem, fits, {chosen.key: chosen}))


def dense(step: Prefix, members, weights, scale="probability") -> np.ndarray:
    """The blend of a prefix, its weights renormalised: (N, C) float32."""
    kept = [i for i, member in enumerate(members) if member.name in step.members]
    return averaged([members[i].probs for i in kept], weights[kept] / weights[kept].sum(), scale)


@pytest.mark.parametrize("decoder", ["threshold", "group-thresholds", "expected-f2"])
def test_the_last_prefix_is_the_whole_ensemble_as_it_decodes(make_members, decoder):
    members, labels, folds = make_members(NOISE)
    report = evaluate(
        members,
        labels,
        folds,
        seed=0,
        groups=("a", "b") * 4,
        methods=("line",),
        use="line",
        decoders=(decoder,),
    )
    ensemble = frozen("blend", members, report, list("abcdefgh"))
    used = {member.variant for member in ensemble.members if member.weight > 0}
    assert [len(prefix.members) for prefix in ensemble.prefixes] == [*range(1, len(used) + 1)]
    assert ensemble.prefixes[-1].decoder == ensemble.decoder
    assert set(ensemble.prefixes[-1].members) == used
    assert all(prefix.decoder.name == decoder for prefix in ensemble.prefixes)
    assert ensemble.prefixes[-1].score == pytest.approx(report.chosen.own, abs=1e-12)


def test_each_prefix_begins_with_the_one_before(make_members):
    members, labels, folds = make_members(NOISE)
    report = evaluate(members, labels, folds, seed=0, methods=("uniform",), decoders=("threshold",))
    for before, after in zip(report.prefixes, report.prefixes[1:], strict=False):
        assert after.members[:-1] == before.members


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from(SCALES), n_members=st.integers(1, 4))
def test_a_prefixs_threshold_is_the_best_for_its_renormalised_weights(make_members, seed, scale, n_members):
    rng = np.random.default_rng(seed)
    members, labels, folds = make_members(rng.uniform(0.3, 2.0, n_members), n=150, seed=seed)
    weights = rng.dirichlet(np.full(n_members, 2.0))
    for step in steps_of(members, labels, folds, weights, scale=scale):
        mixed = dense(step, members, weights, scale)
        assert step.decoder.threshold is not None
        found = F2.score(decode_threshold(mixed, step.decoder.threshold), labels)
        assert found == pytest.approx(F2.best_threshold(mixed, labels)[1], abs=1e-9)


@pytest.mark.parametrize("decoder", ["threshold", "group-thresholds", "expected-f2"])
def test_a_prefixs_score_is_that_of_decoding_it(make_members, decoder):
    members, labels, folds = make_members(NOISE)
    weights = np.array([0.5, 0.3, 0.2])
    for step in steps_of(members, labels, folds, weights, decoder=decoder):
        decoded = step.decoder.decode(dense(step, members, weights))
        assert step.score == pytest.approx(F2.score(decoded, labels), abs=1e-9)


def test_thresholds_by_group_are_no_worse_than_one_for_all(make_members):
    members, labels, folds = make_members(NOISE)
    weights = np.array([0.5, 0.3, 0.2])
    one = steps_of(members, labels, folds, weights)
    two = steps_of(members, labels, folds, weights, decoder="group-thresholds")
    for single, by_group in zip(one, two, strict=True):
        assert by_group.decoder.label_thresholds is not None
        assert len(set(by_group.decoder.label_thresholds[::2])) == 1
        assert (
            by_group.score >= single.score - 1e-3
        )  # pictures that are left without a label are not in what is fitted


def test_a_prefixs_temperature_is_no_worse_than_none(make_members):
    members, labels, folds = make_members(NOISE)
    weights = np.array([0.5, 0.3, 0.2])
    steps = steps_of(members, labels, folds, weights, decoder="expected-f2")
    for step in steps:
        plain = step.decoder.model_copy(update={"temperature": 1.0})
        assert step.score >= F2.score(plain.decode(dense(step, members, weights)), labels) - 1e-9
    assert len({step.decoder.temperature for step in steps}) > 1


def test_of_many_prefixes_each_still_decodes_by_a_temperature_that_is_no_loss(make_members, monkeypatch):
    members, labels, folds = make_members(NOISE)
    monkeypatch.setattr(prefixes_module, "WHOLE_SAMPLES", 1)  # every third picture of the sample
    weights = np.array([0.5, 0.3, 0.2])
    for step in steps_of(members, labels, folds, weights, decoder="expected-f2")[:-1]:
        mixed = dense(step, members, weights)
        plain = step.decoder.model_copy(update={"temperature": 1.0})
        third, truth = mixed[::3], labels[::3]
        assert F2.score(step.decoder.decode(third), truth) >= F2.score(plain.decode(third), truth) - 1e-9
        assert step.score == pytest.approx(F2.score(step.decoder.decode(mixed), labels), abs=1e-9)


def test_of_two_equal_members_the_quicker_comes_first(make_members):
    members, labels, folds = make_members([1.0, 1.0])
    for seconds in ([0.1, 0.4], [0.4, 0.1]):
        same = with_seconds([members[0], Member("copy", members[0].probs)], seconds)
        assert order_of(same, labels, folds)[0] == same[int(np.argmin(seconds))].name


def test_a_quick_member_that_is_no_better_than_none_is_not_first(make_members):
    members, labels, folds = make_members([0.5, 20.0])
    # by F2 per second alone it would be: it has a third of the other's F2 at least, in a ninth of the time
    assert order_of(with_seconds(members, [0.9, 0.1]), labels, folds)[0] == "noise0"


def test_a_quick_member_that_is_nearly_as_good_is_first(make_members):
    members, labels, folds = make_members([0.8, 1.0])
    assert order_of(with_seconds(members, [0.4, 0.1]), labels, folds)[0] == "noise1"


@pytest.mark.parametrize("seconds", [(None, 0.01), (None, None), (0.0, 0.01)])
def test_where_a_members_seconds_are_unknown_the_better_one_comes_first(make_members, seconds):
    members, labels, folds = make_members([0.5, 1.5])
    assert order_of(with_seconds(members, seconds), labels, folds)[0] == "noise0"


def test_the_order_of_very_different_members_is_found_on_some_of_the_pictures_alike(
    make_members, monkeypatch
):
    members, labels, folds = make_members([3.0, 0.3, 1.0])
    weights = np.full(3, 1 / 3)
    expected = [step.members[0] for step in steps_of(members, labels, folds, weights)]
    monkeypatch.setattr(prefixes_module, "MARGINS", 2500)
    assert (
        [step.members[0] for step in steps_of(members, labels, folds, weights)] == expected == ["noise1"] * 3
    )


def test_thresholds_that_are_subtracted_already_have_prefixes_too(make_members):
    members, labels, folds = make_members(NOISE)
    shifted = [Member(m.name, (m.probs.astype(np.float32) - 0.25), margins=True) for m in members]
    report = evaluate(shifted, labels, folds, seed=0, methods=("uniform",))
    assert [step.decoder.threshold for step in report.prefixes] == [0.0] * 3


def test_one_member_is_one_prefix(make_members):
    members, labels, folds = make_members([1.0])
    report = evaluate(members, labels, folds, seed=0)
    assert [(step.members, step.decoder) for step in report.prefixes] == [(["noise0"], report.decoder)]


def test_members_without_weight_are_in_no_prefix(make_members):
    members, labels, folds = make_members([0.5, 4.0, 4.0])
    report = evaluate(
        members,
        labels,
        folds,
        seed=0,
        methods=("greedy",),
        use="greedy",
        decoders=("threshold",),
        max_members=1,
    )
    used = {name for name, weight in zip(report.names, report.weights, strict=True) if weight > 0}
    assert [set(step.members) for step in report.prefixes] == [used]


def test_the_reports_data_name_the_order_its_scores_and_its_decoders(make_members):
    members, labels, folds = make_members([0.8, 1.5])
    report = evaluate(members, labels, folds, seed=0, methods=("uniform",), decoders=("threshold",))
    assert report.to_dict()["prefixes"] == [
        {"members": step.members, "decoder": "threshold", "own": step.score} for step in report.prefixes
    ]


def test_an_ensemble_of_before_there_were_prefixes_is_read(make_members, tmp_path):
    members, labels, folds = make_members([1.0])
    report = evaluate(members, labels, folds, seed=0, decoders=("threshold",))
    place = RunDirectory(tmp_path).ensemble("old")
    ensemble = frozen("old", members, report, list("abcdefgh"))
    write_ensemble(place, ensemble)
    assert read_ensemble(place).prefixes == ensemble.prefixes
    write_json(place.ensemble, ensemble.model_dump(mode="json", exclude={"prefixes"}))
    assert read_ensemble(place).prefixes == []
