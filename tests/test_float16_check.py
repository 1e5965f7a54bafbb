"""What float16 weights cost: measured out of fold, and taken only where that is surely nothing."""

import html
import json
from types import SimpleNamespace

import numpy as np
import pytest

from imet_ray.blending.blend_run import RunToBlend, blend_run
from imet_ray.blending.fit_jobs import solve_here
from imet_ray.blending.options import BlendOptions
from imet_ray.prediction.ensemble import read_ensemble
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import standings
from imet_ray.storage.run_directory import RunDirectory
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
    assert abs(measure_loss(run, blended, blended.members, seconds=60).moved) < 0.02
    original = float16_check._predict
    calls = 0

    def broken(*args, **kwargs):
        nonlocal calls
        calls += 1
        probs = original(*args, **kwargs)
        return probs if calls % 2 else 1 - probs  # the second time weights are rounded

    monkeypatch.setattr(float16_check, "_predict", broken)
    found = measure_loss(run, blended, blended.members, seconds=60)
    assert abs(found.moved) > 0.02
    assert not found.harmless


def test_numbers_that_float16_cannot_hold_are_not_harmless(trained, blended, monkeypatch):
    def infinite(model, pack, rows, how, bar):
        return np.full((len(rows), len(trained.run.data.label_ids)), np.nan, np.float16)

    monkeypatch.setattr(float16_check, "_predict", infinite)
    assert not measure_loss(trained.run, blended, blended.members, seconds=60).harmless


def test_it_is_measured_once_and_said_in_the_report(trained, blended, monkeypatch):
    run, place = trained.run, trained.run.store.ensemble("half")
    place.half.unlink(missing_ok=True)
    place.report.write_text("the blend's")
    measured = float16_loss(run, blended, blended.members)
    assert f"Weights stored as float16: {measured}." in html.unescape(place.report.read_text())

    def again(*args, **options):
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
    assert not measure_loss(trained.run, blended, blended.members, seconds=60).harmless


@pytest.fixture
def moving(monkeypatch):
    """A run of 8,192 pictures whose scores change by draws of this mean and spread, and how many were asked for."""

    def _moving(mean, spread, seconds_each=0.0):
        asked, rng = [], np.random.default_rng(0)
        clock = [0.0]

        def scores(run, ensemble, members, rows, device):
            asked.append(len(rows))
            clock[0] += 1.0 + seconds_each * len(rows)
            return (np.full(len(rows), 0.5), 0.5 + rng.normal(mean, spread, len(rows))), 1.0

        monkeypatch.setattr(float16_check, "_scores", scores)
        monkeypatch.setattr(float16_check, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        run = SimpleNamespace(data=SimpleNamespace(split=SimpleNamespace(ids=range(8192))))
        return run, asked

    return _moving


@pytest.mark.parametrize(
    ("mean", "spread", "least", "most"),
    [(0.0, 0.0, 400, 1200), (0.0, 0.005, 400, 3000), (0.1, 0.01, 32, 32), (0.0003, 0.02, 8192, 8192)],
)
def test_as_many_pictures_are_predicted_as_the_standard_error_needs(moving, mean, spread, least, most):
    run, asked = moving(mean, spread)
    found = measure_loss(run, None, [], seconds=1e6)
    assert least <= sum(asked) == found.pictures <= most
    assert len(asked) <= 6
    assert found.sure or found.pictures == 8192


@pytest.mark.parametrize("seconds", [0, 5, 30, 100])
def test_no_more_time_is_taken_than_there_is_but_for_the_first_round(moving, seconds):
    run, asked = moving(0.0003, 0.02, seconds_each=0.02)
    found = measure_loss(run, None, [], seconds=seconds)
    taken = len(asked) + 0.02 * sum(asked)
    assert asked[0] == 32
    assert taken <= max(seconds, 1 + 32 * 0.02)
    assert "too few to be sure" in str(found)
    assert not found.harmless


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((110.0, 112.0), 12.0),  # at once: from 100 to 112
        ((110.0, 130.0), 20.0),  # one after the other, with a pause
        ((110.0, None), 20.0),  # one of an earlier version, which wrote no time of day
    ],
)
def test_the_sweeps_time_is_that_of_its_trials_or_from_the_first_to_the_last(tmp_path, ends, expected):
    store = RunDirectory(tmp_path)
    for i, at in enumerate(ends):
        trial = store.trial(f"t{i}")
        write_json(trial.spec, {})
        row = {"seconds": 8.0, "evaluate_s": 2.0} | ({} if at is None else {"at": at})
        write_json_lines(trial.metrics, [row])
    assert float16_check.sweep_seconds(store) == expected


def test_the_time_of_a_real_sweep_is_at_most_that_of_its_trials(trained):
    rows = [json.loads(t.metrics.read_text().splitlines()[0]) for t in trained.run.store.trials()]
    trained_s = sum(row["seconds"] + row["evaluate_s"] for row in rows)
    assert 0 < float16_check.sweep_seconds(trained.run.store) <= trained_s
