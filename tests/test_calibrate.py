"""Calibrated probabilities: fitted out of fold, scored without the fold, and no label set is another for it."""

import json

import numpy as np
import pytest
from blends import evaluate
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from imet_ray.blending.calibrate import calibrate, count_cells, fit
from imet_ray.blending.members import Member
from imet_ray.prediction.calibration import HIGH, LOW, Calibration
from imet_ray.prediction.ensemble import Ensemble, ensemble_text, read_ensemble
from imet_ray.storage.checked_read import read_model


def drawn(slope, *, n=4000, c=5, seed=0):
    """Probabilities whose log-odds are `1 / slope` times the true ones; labels; folds."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 1.5, (n, c))
    labels = (rng.random((n, c)) < expit(odds)).astype(np.uint8)
    return expit(odds / slope).astype(np.float16), labels, np.arange(n) % 3


def counted(probs, labels, folds):
    return count_cells(lambda rows: probs[rows], labels, folds)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_the_slope_by_which_log_odds_are_off_is_found(slope):
    probs, labels, folds = drawn(slope)
    found = fit(counted(probs, labels, folds).sum(axis=0))
    assert found.slope == pytest.approx(slope, rel=0.05)
    assert found.intercept == pytest.approx(0, abs=0.05)


def test_counts_are_those_of_single_cells():
    probs, labels, folds = drawn(1.0, n=50)
    counts = counted(probs, labels, folds + 7)
    expected = np.zeros_like(counts)
    for i in range(len(probs)):
        for c in range(labels.shape[1]):
            expected[folds[i], labels[i, c], probs[i, c].view(np.uint16)] += 1
    assert np.array_equal(counts, expected)


def test_scores_are_those_of_single_cells_each_by_the_fit_without_its_fold():
    probs, labels, folds = drawn(0.5, n=300)
    counts = counted(probs, labels, folds)
    found = calibrate(counts, counts)
    after = np.empty(probs.shape)
    for fold in range(3):
        others = fit(counts.sum(axis=0) - counts[fold])
        after[folds == fold] = others.applied(probs[folds == fold])
    for p, loss, error in (
        (np.clip(probs.astype(float), LOW, HIGH), found.log_loss_before, found.error_before),
        (after, found.log_loss, found.error),
    ):
        assert loss == pytest.approx(-np.log(np.where(labels == 1, p, 1 - p)).mean(), rel=1e-5)
        bins = np.minimum((p * 15).astype(int), 14)
        off = [abs(p[bins == b].sum() - labels[bins == b].sum()) for b in range(15)]
        assert error == pytest.approx(sum(off) / p.size, rel=1e-3)
    assert found.log_loss < found.log_loss_before
    assert found.error < found.error_before


def test_labels_that_nobody_or_everybody_has_are_no_fault():
    for label in (0, 1):
        labels = np.full((6, 2), label, np.uint8)
        counts = counted(np.full((6, 2), 0.5, np.float16), labels, np.arange(6) % 2)
        found = fit(counts.sum(axis=0))
        assert np.isfinite([found.slope, found.intercept]).all()
        assert abs(found.applied(np.array([0.5]))[0] - label) < 0.2


@given(st.floats(0.01, 100), st.floats(-20, 20), st.lists(st.floats(0, 1, width=16), min_size=2, max_size=30))
def test_calibration_keeps_the_order(slope, intercept, values):
    probs = np.sort(np.array(values, np.float32))
    found = Calibration(slope=slope, intercept=intercept).applied(probs)
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_a_blend_says_what_its_calibration_is_worth_and_decides_as_before(three):
    report = evaluate(*three, methods=["uniform"])
    found = report.calibration
    assert str(found) in report.text()
    kept = json.loads(json.dumps(report.to_dict()))["calibration"]
    assert kept["calibration"] == {"slope": found.calibration.slope, "intercept": found.calibration.intercept}
    assert kept["log_loss"] == found.log_loss
    members, labels, folds = three
    mean = np.mean([member.probs.astype(np.float32) for member in members], axis=0)
    own = fit(counted(mean, labels, folds).sum(axis=0))
    assert found.calibration.slope == pytest.approx(own.slope, rel=1e-2)


def test_level_2_is_calibrated_on_what_it_predicts_out_of_fold(three):
    weights, stacked = (evaluate(*three, methods=(), use=use) for use in ("uniform", "logistic"))
    assert stacked.model is not None
    assert stacked.calibration != weights.calibration


def test_margins_are_not_calibrated(three):
    members, labels, folds = three
    margins = [Member(m.name, (m.probs - np.float16(0.2)), margins=True) for m in members]
    report = evaluate(margins, labels, folds, methods=["uniform"])
    assert report.calibration is None
    assert report.to_dict()["calibration"] is None


def test_the_frozen_ensemble_has_it_and_one_of_before_is_read(swept, trained, tmp_path):
    ensemble = read_ensemble(trained.run.store.ensemble("k"))
    assert ensemble.calibration is not None
    before = tmp_path / "ensemble.json"
    before.write_text(ensemble_text(ensemble.model_copy(update={"calibration": None})))
    assert "slope" not in json.loads(before.read_text())
    assert "calibration" not in json.loads(before.read_text())
    assert read_model(before, Ensemble).calibration is None


def test_a_calibration_is_undone_by_its_inverse():
    probs = np.array([0.1, 0.5, 0.9])
    assert np.allclose(
        logit(Calibration(slope=2.0, intercept=1.0).applied(probs)), 2 * logit(probs) + 1, atol=1e-4
    )
