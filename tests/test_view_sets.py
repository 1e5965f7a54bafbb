"""Views chosen at prediction: random ones, how they are pooled, their own files, an ensemble that names its views."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import blend
import launch
from imet_ray.commands import sweep as stages
from imet_ray.data.crops import CROPS, Cropping
from imet_ray.data.training_data import test_split as pictures_of_test
from imet_ray.data.views import VIEWS, apply_views, check_view, count_views, first_view
from imet_ray.errors import ConfigError, SettingError
from imet_ray.prediction.ensemble import blend_oof, blend_test, read_ensemble
from imet_ray.prediction.predict import Inference, predict_checkpoint, predict_rows, read_predictions
from imet_ray.prediction.view_sets import POOLS, ViewSet, other_views
from imet_ray.specs import Variant
from imet_ray.storage.results import read_spec
from imet_ray.training.recipe import check_recipe

CPU = torch.device("cpu")
RECIPE = Variant(name="v", architecture="test_resnet", image_size=16)  # its crop: rectangular
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_random_views_are_trainings_crops_flipped_or_not_and_drawn_by_row_and_number():
    views = apply_views(PICTURE, ["random:8:rectangular"], 16, row=3)
    assert len(views) == count_views(["random:8"]) == 8
    flipped = 0
    for k, view in enumerate(views):
        crop = CROPS["rectangular"](PICTURE, Cropping(16), random.Random(f"3/{k}"))
        flipped += np.array_equal(view, crop[:, ::-1])
        assert np.array_equal(view, crop) or np.array_equal(view, crop[:, ::-1])
    assert 0 < flipped < 8
    assert len({view.tobytes() for view in views}) == 8
    again = apply_views(PICTURE, ["centre", "random:2:rectangular"], 16, row=3)
    assert all(np.array_equal(a, b) for a, b in zip(again[1:], views, strict=False))
    other = apply_views(PICTURE, ["random:8:rectangular"], 16, row=4)
    assert not any(np.array_equal(a, b) for a, b in zip(other, views, strict=True))


def test_random_views_have_the_crop_of_the_recipe_unless_they_name_one():
    views = ViewSet.of(["centre", "random:2", "random:3:random"], None)
    assert views.bound(RECIPE) == ("centre", "random:2:rectangular", "random:3:random")


@pytest.mark.parametrize(
    ("names", "pooling", "expected"),
    [
        (["centr"], None, "unknown view 'centr': did you mean 'centre'?"),
        ([""], None, "unknown view ''"),
        (["random"], None, "random views have a number in 1..99, such as random:8, got 'random'"),
        (["random:0"], None, "got 'random:0'"),
        (["random:100"], None, "got 'random:100'"),
        (["random:2:square"], None, "unknown crop 'square'"),
        (["flip", "flip"], None, "--views takes each view once, got flip,flip"),
        (["flip"], "median", "unknown way to pool views 'median'"),
    ],
)
def test_views_that_cannot_be_are_one_line(names, pooling, expected):
    with pytest.raises(ConfigError) as error:
        ViewSet.of(names, pooling)
    assert expected in str(error.value)


@pytest.mark.parametrize("main", [launch.main, blend.main])
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--pool-views", "max"], "--pool-views max says how --views are pooled: give these, too"),
        (["--views", "centr", "--runs", "/nowhere"], "unknown view 'centr': did you mean 'centre'?"),
    ],
)
def test_a_wrong_view_is_one_line_before_a_run_is_opened(main, argv, expected, capsys):
    assert main([*(["--oof"] if main is launch.main else []), *argv]) == 1
    err = capsys.readouterr().err
    assert expected in err
    assert len(err.splitlines()) == 1


def test_a_recipe_may_have_random_views_and_validates_with_one_picture_of_them():
    recipe = RECIPE.model_copy(update={"views": ("random:2", "centre")})
    check_recipe(recipe)
    how = Inference.quick(recipe, CPU)
    assert how.views == ("random:1:rectangular",)
    assert count_views(how.views) == 1
    assert Inference.quick(RECIPE, CPU).views == ("centre",)
    assert [first_view(view) for view in VIEWS] == list(VIEWS)
    with pytest.raises(SettingError, match="random:0"):
        check_recipe(RECIPE.model_copy(update={"views": ("random:0",)}))


class _Sums(torch.nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3)) / 64 - 2


def test_views_are_pooled_by_mean_maximum_or_geometric_mean():
    views = ("centre", "end", "random:2:rectangular")
    each = [
        _Sums()(torch.from_numpy(view).permute(2, 0, 1)[None]).sigmoid().double().numpy()[0]
        for view in apply_views(PICTURE, views, 16, row=0)
    ]
    expected = {
        "mean": np.mean(each, axis=0),
        "max": np.max(each, axis=0),
        "geometric": np.prod(each, axis=0) ** (1 / 4),
    }
    assert expected.keys() == POOLS.keys()
    for pooling, probs in expected.items():
        how = Inference(CPU, views, 16, 2, pooling=pooling)
        assert predict_rows(_Sums(), [PICTURE], np.array([0]), how)[0] == pytest.approx(probs, abs=5e-4)


def test_each_set_of_views_has_files_of_its_own_and_the_recipes_own_keep_theirs(trained):
    trial = trained.run.store.trials()[0]
    own = read_spec(trial).recipe.views
    assert trial.oof_of(other_views(trial, None)) == trial.oof
    assert trial.oof_of(other_views(trial, ViewSet.of(own, "mean"))) == trial.oof
    names = [
        trial.oof_of(other_views(trial, ViewSet.of(views, pooling))).name
        for views, pooling in [
            (own, "max"),
            (["random:8"], None),
            (["random:8"], "geometric"),
            (["flip"], None),
        ]
    ]
    assert names == [
        "oof-centre+flip-max.npz",
        "oof-random.8.npz",
        "oof-random.8-geometric.npz",
        "oof-flip.npz",
    ]
    assert trial.test_of("flip").name == "test-flip.npz"


@pytest.fixture(scope="module")
def predicted(trained, tiny_cache):
    """The run with out-of-fold and test predictions of two random views, by their maximum."""
    run, views = trained.run, ViewSet.of(["random:2"], "max")
    test = pictures_of_test(run.catalog, tiny_cache)
    how = {"label_ids": run.data.label_ids, "device": CPU, "views": views}
    for trial in run.store.trials():
        rows = run.data.rows(read_spec(trial).fold, held_out=True)
        tag = other_views(trial, views)
        assert predict_checkpoint(trial, run.data.split, rows, path=trial.oof_of(tag), **how)
        assert not predict_checkpoint(trial, run.data.split, rows, path=trial.oof_of(tag), **how)
        predict_checkpoint(trial, test, np.arange(len(test.ids)), path=trial.test_of(tag), **how)
    return views


def test_a_blend_uses_the_views_that_are_asked_for_and_says_so(trained, predicted, call_blend):
    run = trained.run
    before = {trial.trial_id: trial.oof.read_bytes() for trial in run.store.trials()}
    asked = ["--views", "random:2", "--pool-views", "max", "--method", "uniform", "--out", "v", "--json"]
    code, out, err = call_blend(*trained.where, *asked)
    assert code == 0, err
    assert "variants are predicted with the views random:2 (max)" in out
    place = run.store.ensemble("v")
    assert "variants are predicted with the views random:2 (max)" in place.report.read_text()
    ensemble = read_ensemble(place)
    assert ensemble.views == predicted
    of = {member.variant: member for member in ensemble.members}
    trials = [run.store.trial(trial) for trial in of["a"].trials]
    seconds = [read_predictions(t.oof_of("random.2-max")) for t in trials]
    assert of["a"].seconds == pytest.approx(sum(p.seconds / len(p.ids) for p in seconds))
    ours = blend_oof(ensemble, run.store, run.data.split.ids)
    with np.load(place.oof) as file:
        assert np.abs(file["probs"] - ours).max() < 1e-3
    default = ensemble.model_copy(update={"views": None})
    assert not np.array_equal(ours, blend_oof(default, run.store, run.data.split.ids))
    assert before == {trial.trial_id: trial.oof.read_bytes() for trial in run.store.trials()}


def test_views_that_were_not_predicted_are_one_line_with_the_command(trained, call_blend):
    code, out, err = call_blend(
        *trained.where, "--views", "squash,flip", "--pool-views", "max", "--out", "none"
    )
    assert (code, out) == (1, "")
    assert "oof-squash+flip-max.npz is missing: run `python launch.py --oof" in err
    assert "--views squash,flip --pool-views max`, which predicts it with these views" in err
    assert len(err.splitlines()) == 1


def test_a_prediction_with_other_views_is_a_submission_of_its_own_that_says_so(
    trained, swept, predicted, monkeypatch, capsys
):
    run = trained.run
    place = run.store.ensemble("k")
    asked = []
    monkeypatch.setattr(stages, "predict_test", lambda *args: asked.append(args[-1]) or 0)
    before = swept.read_text()
    stages._predict_test(run, "k", None, views=predicted)
    assert asked == [predicted]
    said = capsys.readouterr().out
    assert (
        "views random:2 (max): weights and decoder of k were fitted on other views, each recipe's own" in said
    )
    assert "submission-random.2-max.csv" in said
    assert swept.read_text() == before
    ensemble = read_ensemble(place)
    probs = blend_test(ensemble, run.store, run.catalog.test.ids, views=predicted)
    with np.load(place.test_of("random.2-max")) as file:
        assert np.array_equal(file["probs"], probs.astype(np.float16))
    assert not np.array_equal(probs, blend_test(ensemble, run.store, run.catalog.test.ids))
    assert len(place.of_other_views) == 2

    own = ViewSet.of(read_spec(run.store.trials()[0]).recipe.views, None)
    assert stages.other_than_fitted(ensemble, run.store.trials(), own) is None
    fitted = ensemble.model_copy(update={"views": predicted})
    assert stages.other_than_fitted(fitted, run.store.trials(), predicted) is None
    assert stages.other_than_fitted(fitted, run.store.trials(), own) == own
    assert stages.other_than_fitted(fitted, run.store.trials(), None) is None


def test_a_new_ensemble_of_the_name_removes_what_the_old_one_predicted_with_other_views(trained, call_blend):
    assert call_blend(*trained.where, "--method", "uniform", "--out", "again")[0] == 0
    place = trained.run.store.ensemble("again")
    for path in (place.test_of("flip"), place.submission_of("flip")):
        path.write_text("")
    assert call_blend(*trained.where, "--method", "uniform", "--out", "again")[0] == 0
    assert place.of_other_views == []


def test_predictions_of_an_earlier_version_are_means(trained, tmp_path):
    found = read_predictions(trained.run.store.trials()[0].oof)
    known = {key: np.array(value) for key, value in vars(replace(found)).items() if key != "pooling"}
    np.savez(tmp_path / "old.npz", **known)
    assert read_predictions(tmp_path / "old.npz").pooling == "mean"


def test_random_views_have_the_bounds_of_the_recipes_crop():
    recipe = Variant(
        name="a", architecture="x", crop="rectangular", crop_area=(0.05, 0.06), crop_aspect=(0.9, 1.1)
    )
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3)).astype(np.uint8)
    image[:, :, 0] = np.arange(80)  # a column's number
    for seen in apply_views(image, ViewSet(names=("random:8",)).bound(recipe), 32, row=3):
        columns = int(seen[:, :, 0].max()) - int(seen[:, :, 0].min())
        assert columns < 25  # 6 % of the area; with the usual bounds it is 40 % at least
    usual = ViewSet(names=("random:8",)).bound(Variant(name="a", architecture="x", crop="rectangular"))
    assert usual == ("random:8:rectangular",)


@pytest.mark.parametrize(
    "name", ["random:8:rectangular(a/b)", "random:8:rectangular()", "random:0", "random"]
)
def test_a_view_that_is_none_is_one_line(name):
    with pytest.raises(ConfigError):
        check_view(name)
