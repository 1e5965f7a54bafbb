"""What float16 weights cost: measured out of fold, and taken only where that is surely nothing."""

import html

import numpy as np
import pytest

from imet_ray.blending.blend_run import RunToBlend, blend_run
from imet_ray.blending.fit_jobs import solve_here
from imet_ray.blending.options import BlendOptions
from imet_ray.prediction.ensemble import read_ensemble
from imet_ray.storage.results import standings
from kernel_builder import float16_check
from kernel_builder.float16_check import Float16Loss, float16_loss, loss_between, measure_loss


@pytest.mark.parametrize(
    ("moved", "noise", "harmless"),
    [
        (0.0, 0.0, True),
        (0.0003, 0.00005, True),
        (-0.0003, 0.00005, True),
        (0.0003, 0.0001, False),  # it may be 0.0005
        (0.0006, 0.0, False),
        (-0.0006, 0.0, False),
        (0.0, 0.001, False),
    ],
)
def test_harmless_is_what_surely_moves_the_score_by_less_than_the_limit_up_or_down(moved, noise, harmless):
    assert Float16Loss(moved, noise, 100, "cpu").harmless is harmless


def test_the_loss_is_the_mean_difference_with_its_standard_error():
    rng = np.random.default_rng(0)
    before, change = rng.random(400), rng.normal(0.01, 0.1, 400)
    found = loss_between(before, before + change, "cpu")
    assert found.moved == pytest.approx(change.mean())
    assert found.noise == pytest.approx(change.std() / 20)
    assert found.pictures == 400


@pytest.fixture
def blended(trained):
    """An ensemble of the run's two variants."""
    run = trained.run
    whole = standings(run.store, ["a", "b"])
    options = BlendOptions(methods=(), use="uniform", decoders=("threshold",))
    to_blend = RunToBlend(run.store, run.data, run.catalog, run.experiment.space, whole)
    blend_run(to_blend, "half", options, runner=solve_here)
    return read_ensemble(run.store.ensemble("half"))


def test_weights_that_are_rounded_move_the_score_little_and_broken_ones_much(trained, blended, monkeypatch):
    run = trained.run
    assert abs(measure_loss(run, blended, blended.members).moved) < 0.02
    original = float16_check.predict_rows
    calls = 0

    def broken(*args, **kwargs):
        nonlocal calls
        calls += 1
        probs = original(*args, **kwargs)
        return probs if calls % 2 else 1 - probs  # the second time weights are rounded

    monkeypatch.setattr(float16_check, "predict_rows", broken)
    found = measure_loss(run, blended, blended.members)
    assert abs(found.moved) > 0.02
    assert not found.harmless


def test_numbers_that_float16_cannot_hold_are_not_harmless(trained, blended, monkeypatch):
    def infinite(model, pack, rows, how):
        return np.full((len(rows), len(trained.run.data.label_ids)), np.nan, np.float16)

    monkeypatch.setattr(float16_check, "predict_rows", infinite)
    assert not measure_loss(trained.run, blended, blended.members).harmless


def test_it_is_measured_once_and_said_in_the_report(trained, blended, monkeypatch):
    run, place = trained.run, trained.run.store.ensemble("half")
    place.half.unlink(missing_ok=True)
    place.report.write_text("the blend's")
    measured = float16_loss(run, blended, blended.members)
    assert f"Weights stored as float16: {measured}." in html.unescape(place.report.read_text())

    def again(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(float16_check, "measure_loss", again)
    assert float16_loss(run, blended, blended.members) == measured
    place.half.write_text("[]")  # damaged
    with pytest.raises(AssertionError, match="measured again"):
        float16_loss(run, blended, blended.members)


def test_a_variance_that_float16_cannot_hold_is_not_harmless_though_it_predicts_numbers(
    trained, blended, monkeypatch
):
    original = float16_check.load_tagger

    def large(path, device):
        model, info = original(path, device)
        next(t for name, t in model.state_dict().items() if name.endswith("running_var")).fill_(1e5)
        return model, info

    monkeypatch.setattr(float16_check, "load_tagger", large)
    assert not measure_loss(trained.run, blended, blended.members).harmless
