"""What a trial is: ids, validation, hparams in place."""

import json
import math
import re

import pytest
from pydantic import ValidationError

from imet_ray.errors import SettingError
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.specs import TrialSpec, Variant
from imet_ray.training.recipe import check_recipe

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
# trials that people have trained: were these to change, continued sweeps would train everything again
PINNED = ["eedb69395298a95a", "8fbdf2591ba06624", "97c73dd90d4a2e53"]


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
        {"metric": "other"},
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
        {"views": []},
        {"loss_weight": -1.0},
        {"loss_weight": math.inf},
        {"loss_weight": math.nan},
        {"warmup_epochs": 10.0, "epochs": 10},
        {"warmup_epochs": 1.0, "warmup_steps": 10},
        {"drop_at": [0]},
        {"name": "../up"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        Variant.model_validate({"name": "a", "architecture": "resnet18"} | settings)


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ({"loss": "bcee"}, "loss", "unknown loss 'bcee': did you mean 'bce'?"),
        ({"views": ["centre", "flop"]}, "views", "'flop': did you mean 'flip'?"),
        ({"augmentation": "harder"}, "augmentation", "did you mean 'hard'?"),
        (
            {"crop": "x"},
            "crop",
            "Known: if-needed, if-needed-2x, letterbox, native, random, rectangular, squash",
        ),
        (
            {"crop": "native", "crop_area": (0.1, 0.2)},
            "crop_area",
            "is for crop 'rectangular', and crop is 'native'",
        ),
        ({"crop": "random", "crop_aspect": (1.0, 1.0)}, "crop_aspect", "is for crop 'rectangular'"),
        ({"schedule": "cosinus"}, "schedule", "did you mean 'cosine'?"),
        ({"cycles": 2, "schedule": "onecycle"}, "cycles", "is for schedule 'cosine'"),
        ({"schedule": "plateau", "keep": "last"}, "keep", "needs keep 'best'"),
        (
            {"min_lr": 1e-6, "schedule": "step", "drop_every": 1},
            "min_lr",
            "is for schedule 'cosine', 'plateau'",
        ),
        ({"plateau_patience": 5}, "plateau_patience", "is for schedule 'plateau', got schedule 'cosine'"),
        ({"drop_every": 2, "schedule": "multistep", "drop_at": [3]}, "drop_every", "is for schedule 'step'"),
        ({"drop_at": [2], "schedule": "step", "drop_every": 1}, "drop_at", "is for schedule 'multistep'"),
        ({"drop_factor": 0.5}, "drop_factor", "is for schedule 'exp_range', 'step'"),
        ({"power": 2.0}, "power", "is for schedule 'polynomial'"),
        ({"warmup_steps": 9, "schedule": "triangular"}, "warmup_steps", "is for schedule 'cosine'"),
        ({"warmup_steps": 9, "cycles": 2}, "warmup_steps", "give it in warmup_epochs"),
        ({"cycle_plus": 1}, "cycle_plus", "is for cycles of cycle_epochs"),
        (
            {"cycle_epochs": 2, "schedule": "constant"},
            "cycle_epochs",
            "is for schedule 'cosine', 'triangular'",
        ),
        ({"cycle_epochs": 2, "cycles": 2}, "cycles", "give one of them"),
        ({"schedule": "step"}, "schedule", "needs drop_every"),
        ({"schedule": "multistep"}, "schedule", "needs drop_at"),
        ({"schedule": "multistep", "drop_at": [3, 2]}, "drop_at", "must rise"),
        ({"min_lr": 1e-3}, "min_lr", "must be below lr=0.0001, got 0.001"),
        ({"optimizer": "adma"}, "optimizer", "unknown optimizer 'adma': did you mean"),
        ({"optimizer": "bnbadam"}, "optimizer", "unknown optimizer 'bnbadam'"),
        ({"optimizer": "sgd", "beta1": 0.8}, "beta1", "such as adam, adamw, nadam, lion, got 'sgd'"),
        ({"optimizer": "sgd", "eps": 1e-6}, "eps", "such as adam, adamw, nadam, got 'sgd'"),
        ({"optimizer": "lion", "amsgrad": True}, "amsgrad", "such as adam, adamw, got 'lion'"),
        ({"momentum": 0.8}, "momentum", "such as sgd, got 'adam'"),
        ({"schedule": "onecycle", "beta1": 0.8}, "beta1", "sets beta1 itself"),
        (
            {"schedule": "onecycle", "optimizer": "sgd", "momentum": 0.8},
            "momentum",
            "sets the momentum itself",
        ),
        ({"loss": "asymmetric", "loss_weight": 0.5}, "loss_weight", "must be 0 or at least 1"),
    ],
)
def test_a_recipe_that_could_not_be_trained_is_refused(settings, field, expected):
    variant = Variant.model_validate({"name": "a", "architecture": "resnet18"} | settings)
    with pytest.raises(SettingError, match=re.escape(expected)) as caught:
        check_recipe(variant)
    assert caught.value.field == field


def test_ids_do_not_change_from_version_to_version():
    bare = SPEC.model_copy(update={"hparams": {}})
    rich = VARIANT.with_hparams({"loss": "forgiving", "loss_weight": 2.0, "views": ["centre"], "lr": 3e-4})
    team = SPEC.model_copy(update={"variant": rich, "workers": 4, "batch_norm": "sync"})
    assert [spec.trial_id for spec in (SPEC, bare, team)] == PINNED


def test_a_new_field_leaves_older_ids_as_they_are():
    class Wider(Variant):
        invented: float = 0.5

    class WiderSpec(TrialSpec):
        variant: Wider
        judged_by: str = "someone"

    wider = WiderSpec.model_validate(SPEC.model_dump())
    assert wider.trial_id == SPEC.trial_id
    changed = wider.model_copy(update={"variant": wider.variant.model_copy(update={"invented": 0.6})})
    assert changed.trial_id != SPEC.trial_id


def test_a_spec_is_written_with_every_field():
    written = SPEC.model_dump(mode="json")
    assert set(written) == set(TrialSpec.model_fields)
    assert set(written["variant"]) == set(Variant.model_fields)


def test_a_fold_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="choose 0..2"):
        TrialSpec.model_validate(SPEC.model_dump() | {"fold": 3})


def test_a_soup_of_sets_sees_pictures_as_its_variant_does():
    variant = Variant(
        name="a", architecture="resnet18", crop="rectangular", crop_area=(0.2, 0.9), views=("random:2",)
    )
    soup = variant.mixing(3, "greedy")
    assert ViewSet(names=soup.views).bound(soup) == ViewSet(names=variant.views).bound(variant)
