"""Augmentation as settings: mappings, dotted names, what a search may do with them, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import launch
from imet_ray.augmentation_settings import AFFINE, Affine, Augmentation, Erase
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.variant_study import distributions
from imet_ray.data.augmentation import PRESETS, TrainTransform, transforms
from imet_ray.dotted_names import flat, merged, with_parts
from imet_ray.errors import ConfigError, SettingError
from imet_ray.reporting.exports import settings
from imet_ray.space_file import read_space
from imet_ray.specs import TrialSpec, Variant, hparams_text
from imet_ray.storage.experiment import Experiment, begin, refuse_changed
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

VARIANT = {"name": "a", "architecture": "resnet18"}
OWN = (
    "{affine: medium, noise: 0.29, blur: 0.17, distortion: 0.12, colour: 0.11, "
    "erase: {p: 0.5, area: [0.02, 0.4], ratio: [0.3, 3.33]}, hflip: 0.5, vflip: 0, rotate90: 0, global_prob: 0.53}"
)


def variant_of(**more) -> Variant:
    return Variant.model_validate(VARIANT | more)


def spec_of(variant, **hparams) -> TrialSpec:
    return TrialSpec(
        variant=variant,
        hparams=hparams,
        fold=0,
        n_folds=3,
        seed=0,
        data_digest="d",
        folds_digest="f",
        pack_short_side=96,
    )


@pytest.fixture
def read(tmp_path):
    """Reads a space of these lines."""

    def _read(text, overrides=None):
        path = tmp_path / "space.yml"
        path.write_text(text)
        return read_space(path, overrides, check=check_recipe)

    return _read


def refused(read, text, **more):
    with pytest.raises(ConfigError) as caught:
        read(text, **more)
    return str(caught.value)


def test_a_recipe_writes_its_own_augmentation(read):
    space = read(f"variants: [{{name: a, architecture: resnet18, augmentation: {OWN}}}]")
    assert space.variants[0].augmentation == Augmentation(
        affine=AFFINE["medium"],
        noise=0.29,
        blur=0.17,
        distortion=0.12,
        colour=0.11,
        erase=Erase(p=0.5, area=(0.02, 0.4), ratio=(0.3, 3.33)),
        global_prob=0.53,
    )


def test_a_preset_that_is_an_entry_gives_the_pixels_of_its_entry():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    entries = {name: entry for name, entry in PRESETS.items() if isinstance(entry, Augmentation)}
    assert {"imet2019", "trivialaugment", "randaugment"} <= entries.keys()
    for name, entry in entries.items():
        by_name, own = TrainTransform(name, "native", 24), TrainTransform(entry, "native", 24)
        assert all(np.array_equal(by_name(image, seed), own(image, seed)) for seed in range(20))


def test_a_preset_may_be_settings_with_a_name(read, monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", Augmentation(hflip=0.0, blur=0.5))
    assert read("variants: [{name: a, architecture: resnet18, augmentation: mine}]").variants
    assert len(transforms("mine")) == 1


def test_a_variants_mapping_replaces_the_bases_and_a_dotted_name_changes_one_number_of_it(read):
    space = read(
        "base: {architecture: resnet18, augmentation: {noise: 0.3, blur: 0.2}}\n"
        "variants: [{name: a}, {name: b, augmentation: {blur: 0.1}}, {name: c, augmentation.blur: 0.1},\n"
        "  {name: d, augmentation: light}]\n"
    )
    assert [variant.augmentation for variant in space.variants] == [
        Augmentation(noise=0.3, blur=0.2),
        Augmentation(blur=0.1),
        Augmentation(noise=0.3, blur=0.1),
        "light",
    ]


def test_a_dotted_name_of_the_base_goes_with_what_it_is_a_part_of(read):
    space = read(
        "base: {architecture: resnet18, augmentation: {noise: 0.3}, augmentation.blur: 0.2}\n"
        "variants: [{name: a}, {name: b, augmentation: light}]\n"
    )
    assert [v.augmentation for v in space.variants] == [Augmentation(noise=0.3, blur=0.2), "light"]


def test_a_grid_has_axes_of_dotted_names_and_of_mappings(read):
    space = read(
        "base: {architecture: resnet18, augmentation: {noise: 0.3}}\ngrid: {augmentation.blur: [0.1, 0.2]}"
    )
    assert [(v.name, v.augmentation.blur, v.augmentation.noise) for v in space.variants] == [
        ("0.1", 0.1, 0.3),
        ("0.2", 0.2, 0.3),
    ]
    space = read("grid: {architecture: [resnet18], augmentation: [light, {blur: 0.2}]}")
    assert [v.name for v in space.variants] == ["resnet18-light", "resnet18-augmentation2"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("augmentation.blur", 0.2, {"blur": 0.2}),
        ("augmentation.erase.p", 0.2, {"erase": Erase(p=0.2)}),
        ("augmentation.erase", 0.2, {"erase": Erase(p=0.2)}),
        ("augmentation.erase.area.1", 0.2, {"erase": Erase(p=0.0, area=(0.02, 0.2))}),
        ("augmentation.affine", "soft", {"affine": AFFINE["soft"]}),
        ("augmentation.affine.rotate", 20, {"affine": Affine(p=0.2, shift=0.0625, scale=0.2, rotate=20.0)}),
    ],
)
def test_each_number_has_a_dotted_name(name, value, expected):
    medium = {"affine": AFFINE["medium"]}
    found = variant_of(augmentation={"affine": "medium"}).with_hparams({name: value})
    assert found.augmentation == Augmentation(**(medium | expected))


def test_crop_bounds_are_searched_one_by_one(read):
    space = read(
        "variants: [{name: a, architecture: resnet18}]\nsearch: {crop_area.0: {low: 0.1, high: 0.6}}"
    )
    assert space.variants[0].with_hparams({"crop_area.0": 0.25}).crop_area == (0.25, 1.0)


def test_optuna_picks_each_number_and_the_trial_is_trained_with_it(read, tmp_path):
    space = read(
        "base: {architecture: resnet18, augmentation: {affine: medium}}\nvariants: [{name: a}]\n"
        "search:\n  first: drawn\n"
        "  augmentation.blur: {low: 0, high: 0.3}\n  augmentation.affine: [none, soft, hard]\n"
        "  augmentation.erase.area.1: {low: 0.1, high: 0.4}\n  mixup: {low: 0, high: 0.4}\n"
    )
    policy = Policy(space, RunDirectory(tmp_path), "data", "folds")
    spec = policy.next().spec
    picked = spec.hparams
    recipe = spec.recipe
    assert recipe.augmentation.blur == picked["augmentation.blur"] > 0
    assert recipe.augmentation.affine == AFFINE[picked["augmentation.affine"]]
    assert recipe.augmentation.erase.area == (0.02, picked["augmentation.erase.area.1"])
    assert recipe.mixup == picked["mixup"]
    assert TrialSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    assert TrialSpec.model_validate_json(spec.model_dump_json()).trial_id == spec.trial_id
    again = Policy(space, RunDirectory(tmp_path), "data", "folds").next()
    assert again.spec == spec


def test_the_first_set_has_the_variants_own_numbers_where_they_lie_in_the_ranges(read, tmp_path):
    space = read(
        "variants: [{name: a, architecture: resnet18, augmentation: {blur: 0.25}}]\n"
        "search: {augmentation.blur: {low: 0, high: 0.3}, augmentation.noise: {low: 0.1, high: 0.3}}\n"
    )
    picked = Policy(space, RunDirectory(tmp_path), "data", "folds").next().spec.hparams
    assert picked["augmentation.blur"] == 0.25
    assert 0.1 <= picked["augmentation.noise"] <= 0.3


def test_whole_numbers_and_presets_are_searched_too(read):
    space = read(
        "base: {architecture: resnet18}\n"
        "variants:\n- {name: a, augmentation: {policy: randaugment}, "
        "search: {augmentation.magnitude: {low: 3, high: 12}}}\n"
        "- {name: b, search: {augmentation: [light, hard, trivialaugment]}}\n"
    )
    one, two = (distributions(variant, space.ranges[variant.name]) for variant in space.variants)
    assert one == {"augmentation.magnitude": optuna.distributions.IntDistribution(3, 12)}
    assert two["augmentation"].choices == ("light", "hard", "trivialaugment")


def test_what_the_command_line_fixes_is_not_searched(read):
    text = (
        "base: {architecture: resnet18, augmentation: {noise: 0.3}}\nvariants: [{name: a}]\n"
        "search: {augmentation.blur: {low: 0, high: 0.3}, augmentation.noise: [0.1, 0.2]}"
    )
    assert set(read(text, {"augmentation.blur": 0.1}).ranges["a"]) == {"augmentation.noise"}
    assert read(text, {"augmentation": "light"}).ranges["a"] == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  augmentation: {blurr: 0.2}", "line 2: unknown key 'blurr': did you mean 'blur'?"),
        (
            "  augmentation:\n    noise: 0.2\n    blur: 1.2",
            "line 4: augmentation.blur must be less than or equal to 1",
        ),
        ("  augmentation: {}\n  augmentation.blur: 2", "line 3: augmentation.blur must be less"),
        (
            "  augmentation: {}\n  augmentation.blurr: 0.2",
            "line 3: unknown key 'blurr': did you mean 'blur'?",
        ),
        ("  augmentaton.blur: 0.2", "line 2: unknown key 'augmentaton': did you mean 'augmentation'?"),
        ("  lr: 0.1\n  lr.x: 0.2", "line 3: lr.x is a part of lr, and lr is 0.1"),
        ("  augmentation: {affine: harder}", "affine must be one of none, soft, medium, hard, or a mapping"),
        ("  augmentation: {affine: {rotate: 20}}", "line 2: augmentation.affine.p is missing"),
        (
            "  augmentation: {erase: {p: 0.5, area: [0.4, 0.1]}}",
            "erase.area is [least, greatest], got [0.4, 0.1]",
        ),
        ("  augmentation: {erase: {p: 0.5, area: [0.4]}}", "line 2: augmentation.erase.area"),
        ("  augmentation: {magnitude: 4}", "magnitude is for policy 'randaugment', and policy is 'none'"),
        ("  augmentation: {policy: trivalaugment}", "did you mean 'trivialaugment'?"),
        ("  augmentation: 3", "line 2: augmentation must be settings (key: value), got 3"),
        ("  augmentation: lihgt", "line 2: unknown augmentation 'lihgt': did you mean 'light'?"),
        ("  crop_area: [0.9, 0.1]", "crop_area is [least, greatest], got [0.9, 0.1]"),
        (
            "  augmentation: light\nsearch:\n  augmentation.blur: [0.1, 0.2]",
            "line 4: augmentation.blur is a part of augmentation, and augmentation is 'light': write augmentation as a "
            "mapping, augmentation: {blur: ...}, or leave augmentation.blur out",
        ),
        (
            "  lr: 0.1\nsearch:\n  augmentation.blurr: [0.1]",
            "line 4: unknown key 'blurr': did you mean 'blur'?",
        ),
        (
            "  augmentation: {}\nsearch:\n  augmentation.blur: {low: 0, high: 1.2}",
            "line 4: augmentation.blur must be",
        ),
        (
            "  augmentation: {}\nsearch:\n  augmentation: [light]\n  augmentation.blur: [0.1]",
            "line 4: augmentation is searched as a whole, and augmentation.blur is a part of it: search one of them",
        ),
        (
            "  augmentation: {policy: randaugment}\nsearch: {augmentation.magnitude: {low: 1.5, high: 3}}",
            "augmentation.magnitude is a whole number",
        ),
        ("  lr: 0.1\nsearch: {crop_area.2: [0.5]}", "unknown key '2'"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_way_out(read, text, expected):
    text = f"base:\n{text}\nvariants: [{{name: a, architecture: resnet18}}]\n"
    assert expected in refused(read, text)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("augmentation.blurr=0.2", "--set: unknown key 'blurr': did you mean 'blur'?"),
        ("augmentation.blur=2", "--set: augmentation.blur must be less than or equal to 1, got 2"),
        ("augmentation={blur: 0.2}", "augmentation is a mapping: set its parts, such as augmentation.blur"),
        ("augmentation=lihgt", "--set: unknown augmentation 'lihgt': did you mean 'light'?"),
    ],
)
def test_set_takes_dotted_names_and_refuses_what_is_none(tmp_path, tiny_root, capsys, setting, expected):
    space = tmp_path / "space.yml"
    space.write_text("variants: [{name: a, architecture: resnet18, augmentation: {}}]")
    argv = ["--show-augmentations", "a", "--space", space, "--data", tiny_root, "--cache", tmp_path / "c"]
    assert launch.main([*map(str, argv), "--set", setting]) == 1
    assert expected in capsys.readouterr().err


def test_settings_have_one_id_however_they_were_asked_for():
    own = spec_of(variant_of(augmentation={"blur": 0.2, "affine": "soft"}))
    picked = spec_of(variant_of(augmentation={"affine": "soft"}), **{"augmentation.blur": 0.2})
    written = spec_of(
        variant_of(augmentation={"blur": 0.2, "noise": 0, "affine": AFFINE["soft"].model_dump()})
    )
    assert own.trial_id == picked.trial_id == written.trial_id
    assert own.same_trial(picked)
    assert own.trial_id != spec_of(variant_of()).trial_id


def test_ids_of_settings_do_not_change_from_version_to_version():
    own = spec_of(
        variant_of(augmentation={"blur": 0.2, "affine": "soft", "erase": 0.5}, crop="native", cutmix=1.0)
    )
    assert own.trial_id == "92dbe9757b4677d6"


def test_a_picked_number_stands_in_texts_and_exports_under_its_dotted_name():
    spec = spec_of(variant_of(augmentation={"noise": 0.3}), **{"augmentation.blur": 0.17})
    assert hparams_text(spec.hparams) == "augmentation.blur=0.17"
    told = settings(spec)
    assert (told["augmentation.blur"], told["augmentation.noise"]) == (0.17, 0.3)
    assert told["augmentation.erase.area"] == "0.02 0.4"
    assert settings(spec_of(variant_of()))["augmentation"] == "medium"


def test_a_run_whose_augmentation_was_changed_is_refused_by_the_number(read, tmp_path):
    def experiment(blur):
        space = read(f"variants: [{{name: a, architecture: resnet18, augmentation: {{blur: {blur}}}}}]")
        return Experiment(
            data="demo", data_root="x", data_digest="d", folds_digest="f", label_ids=["a"], space=space
        )

    store = RunDirectory(tmp_path / "run")
    begin(store, experiment(0.1))
    refuse_changed(store, experiment(0.1))
    with pytest.raises(Exception, match=re.escape("augmentation.blur=0.1, now it is 0.2")):
        refuse_changed(store, experiment(0.2))


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)
trees = st.recursive(
    st.integers(0, 9), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(trees, names, st.integers(10, 19))
def test_a_part_is_replaced_and_all_else_stays(tree, name, value):
    before = flat(tree)
    try:
        found = flat(with_parts(tree, {name: value}))
    except SettingError:  # it is a part of a number
        assert any(name.startswith(f"{one}.") for one in before)
        return
    kept = {k: v for k, v in before.items() if k != name and not k.startswith(f"{name}.")}
    assert found == kept | {name: value}
    assert flat(tree) == before


@given(st.dictionaries(names, st.integers()), st.dictionaries(names, st.integers()))
def test_merged_settings_have_all_of_the_second_and_no_part_of_what_it_replaced(first, second):
    found = merged(first, second)
    assert second.items() <= found.items()
    for name in found.keys() - second.keys():
        assert found[name] == first[name]
        assert not any(name.startswith(f"{one}.") for one in second)


@pytest.mark.parametrize(
    "bad", [{"hflip": -0.1}, {"noise": 1.5}, {"magnitude": 31}, {"erase": {"p": 0.5, "ratio": [0, 1]}}]
)
def test_each_number_has_its_range(bad):
    with pytest.raises(ValidationError):
        Augmentation.model_validate({"policy": "randaugment"} | bad)


def test_the_example_of_the_docs_is_a_space(read):
    text = Path("docs/search-spaces.md").read_text().partition("## Augmentation, crops and views")[2]
    space = read(text.split("```")[1].removeprefix("yaml"))
    blurs = {variant.name: variant.augmentation.blur for variant in space.variants}
    assert blurs == {"a": 0.17, "b": 0.3, "c": 0.0}
    assert "augmentation.erase.area.1" in space.ranges["c"]
