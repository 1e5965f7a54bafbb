"""The learning-rate finder: its curve, its suggestion, and `lr: auto`."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import launch
from imet_ray.commands import learning_rates
from imet_ray.errors import ConfigError, TrialError
from imet_ray.space_file import read_space
from imet_ray.storage.checked_read import read_arrays
from imet_ray.storage.experiment import read_experiment
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training import lr_finder
from imet_ray.training.lr_finder import HIGHEST, LOWEST, RateCurve, find_rate, rising_rates, smooth
from imet_ray.training.recipe import check_recipe

CPU = torch.device("cpu")


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_the_loss_is_smoothed_by_weights_that_fall_with_age(losses):
    for i, found in enumerate(smooth(losses)):
        weights = [0.9 ** (i - j) for j in range(i + 1)]
        expected = sum(w * loss for w, loss in zip(weights, losses, strict=False)) / sum(weights)
        assert found == pytest.approx(expected, abs=1e-9)


def curve(smoothed):
    rates = rising_rates()[: len(smoothed)]
    return RateCurve(rates, np.array(smoothed), np.array(smoothed))


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_least_loss():
    falls = [1.0] * 50 + [0.9, 0.5, 0.8]
    assert curve(falls).suggestion == pytest.approx(rising_rates()[51] / 10, rel=0.05)


@pytest.mark.parametrize("smoothed", [[1.0, 0.9, 2.0], [1.0] * 5 + [1.1] * 60])
def test_where_the_loss_falls_at_no_rate_none_is_suggested(smoothed):
    with pytest.raises(TrialError, match="the loss fell at no rate from 1e-07 to"):
        _ = curve(smoothed).suggestion


@pytest.mark.parametrize(
    "settings",
    [{}, {"mixup": 0.3, "dropout": 0.3, "accumulate": 2, "layer_decay": 0.7, "schedule": "onecycle"}],
    ids=["plain", "all"],
)
def test_the_same_spec_gives_the_same_curve(tiny_data, make_spec, monkeypatch, settings):
    monkeypatch.setattr(lr_finder, "UPDATES", 12)
    seen = []
    one = find_rate(make_spec(**settings), tiny_data, device=CPU, on_update=lambda: seen.append(1))
    two = find_rate(make_spec(**settings), tiny_data, device=CPU)
    assert np.array_equal(one.losses, two.losses)
    assert len(one.losses) == len(one.rates) == len(one.smoothed) == len(seen)
    assert one.rates[0] == LOWEST
    assert not np.array_equal(
        one.losses, find_rate(make_spec(fold=1, **settings), tiny_data, device=CPU).losses
    )


def test_the_ramp_stops_where_the_loss_diverges(tiny_data, make_spec, monkeypatch):
    monkeypatch.setattr(lr_finder, "LOWEST", 1e-2)
    monkeypatch.setattr(lr_finder, "HIGHEST", 1e6)
    found = find_rate(make_spec(optimizer="sgd"), tiny_data, device=CPU)
    assert 3 < len(found.losses) < lr_finder.UPDATES
    assert np.isfinite(found.losses).all()


SPACE = (
    "n_folds: 3\n"
    "base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, keep: last, schedule: constant}\n"
    "variants: [{name: a, lr: auto}, {name: b}]\n"
)
FALLING = [1.0 - 0.01 * i for i in range(60)]  # rates[59] / 10


@pytest.fixture
def stage(tiny_root, tiny_cache, tmp_path, capsys, monkeypatch):
    """Runs launch.py on a space; the finder is a known curve, and is counted."""

    def known(spec, data, **options):
        _stage.ramps.append(spec)
        return curve(_stage.losses)

    monkeypatch.setattr(learning_rates, "find_rate", known)
    (tmp_path / "space.yml").write_text(SPACE)
    where = ["--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root), "--name", "r"]
    where += ["--space", str(tmp_path / "space.yml"), "--data", str(tiny_root)]

    def _stage(*argv):
        capsys.readouterr()
        code = launch.main([*argv, *where])
        out = capsys.readouterr()
        return code, out.out, out.err

    _stage.ramps, _stage.losses, _stage.store = [], FALLING, RunDirectory(tmp_path / "runs" / "r")
    return _stage


RATE = float(f"{rising_rates()[59] / 10:.1e}")


def test_an_automatic_rate_is_found_once_and_is_that_of_every_fold(stage):
    for fold in "01":
        code, out, _ = stage("--train", "--variant", "a", "--fold", fold)
        assert code == 0
    assert "lr      a: at most 100 updates of fold 0" not in out
    assert len(stage.ramps) == 1
    assert [read_spec(trial).recipe.lr for trial in stage.store.trials()] == [RATE, RATE]
    assert read_experiment(stage.store).space.variants[0].lr == RATE
    assert json.loads(stage.store.rate("a", 0).rate.read_text())["lr"] == RATE
    assert stage("--train", "--variant", "b", "--fold", "0")[0] == 0  # a rate of its own
    assert {read_spec(trial).recipe.lr for trial in stage.store.trials()} == {RATE, 1e-4}


def test_a_trial_with_a_found_rate_is_that_with_the_number(stage, tmp_path):
    stage("--train", "--variant", "a", "--fold", "0")
    (tmp_path / "space.yml").write_text(SPACE.replace("auto", f"{RATE:.6e}"))
    assert stage("--train", "--variant", "a", "--fold", "0")[0] == 0
    assert len(stage.store.trials()) == 1


def test_killed_after_the_ramp_it_is_not_run_again(stage, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("imet_ray.commands.setup.refuse_changed", killed)
        with pytest.raises(Killed):
            stage("--train", "--variant", "a", "--fold", "0")
    assert not stage.store.experiment.exists()
    stage.losses = FALLING[:30]
    assert stage("--train", "--variant", "a", "--fold", "0")[0] == 0
    assert read_spec(stage.store.trials()[0]).recipe.lr == RATE


def test_another_recipe_has_a_ramp_of_its_own_or_is_refused_by_what_differs(stage, tmp_path):
    assert stage("--find-lr", "--variant", "a")[0] == 0
    (tmp_path / "space.yml").write_text(SPACE.replace("keep: last", "keep: last, dropout: 0.5"))
    assert stage("--train", "--variant", "a", "--fold", "0")[0] == 0
    assert [spec.recipe.dropout for spec in stage.ramps] == [0.0, 0.5]
    (tmp_path / "space.yml").write_text(SPACE)
    code, _, err = stage("--train", "--variant", "a", "--fold", "0")
    assert code == 1
    assert "knows variant 'a' with dropout=0.5, now it is 0.0" in err
    assert len(stage.ramps) == 2


def test_a_run_that_was_begun_with_a_number_does_not_take_another(stage, tmp_path):
    (tmp_path / "space.yml").write_text(SPACE.replace("auto", "0.002"))
    assert stage("--train", "--variant", "a", "--fold", "0")[0] == 0
    (tmp_path / "space.yml").write_text(SPACE)
    code, _, err = stage("--train", "--variant", "a", "--fold", "0")
    assert code == 1
    assert "knows variant 'a' with lr=0.002, now it is auto" in err
    assert not stage.ramps


def test_where_no_rate_is_found_nothing_is_trained(stage):
    stage.losses = [1.0, 2.0]
    code, _, err = stage("--train", "--variant", "a", "--fold", "0")
    assert code == 1
    assert "variant 'a': the loss fell at no rate" in err
    assert "set lr to a number" in err
    assert not stage.store.trials()


def test_a_sweep_trains_at_the_found_rate(stage, monkeypatch):
    from imet_ray.commands import sweep

    class Asked(BaseException):
        pass

    def asked(space, *args, **options):
        raise Asked(space)

    monkeypatch.setattr(sweep, "run_sweep", asked)
    monkeypatch.setattr(sweep, "_on_ray", lambda *args: contextlib.nullcontext())
    monkeypatch.setattr(sweep, "_describe", lambda session: "")
    with pytest.raises(Asked) as caught:
        stage("--sweep")
    assert [variant.lr for variant in caught.value.args[0].variants] == [RATE, 1e-4]


def test_the_finder_says_a_rate_and_leaves_curve_and_page(stage, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = stage("--find-lr", "--variant", "b", "--fold", "2", "--out", str(page))
    assert code == 0
    assert f"suggested for b: lr: {RATE:g}" in out
    assert stage.ramps[0].fold == 2
    arrays = read_arrays(stage.store.rate("b", 2).curve)
    assert arrays["rates"].shape == arrays["losses"].shape == arrays["smoothed"].shape == (60,)
    text = page.read_text()
    assert "Training loss at a rising rate" in text
    assert f"Suggested: lr {RATE:.1e}" in text
    assert not stage.store.experiment.exists()  # nothing is decided yet
    stage("--find-lr", "--variant", "b", "--fold", "2")
    assert len(stage.ramps) == 1


def test_a_curve_without_a_suggestion_is_shown(stage):
    stage.losses = [1.0, 2.0]
    code, out, _ = stage("--find-lr", "--variant", "b")
    assert code == 1
    assert "the loss of b fell at no rate" in out
    assert "set lr by hand" in stage.store.rate("b", 0).page.read_text()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--variant", "c"], "unknown variant 'c'"),
        (["--variant", "a", "--fold", "3"], "fold must be below n_folds=3, got 3: choose 0..2"),
        (["--variant", "a", "--epochs", "2"], "--epochs has no meaning for --find-lr"),
    ],
)
def test_a_mistake_is_one_line(stage, argv, expected):
    code, _, err = stage("--find-lr", *argv)
    assert code == 1
    assert expected in err


def test_a_rate_is_not_both_found_and_searched(tmp_path):
    path = tmp_path / "space.yml"
    path.write_text(SPACE + "search: {lr: {low: 0.001, high: 0.01}}\n")
    with pytest.raises(ConfigError, match="line 4: lr is auto, and searched"):
        read_space(path, check=check_recipe)


def test_rates_rise_evenly_in_their_logarithm():
    rates = rising_rates()
    assert rates[[0, -1]] == pytest.approx([LOWEST, HIGHEST])
    assert np.ptp(np.diff(np.log(rates))) < 1e-9
