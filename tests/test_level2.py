"""Level 2 as it predicts: plain arrays, the same numbers as what was fitted, and refusals of what does not fit."""

import json
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, logit
from test_stacking import make_probs

from imet_ray.blending import stacked_cells
from imet_ray.blending.out_of_fold import OutOfFold
from imet_ray.blending.stacked_cells import packed_trees
from imet_ray.blending.stacking import STACKERS
from imet_ray.prediction import level2
from imet_ray.prediction.level2 import KINDS, Level2, Packed, PerLabel, log_odds, read_level2


@pytest.fixture(scope="module")
def fitted():
    """The model of all pictures by each stacker."""
    pytest.importorskip("lightgbm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked_cells, "ROUNDS", 40)
        data = OutOfFold(*make_probs([1.0, 2.0]))
        return {name: stack(data)[-1] for name, stack in STACKERS.items()}


@pytest.fixture(params=STACKERS)
def model(request, fitted):
    return fitted[request.param]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_an_array_as_text_is_the_same_array(dtype, shape):
    array = np.random.default_rng(0).normal(0, 100, shape).astype(dtype)
    again = Packed.model_validate_json(Packed.of(array).model_dump_json()).array()
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)


@pytest.mark.parametrize(
    "value",
    [
        {"dtype": "float32", "shape": [3], "base64": "AAAA"},
        {"dtype": "float32", "shape": [-1], "base64": "AAAA"},
        {"dtype": "float32", "shape": [1], "base64": "no base 64"},
        {"dtype": "object", "shape": [1], "base64": "AAAAAA=="},
    ],
)
def test_an_array_of_another_size_or_kind_is_refused(value):
    with pytest.raises(ValidationError):
        Packed.model_validate(value)


def test_a_model_is_read_back_from_json_and_predicts_the_same_bits(model):
    again = read_level2(json.loads(model.model_dump_json()))
    assert again == model
    probs = make_probs([1.0, 2.0], seed=5)[0]
    assert np.array_equal(again.predict(probs), model.predict(probs))


def test_all_kinds_of_models_are_fitted_by_some_stacker(fitted):
    assert {model.kind for model in fitted.values()} == set(KINDS)


def test_predictions_are_probabilities_whatever_the_members_say(model):
    extremes = [np.float16([[0, 1, 0.5, 2**-24, 0, 1, 0, 1]]), np.float16([[0, 1, 1, 0, 1, 0, 0.5, 0.01]])]
    found = model.predict(extremes)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_no_picture_gives_no_prediction(model):
    assert model.predict([np.empty((0, 8), np.float16)] * 2).shape == (0, 8)


def test_blocks_and_wider_floats_change_nothing(model, monkeypatch):
    probs = make_probs([1.0, 2.0], seed=5)[0]
    whole = model.predict(probs)
    monkeypatch.setattr(level2, "ROWS", 100)
    monkeypatch.setattr(level2, "CELLS", 70)
    assert model.predict([p.astype(np.float32) for p in probs]) == pytest.approx(whole, abs=1e-6)


def test_log_odds_are_those_of_clipped_probabilities():
    probs = np.random.default_rng(0).random((50, 3)).astype(np.float16)
    probs[0], probs[1] = 0, 1
    wide = probs.astype(np.float64).clip(level2.LOW, level2.HIGH)
    assert log_odds(probs) == pytest.approx(logit(wide), abs=1e-5)
    assert np.array_equal(log_odds(probs[:, 1]), log_odds(probs)[:, 1])
    assert np.isnan(log_odds(np.float16([np.nan]))).all()


def test_weights_of_labels_are_weighed_by_hand():
    weights = np.float32([[0.5, -0.5], [1.0, 0.25], [0.0, 0.75]])
    probs = np.float16([[0.3, 0.9]]), np.float16([[0.8, 0.1]])
    found = PerLabel(weights=Packed.of(weights)).predict(probs)
    a, b = (logit(p.astype(np.float64)) for p in probs)
    assert found == pytest.approx(expit(weights[0] + weights[1] * a + weights[2] * b), abs=1e-6)


@pytest.mark.parametrize("leaves", [2, 7, 31])
def test_trees_are_those_of_lightgbm(leaves, monkeypatch):
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(leaves)
    x = rng.normal(0, 2, (3000, 7)).astype(np.float32)
    x[:, 3] = rng.integers(-2, 3, 3000)  # equal values, 0 among them
    y = (rng.random(3000) < expit(x[:, 0] * x[:, 3] - x[:, 5])).astype(np.float32)
    options = stacked_cells.TREES | {"num_leaves": leaves, "min_data_in_leaf": 5}
    grown = lightgbm.train(options, lightgbm.Dataset(x, y, init_score=x[:, 0]), 50)
    trees = packed_trees(grown.model_to_string().split("\nTree=")[1:], 2, np.zeros(4, np.float32))
    monkeypatch.setattr(level2, "CELLS", 1000)
    new = np.vstack([x, rng.normal(0, 5, (500, 7)).astype(np.float32)])
    found = trees.correction()(new, np.zeros(len(new), int))
    assert found == pytest.approx(grown.predict(new, raw_score=True), abs=1e-6)
    assert np.ptp(found) > 0.5


def test_a_tree_without_a_split_is_a_number():
    lightgbm = pytest.importorskip("lightgbm")
    x, y = np.ones((300, 7), np.float32), np.float32(np.arange(300) % 3 == 0)
    grown = lightgbm.train(stacked_cells.TREES, lightgbm.Dataset(x, y), 3)
    trees = packed_trees(grown.model_to_string().split("\nTree=")[1:], 2, np.zeros(4, np.float32))
    assert trees.correction()(x, np.zeros(300, int)) == pytest.approx(
        grown.predict(x, raw_score=True), abs=1e-6
    )


def test_trees_are_read_and_predict_without_lightgbm(fitted, monkeypatch):
    probs = make_probs([1.0, 2.0], seed=5)[0]
    expected = fitted["lightgbm"].predict(probs)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    again = read_level2(json.loads(fitted["lightgbm"].model_dump_json()))
    assert np.array_equal(again.predict(probs), expected)


@pytest.mark.parametrize("value", [{"kind": "forest"}, {}, None, {"kind": "per-label"}, {"kind": ["net"]}])
def test_a_model_of_an_unknown_kind_or_without_its_arrays_is_refused(value):
    with pytest.raises(ValueError, match=r"unknown level 2|Field required"):
        read_level2(value)


def test_a_model_of_other_members_is_refused(fitted):
    with pytest.raises(ValidationError, match="a model of 2 members, but 3 are named"):
        Level2(stacker="net", members=["a", "b", "c"], model=fitted["net"])


def test_members_are_taken_by_name(fitted):
    probs = make_probs([1.0, 2.0], seed=5)[0]
    found = Level2(stacker="linear", members=["a", "b"], model=fitted["linear"])
    by_name = {"b": probs[1], "a": probs[0]}
    assert np.array_equal(found.predict(by_name), fitted["linear"].predict(probs))
