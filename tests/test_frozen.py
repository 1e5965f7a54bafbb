"""What `ensemble.json` holds of a blend."""

from dataclasses import replace

import pytest
from blends import evaluate

from imet_ray.blending.blend_run import frozen
from imet_ray.prediction.decode import Threshold, at_least_one, decode_threshold
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")


def row_of(report, method, decoder):
    return next(row for row in report.rows if (row.method, row.decoder) == (method, decoder))


def test_the_frozen_ensemble_is_what_the_report_says(three):
    members, labels, folds = three
    known = {"seconds": 0.5, "size": 7, "trials": ("t0", "t1"), "checkpoints": ("d0", "d1")}
    members = [replace(members[0], **known), *members[1:]]
    report = evaluate(members, labels, folds, seed=0, methods=["greedy"], remarks=["take care"])
    ensemble = frozen("x", members, report, list("abcdef"))
    assert [member.weight for member in ensemble.members] == list(report.weights)
    for found, member in zip(ensemble.members, members, strict=True):
        alone = at_least_one(member.probs, decode_threshold(member.probs, found.threshold))
        assert F2.score(alone, labels) == pytest.approx(
            row_of(report, member.name, "threshold").own, abs=2e-4
        )
    assert [member.trials for member in ensemble.members] == [["t0", "t1"], [], []]
    assert (ensemble.members[0].seconds, ensemble.members[0].size) == (0.5, 7)
    assert (ensemble.decoder, ensemble.scale) == (report.decoder, report.scale)
    for member in ensemble.members:
        assert member.score == row_of(report, member.variant, report.chosen.decoder).nested
    assert "take care" in ensemble.report["text"]


@pytest.mark.parametrize("scale", SCALES)
def test_a_frozen_members_threshold_is_the_one_that_its_own_score_was_had_with(three, scale):
    members, labels, folds = three
    report = evaluate(members, labels, folds, seed=0, methods=(), scale=scale)
    for member, kept in zip(members, frozen("x", members, report, list("abcdef")).members, strict=True):
        decoder = Threshold(threshold=kept.threshold)
        own = F2.score(decoder.decode(member.probs), labels)
        assert own == pytest.approx(row_of(report, member.name, "threshold").own, abs=2e-4)
