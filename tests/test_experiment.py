"""A run directory belongs to one experiment and to one driver at a time."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from bare_spec import bare_spec

import imet_ray
from imet_ray.errors import ConfigError, StoreError
from imet_ray.space_file import read_space
from imet_ray.storage.experiment import Experiment, begin, only_driver, read_experiment
from imet_ray.storage.files import Files, write_json
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 2
search_folds: [0]
variants: [{name: a, architecture: resnet18}, {name: b, architecture: resnet34}]
search: {dropout: {low: 0.0, high: 0.5}, batch_size: {low: 8, high: 32}}
"""
HOLDER = """
import sys, time
from pathlib import Path
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.run_directory import RunDirectory
with only_driver(RunDirectory(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def make(tmp_path) -> Callable[..., Experiment]:
    """The experiment, with other data or with parts of the space's text replaced."""

    def _make(*changes: tuple[str, str], data="data", folds="folds", weights=None) -> Experiment:
        text = SPACE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "space.yml"
        path.write_text(text)
        return Experiment(
            space=read_space(path, check=check_recipe),
            data="demo",
            data_root=str(tmp_path),
            data_digest=data,
            folds_digest=folds,
            label_ids=["0", "1"],
            weights=weights or {},
        )

    return _make


def test_an_experiment_is_read_as_it_was_written(store, make):
    begin(store, make())
    assert read_experiment(store) == make()


def test_an_experiment_records_the_versions_that_run_it(make):
    versions = make().versions
    assert versions["imet_ray"] == imet_ray.__version__
    assert versions["python"] == platform.python_version()
    for package in ("ray", "torch", "timm", "optuna", "numpy"):
        assert versions[package] == metadata.version(package)


def test_the_same_experiment_goes_on(store, make):
    begin(store, make())
    begin(store, make())
    assert read_experiment(store) == make()


def refused(store, experiment) -> str:
    """Why the run does not go on with this experiment; what was written stays."""
    before = store.experiment.read_bytes()
    with pytest.raises(StoreError) as caught:
        begin(store, experiment)
    assert store.experiment.read_bytes() == before
    assert str(store.root) in str(caught.value)
    assert str(caught.value).endswith("choose another --name, or --fresh to set the old run aside")
    return str(caught.value)


@pytest.mark.parametrize(
    ("digests", "expected"),
    [
        ({"data": "else"}, "begun with other data"),
        ({"folds": "else"}, "begun with other folds"),
        ({"weights": {"w.pth": "else"}}, "begun with other weights in w.pth"),
    ],
)
def test_other_data_folds_or_weights_are_refused(store, make, digests, expected):
    begin(store, make(weights={"w.pth": "first"}))
    begin(store, make(weights={"other.pth": "of another variant"}))
    assert expected in refused(store, make(**digests))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("n_folds: 3", "n_folds: 4"), "begun with n_folds=3, now it is 4"),
        (("n_folds: 3", "n_folds: 3\nseed: 5"), "begun with seed=0, now it is 5"),
        (("resnet34", "resnet50"), "variant 'b' with architecture='resnet34', now it is 'resnet50'"),
        (("resnet18", "resnet18, lr: 0.1"), "variant 'a' with lr=0.0001, now it is 0.1"),
        (("high: 0.5", "high: 0.6"), "variant 'a' over other ranges: dropout 0..0.5, now 0..0.6"),
        (("high: 32", "high: 32, log: true"), "ranges: batch_size 8..32, now 8..32 (log)"),
        (("high: 32", "high: 32, step: 8"), "ranges: batch_size 8..32, now 8..32 in steps of 8"),
        ((", batch_size: {low: 8, high: 32}", ""), "ranges: batch_size 8..32, now not at all"),
        (
            ("resnet34", "resnet34, search: {lr: [0.1]}"),
            "variant 'b' over other ranges: lr not at all, now [0.1]",
        ),
        (("n_folds: 3", "n_folds: 3\npack_short_side: 64"), "pack_short_side"),
    ],
)
def test_a_change_that_would_mix_results_is_refused_by_name(store, make, change, expected):
    begin(store, make())
    assert expected in refused(store, make(change))


@pytest.mark.parametrize(
    "change",
    [
        ("trials_per_variant: 2", "trials_per_variant: 9"),
        ("trials_per_variant: 2", "trials_per_variant: 1"),
        ("search_folds: [0]", "asha: {grace_epochs: 2}"),
        ("search_folds: [0]", "resources: {cpus_per_trial: 4}"),
        ("variants: [", "variants: [{name: c, architecture: resnet50},"),
        (", {name: b, architecture: resnet34}", ""),
    ],
)
def test_budgets_and_the_list_of_variants_may_change(store, make, change):
    begin(store, make())
    begin(store, make(change))
    assert read_experiment(store).space == make(change).space


def test_a_variant_that_was_left_out_comes_back_only_with_its_ranges(store, make):
    without = (", {name: b, architecture: resnet34}", "")
    begin(store, make())
    begin(store, make(without))
    begin(store, make(without))  # twice
    said = "variant 'b' over other ranges: lr not at all, now [0.1]"
    assert said in refused(store, make(("resnet34", "resnet34, search: {lr: [0.1]}")))
    begin(store, make())
    assert read_experiment(store) == make()


def test_a_variant_that_was_left_out_comes_back_only_as_it_was(store, make):
    begin(store, make())
    variant = make().space.variants[1]
    spec = bare_spec(variant, 0)
    write_json(store.trial(spec.trial_id).spec, spec.model_dump(mode="json"))  # it was trained
    begin(store, make((", {name: b, architecture: resnet34}", "")))
    assert "variant 'b'" in refused(store, make(("resnet34", "resnet50")))


def test_a_run_of_a_version_with_other_ids_is_not_trained_again_beside_itself(store, make):
    experiment = make()
    begin(store, experiment)
    spec = bare_spec(experiment.space.variants[0])
    write_json(store.trial("0123456789abcdef").spec, spec.model_dump(mode="json"))
    with pytest.raises(StoreError, match="begun by an earlier version.*--fresh to set the old run aside"):
        begin(store, make())


class Unrenamed(Files):
    """Files whose folders cannot be renamed, as in a bucket."""

    def check_set_aside(self) -> None:
        raise ConfigError("no")


def test_where_a_run_cannot_be_renamed_no_option_for_it_is_named(tmp_path, make):
    store = RunDirectory(tmp_path / "run", Unrenamed())
    begin(store, make())
    with pytest.raises(StoreError, match="begun with other data: choose another --name$"):
        begin(store, make(data="else"))


def start_holder(store) -> "subprocess.Popen[str]":
    """Another process that drives the run."""
    repository = Path(imet_ray.__file__).parent.parent
    command = [sys.executable, "-c", HOLDER, str(store.root)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_with_the_first_ones_pid_until_that_is_killed(store):
    holder = start_holder(store)
    try:
        with (
            pytest.raises(ConfigError, match=rf"driven by process {holder.pid} on .*--name"),
            only_driver(store),
        ):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with only_driver(store):
        assert store.driver_lock.read_text() == f"{os.getpid()} on {platform.node()}"


def test_a_driver_that_ends_leaves_the_run_to_the_next(store):
    with pytest.raises(KeyError), only_driver(store):
        raise KeyError
    with only_driver(store):
        assert store.driver_lock.exists()
