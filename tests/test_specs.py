"""What a trial is: ids, validation, hparams in place."""

import json

import pytest
from pydantic import ValidationError

from imet_ray.specs import TrialSpec, Variant

VARIANT = Variant(name="a", architecture="resnet18")
SPEC = TrialSpec(
    variant=VARIANT,
    hparams={"dropout": 0.3},
    fold=1,
    n_folds=3,
    seed=0,
    data_digest="d",
    folds_digest="f",
    pack_short_side=96,
)


def test_a_spec_survives_json_with_its_id():
    again = TrialSpec.model_validate_json(SPEC.model_dump_json())
    assert again == SPEC
    assert again.trial_id == SPEC.trial_id
    assert TrialSpec.model_validate(json.loads(json.dumps(SPEC.model_dump(mode="json")))) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"fold": 2},
        {"seed": 1},
        {"data_digest": "other"},
        {"folds_digest": "other"},
        {"hparams": {"dropout": 0.4}},
        {"hparams": {"dropout": 0.3, "loss_weight": 2.0}},
        {"variant": Variant(name="a", architecture="resnet34")},
        {"pack_short_side": 128},
    ],
)
def test_whatever_decides_the_result_changes_the_id(change):
    assert SPEC.model_copy(update=change).trial_id != SPEC.trial_id


def test_one_recipe_has_one_id_however_it_was_asked_for():
    fixed = SPEC.model_copy(update={"variant": VARIANT.with_hparams({"dropout": 0.3}), "hparams": {}})
    assert fixed.trial_id == SPEC.trial_id


def test_hparams_arrive_in_the_recipe():
    assert SPEC.recipe.dropout == 0.3
    assert SPEC.variant.dropout == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"droput": 0.3},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"epochs": "3"},
        {"epochs": 2.5},
        {"loss": "bcee"},
        {"views": []},
        {"warmup_epochs": 10.0, "epochs": 10},
        {"cycles": 2, "schedule": "onecycle"},
        {"schedule": "plateau", "keep": "last"},
        {"name": "../up"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        Variant.model_validate({"name": "a", "architecture": "resnet18"} | settings)


def test_a_fold_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="choose 0..2"):
        TrialSpec.model_validate(SPEC.model_dump() | {"fold": 3})
