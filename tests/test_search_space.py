"""Search spaces: what a good file means, and the line that each bad one gets."""

import json
from pathlib import Path

import pytest

from imet_ray.errors import ConfigError
from imet_ray.space_file import read_space, settings_of_all
from imet_ray.specs import Variant
from imet_ray.training.recipe import check_recipe

GRID = "grid: {architecture: [resnet18, resnet34], augmentation: [light, medium]}\n"


@pytest.fixture
def write(tmp_path):
    def _write(text: str) -> Path:
        path = tmp_path / "space.yml"
        path.write_text(text)
        return path

    return _write


@pytest.mark.parametrize("path", sorted(Path("search_spaces").glob("*.yml")), ids=lambda p: p.stem)
def test_every_space_that_ships_is_valid_and_says_command_time_and_score(path):
    assert read_space(path, check=check_recipe).variants
    header = path.read_text().split("\n\n")[0]
    for word in ("command", "time", "score"):
        assert word in header


@pytest.mark.parametrize("field", sorted(Variant.model_fields))
def test_a_wrong_key_inside_any_setting_is_one_line(write, field):
    recipe = {"name": "a", "architecture": "vgg11"} | {field: {"varient": 1}}
    with pytest.raises(ConfigError) as caught:
        read_space(write(json.dumps({"variants": [recipe]})), check=check_recipe)
    (line,) = str(caught.value).splitlines()
    assert "'varient'" in line


@pytest.mark.parametrize("field", sorted(Variant.model_fields))
def test_a_value_of_a_wrong_kind_is_one_line_that_says_all_that_it_may_be(write, field):
    recipe = {"name": "a", "architecture": "vgg11"} | {field: None}
    text = json.dumps({"variants": [recipe]}).replace("null", "2019-05-01")  # no setting is a date
    with pytest.raises(ConfigError) as caught:
        read_space(write(text), check=check_recipe)
    (line,) = str(caught.value).splitlines()
    assert "got datetime.date(2019, 5, 1)" in line
    assert field in line
    assert "instance of" not in line


def test_what_may_be_text_or_settings_is_said_so(write):
    with pytest.raises(
        ConfigError, match=r"line 1: weights must be text or settings \(key: value\), got 3.5$"
    ):
        read_space(write("variants: [{name: a, architecture: vgg11, weights: 3.5}]"), check=check_recipe)


def test_a_misspelt_key_is_not_missing_as_well_and_another_one_is(write):
    with pytest.raises(ConfigError, match=r"unknown key 'architecure': did you mean 'architecture'\?$"):
        read_space(write("variants: [{name: a, architecure: vgg11}]"), check=check_recipe)
    with pytest.raises(ConfigError) as caught:
        read_space(write("variants: [{name: a, epochz: 3}]"), check=check_recipe)
    assert len(str(caught.value).splitlines()) == 2


def test_a_grid_is_the_product_of_its_axes(write):
    names = [variant.name for variant in read_space(write(GRID), check=check_recipe).variants]
    assert names == ["resnet18-light", "resnet18-medium", "resnet34-light", "resnet34-medium"]


def test_grid_and_list_add_up_and_share_the_base(write):
    space = read_space(
        write(GRID + "base: {epochs: 7}\nvariants: [{name: x, architecture: vgg11, epochs: 3}]"),
        check=check_recipe,
    )
    assert [variant.epochs for variant in space.variants] == [7, 7, 7, 7, 3]


def test_a_variants_own_ranges_replace_the_common_ones(write):
    space = read_space(
        write(
            "variants:\n- {name: a, architecture: vgg11}\n"
            "- {name: b, architecture: vgg11, search: {dropout: [0.5]}}\n"
            "search: {dropout: {low: 0.0, high: 0.3}}"
        ),
        check=check_recipe,
    )
    assert space.ranges["a"]["dropout"].high == 0.3
    assert space.ranges["b"]["dropout"].choices == (0.5,)


def test_what_the_command_line_fixes_holds_for_all_variants_and_is_not_searched(write):
    space = read_space(
        write(GRID + "search: {epochs: {low: 1, high: 9}}"),
        {"epochs": 2, "trials_per_variant": 5},
        check=check_recipe,
    )
    assert {variant.epochs for variant in space.variants} == {2}
    assert space.trials_per_variant == 5
    assert space.ranges["resnet18-light"] == {}


@pytest.mark.parametrize("key", ["cycle_epochs", "cycle_longest", "cycle_plus", "warmup_steps", "freeze"])
def test_whole_numbers_are_searched_as_such_where_they_may_be_left_out(write, key):
    text = f"base: {{epochs: 9, cycle_epochs: 2}}\nsearch: {{{key}: {{low: 1, high: 3}}}}\n{GRID}"
    searched = read_space(write(text), check=check_recipe).ranges["resnet18-light"][key]
    assert [type(corner) for corner in searched.corners()] == [int, int]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epocs: 3\n" + GRID, "line 1: unknown key 'epocs'"),
        (GRID + "base:\n  epocs: 3", "line 3: unknown key 'epocs': did you mean 'epochs'?"),
        (GRID + "base:\n  dropout: 1.5", "line 3: dropout must be less than 1, got 1.5"),
        ("base: {loss: bcee}\n" + GRID, "did you mean 'bce'?"),
        (GRID + "variants:\n- name: a\n  lr: -1\n  architecture: x", "line 4: lr must be greater"),
        (GRID + "variants:\n- name: a", "line 3: architecture is missing"),
        (
            GRID + "search:\n  dropuot: [0.1]",
            "line 3: unknown key 'dropuot': did you mean 'dropout'?",
        ),
        (GRID + "search: {dropout: {low: 0.5, high: 1.2}}", "dropout must be less than 1, got 1.2"),
        (GRID + "search: {dropout: {low: 0.5}}", "low <= high"),
        (GRID + "search: {batch_size: {low: 2.5, high: 8}}", "batch_size is a whole number"),
        (GRID + "search: {batch_size: [16, big]}", "got 'big'"),
        (GRID + "n_folds: 3\nsearch_folds: [3]", "choose 0..2"),
        (GRID + "resources: {cpu_per_trial: 1}", "did you mean 'cpus_per_trial'?"),
        (GRID + "resources: {cpus_per_trial: 0}", "greater than 0, got 0"),
        (GRID + "n_folds: 3\nn_folds: 4", "line 3: 'n_folds' stands there twice"),
        (GRID + "variants: [{name: resnet18-light, architecture: x}]", "two variants are named"),
        ("n_folds: 3", "no variants"),
        ("- 1", "expected settings"),
        ("", "expected settings"),
        ("grid: [", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_key(write, text, expected):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        read_space(path, check=check_recipe)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_those_that_exist(write, tmp_path):
    write(GRID)
    with pytest.raises(ConfigError, match=r"space\.yml"):
        read_space(tmp_path / "spcae.yml", check=check_recipe)


def test_a_file_of_weights_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "space.yml"
    path.write_text("variants: [{name: a, architecture: resnet18, weights: mine.pth}]\n")
    assert read_space(path, check=check_recipe).variants[0].weights == str(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: {lr: 1e-4}", "write 0.0001"),
        ("search: {batch_size: {low: 16, high: 64, step: 0.5}}", "batch_size is a whole number"),
        (
            "resources: {batch_norm: sync}",
            "batch_norm 'sync' is for several workers_per_trial, on GPUs",
        ),
        (
            "resources: {gpus_per_trial: 1.5}",
            "gpus_per_trial is one GPU at most, or a fraction, got 1.5: workers_per_trial",
        ),
        ("base: {loss: asymmetric, loss_weight: 0.5}", "must be 0 or at least 1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path, text, expected):
    path = tmp_path / "space.yml"
    path.write_text(f"{text}\nvariants: [{{name: a, architecture: resnet18}}]\n")
    with pytest.raises(ConfigError, match=expected):
        read_space(path, check=check_recipe)


def test_a_setting_of_all_variants_replaces_the_files_and_is_not_searched(tmp_path):
    (tmp_path / "s.yml").write_text(
        "variants: [{name: a, architecture: resnet18, image_size: 96}, {name: b, architecture: resnet34}]\n"
        "search: {image_size: [96, 128], dropout: {low: 0.0, high: 0.5}}\n"
    )
    found = read_space(tmp_path / "s.yml", settings_of_all({"image_size": 64}), check=check_recipe)
    assert [variant.image_size for variant in found.variants] == [64, 64]
    assert [list(ranges) for ranges in found.ranges.values()] == [["dropout"], ["dropout"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr": "abc"}, "command line: lr must be a number, got 'abc'"),
        ({"n_folds": 1}, "command line: n_folds must be greater than or equal to 2, got 1"),
        ({"loss": "bse"}, "command line: unknown loss 'bse': did you mean 'bce'?"),
        ({"augmentation.blurr": 1}, "command line: unknown key 'blurr': did you mean 'blur'?"),
        ({"augmentation.blur": 0.1}, "line 2: unknown key 'noize': did you mean 'noise'?"),
    ],
)
def test_a_mistake_of_the_command_line_is_not_said_of_the_file(tmp_path, given, expected):
    mistake = "noize: 0.1" if "augmentation.blur" in given else "noise: 0.1"
    (tmp_path / "s.yml").write_text(
        f"n_folds: 3\nbase: {{lr: 0.1, augmentation: {{{mistake}}}}}\nvariants: [{{name: a, architecture: resnet18}}]\n"
    )
    with pytest.raises(ConfigError) as stop:
        read_space(tmp_path / "s.yml", given, check=check_recipe)
    assert expected in str(stop.value)
    assert expected.startswith("command line") == str(stop.value).startswith("command line")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "variants: [{name: a/b, architecture: resnet18}]",
            "line 1: name takes letters, digits, '.', '_', '+' and",
        ),
        (f"search_folds: []\n{GRID}", "line 1: search_folds must have at least 1 item, got []"),
        (f"base: {{views: []}}\n{GRID}", "line 1: views must have at least 1 item, got []"),
        (f"seed: -1\n{GRID}", "line 1: seed must be greater than or equal to 0, got -1"),
        (f"seed: 4294967296\n{GRID}", "line 1: seed must be less than 4294967296, got 4294967296"),
        (f"base:\n  lr: 0,001\n{GRID}", "line 2: lr must be a number, got '0,001': write 0.001"),
        (f"base: {{lr: 0,001}}\n{GRID}", "line 1: a key must be text, got 1"),
        ("variants: [{name: \xe4}]".encode("latin-1"), "save it as UTF-8"),
    ],
)
def test_a_mistake_in_a_file_is_said_in_plain_words(tmp_path, text, expected):
    path = tmp_path / "space.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as stop:
        read_space(path, check=check_recipe)
    assert expected in str(stop.value)
