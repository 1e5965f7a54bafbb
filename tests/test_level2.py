"""What stacking is said to be worth beside the blend: nested, blind, never used."""

import sys

import numpy as np
import pytest
from blends import evaluate

from imet_ray.blending.cross_fit import silent
from imet_ray.blending.evaluate import score_level2
from imet_ray.blending.fit_jobs import solve_here
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.stacking import STACKS
from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import METRICS

F2 = METRICS["f2"]


def score(kind, members, labels, folds):
    """The scores of each picture, own and nested, by decoder."""
    found = score_level2(kind, BlendProblem(members, labels, folds, "f2"), solve_here, silent)
    return {one.decoder: (one.own, one.nested) for one in found}


@pytest.fixture(scope="module")
def two(make_members):
    return make_members([0.7, 2.0], c=6)


@pytest.fixture
def first_of_two(monkeypatch):
    """Stacking that takes the first member as it is."""
    monkeypatch.setitem(STACKS, "logistic", lambda probs, labels, folds, seed: probs[0])


def test_stacked_probabilities_are_scored_by_picture_own_and_nested_under_both_decoders(two, first_of_two):
    members, labels, folds = two
    stacked = members[0].probs
    found = score("logistic", members, labels, folds)
    own, nested = found["threshold"]
    assert set(found) == {"threshold", "expected-f2"}
    assert own.shape == nested.shape == (len(labels),)
    threshold = F2.best_threshold(stacked, labels)[0]
    assert own.mean() >= F2.score(stacked.astype(np.float32) > np.float32(threshold), labels)
    alone = {row.decoder: row for row in evaluate(members[:1], labels, folds, seed=0).rows if row.is_single}
    for decoder, (own, nested) in found.items():
        far = 1e-12 if decoder == "expected-f2" else 0.02  # the thresholds' ranges differ
        assert own.mean() == pytest.approx(alone[decoder].own, abs=far)
        assert nested.mean() == pytest.approx(alone[decoder].nested, abs=far)


@pytest.mark.parametrize("decoder", ["threshold", "expected-f2"])
def test_threshold_and_temperature_of_a_fold_are_blind_to_its_labels(two, first_of_two, decoder):
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


def test_stacking_stands_beside_the_blend_and_is_never_used(two):
    how = {"seed": 0, "methods": (), "scale": "probability"}
    report, plain = evaluate(*two, level2="logistic", **how), evaluate(*two, **how)
    assert [found.decoder for found in report.level2] == ["threshold", "expected-f2"]
    assert report.chosen == plain.chosen
    assert plain.level2 == ()
    for found in report.level2:
        assert found.kind == "logistic"
        assert found.over_best.mean == pytest.approx(found.nested - report.best.nested, abs=1e-12)
        assert f"level 2, logistic, {found.decoder}: nested {found.nested:.4f}" in report.text()


def test_lightgbm_that_is_not_installed_says_how_to_get_it(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match="uv sync --extra lightgbm"):
        score("lightgbm", *two)


def test_lightgbm_is_judged_likewise(two):
    pytest.importorskip("lightgbm")
    found = score("lightgbm", *two)
    assert set(found) == {"threshold", "expected-f2"}
    assert all(0.3 < nested.mean() < 0.9 for _, nested in found.values())
