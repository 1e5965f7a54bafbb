"""Prefixes of the order of prediction: the last is the blend, each threshold is the best for what is there."""

import numpy as np
import pytest

from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.members import Member
from imet_ray.metrics import best_threshold


def with_seconds(members: list[Member], seconds) -> list[Member]:
    return [Member(m.name, m.probs, seconds=s) for m, s in zip(members, seconds, strict=True)]


@pytest.mark.parametrize("decoder", ["threshold", "group-thresholds", "expected-f2"])
def test_the_last_prefix_is_the_whole_ensemble_as_it_decodes(make_members, decoder):
    members, labels, folds = make_members([0.8, 1.5, 2.0])
    report = evaluate(
        members, labels, folds, seed=0, groups=("a", "b") * 4, methods=("uniform",), decoders=(decoder,)
    )
    assert [len(step.members) for step in report.prefixes] == [1, 2, 3]
    assert report.prefixes[-1].decoder == report.decoder
    assert set(report.prefixes[-1].members) == set(report.names)
    assert all(step.decoder.name == decoder for step in report.prefixes)


def test_a_prefixs_threshold_is_exactly_the_best_for_its_renormalised_weights(make_members):
    members, labels, folds = make_members([0.8, 1.5, 2.0])
    report = evaluate(
        members, labels, folds, seed=0, methods=("uniform",), decoders=("threshold",), scale="probability"
    )
    by_name = {m.name: m.probs.astype(np.float32) for m in members}
    for step in report.prefixes:
        mean = np.mean([by_name[name] for name in step.members], axis=0)
        assert step.f2 == pytest.approx(best_threshold(mean, labels)[1], abs=2e-3)


def test_of_two_equal_members_the_quicker_comes_first(make_members):
    members, labels, folds = make_members([1.0, 1.0])
    for seconds in ([0.1, 0.4], [0.4, 0.1]):
        same = with_seconds([members[0], Member("twin", members[0].probs)], seconds)
        report = evaluate(same, labels, folds, seed=0, methods=("uniform",), decoders=("threshold",))
        assert report.prefixes[0].members == (same[int(np.argmin(seconds))].name,)


def test_members_without_weight_are_in_no_prefix(make_members):
    members, labels, folds = make_members([0.5, 4.0, 4.0])
    report = evaluate(members, labels, folds, seed=0, use="greedy", decoders=("threshold",), max_members=1)
    used = {name for name, weight in zip(report.names, report.weights, strict=True) if weight > 0}
    assert [set(step.members) for step in report.prefixes] == [used]
