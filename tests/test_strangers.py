"""A run directory that a stranger made or that was damaged: each reader refuses in one line, or reads it, no more."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imet_ray.cluster.policy import Policy
from imet_ray.data.folds import read_folds
from imet_ray.errors import ImetError
from imet_ray.models.checkpoint import load_state, load_tagger
from imet_ray.prediction.ensemble import read_ensemble
from imet_ray.prediction.predict import read_predictions
from imet_ray.reporting.run_status import Watcher
from imet_ray.search_space import SearchSpace
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.experiment import read_experiment
from imet_ray.storage.results import read_result, read_spec, standings
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory
from imet_ray.training.train_trial import train_trial

CPU = torch.device("cpu")
ODD = [
    "../../../etc/passwd",
    "\0",
    "é" * 300,
    10**400,
    -1,
    1e308,
    None,
    True,
    [],
    {},
    [[[]]],
    {"a": [1]},
    "nan",
]


class Stranger:
    """A copy of a run, one file of which can be replaced."""

    def __init__(self, run: Any, root: Path) -> None:
        shutil.copytree(run.store.root, root)
        self.run, self.store = run, RunDirectory(root)
        self.trial = self.store.begun_trials()[0]
        experiment = read_experiment(self.store)
        self.space: SearchSpace = experiment.space
        self.variants = [variant.name for variant in experiment.space.variants]
        spec = read_spec(self.trial)
        half = train_half(run, spec, root / "half")
        shutil.copy(half.last, self.trial.last)
        Policy(self.space, self.store, "data", "folds").next()  # begins the journal
        self.readers: dict[Path, Callable[[], object]] = {
            self.trial.result: lambda: (read_result(self.trial), standings(self.store, self.variants)),
            self.trial.spec: lambda: (read_spec(self.trial), standings(self.store, self.variants)),
            self.trial.metrics: lambda: (read_json_lines(self.trial.metrics), Watcher(self.store).look()),
            self.trial.best: lambda: load_tagger(self.trial.best, torch.device("cpu")),
            self.trial.last: lambda: load_state(self.trial.last),
            self.trial.oof: lambda: read_predictions(self.trial.oof),
            self.store.experiment: lambda: (read_experiment(self.store), Watcher(self.store).look()),
            self.store.folds: lambda: read_folds(self.store.folds, run.data.split.ids),
            self.store.journal: lambda: Policy(self.space, self.store, "data", "folds").next(),
            self.store.ensemble("k").ensemble: lambda: read_ensemble(self.store.ensemble("k")),
        }
        self.whole = {path: path.read_bytes() for path in self.readers}

    def read(self, path: Path) -> None:
        """Read it as the product does: an error that a user can read is as good as a value."""
        said = ""
        try:
            self.readers[path]()
        except ImetError as error:
            said = str(error)
        finally:
            path.unlink(missing_ok=True)
            path.write_bytes(self.whole[path])
        assert len(said) < 2000
        assert "\n" not in said or path == self.store.folds  # of which every problem is told


def train_half(run: Any, spec: Any, root: Path) -> TrialDirectory:
    """A trial that was interrupted after its first epoch."""
    longer = spec.model_copy(update={"variant": spec.variant.model_copy(update={"epochs": 2})})
    trial = TrialDirectory(root)

    def stop(metrics: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(longer, run.data, trial, device=CPU, report=stop)
    return trial


@pytest.fixture(scope="module")
def stranger(trained, swept, tmp_path_factory) -> Stranger:
    return Stranger(trained.run, tmp_path_factory.mktemp("strange") / "run")


NAMES = [
    *("result.json", "spec.json", "metrics.jsonl", "best.safetensors", "last.pt", "oof.npz"),
    *("experiment.json", "folds.csv", "studies.journal", "ensemble.json"),
]


def path_of(stranger: Stranger, name: str) -> Path:
    return next(path for path in stranger.readers if path.name == name)


def mutated(data: bytes, draw: st.DataObject) -> bytes:
    """Bytes changed, cut, repeated, or put in; near the beginning rather often, for headers are there."""
    kind = draw.draw(st.sampled_from(["flip", "cut", "insert", "repeat", "huge"]))
    at = draw.draw(st.integers(0, min(len(data) - 1, 400)) | st.integers(0, len(data) - 1))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ draw.draw(st.integers(1, 255))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + draw.draw(st.binary(min_size=1, max_size=20)) + data[at:]
    if kind == "repeat":
        return data[:at] + data[max(0, at - 50) :]
    return data[:at] + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + data[at + 8 :]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_changed_bytes_are_read_or_refused(stranger, name, draw):
    path = path_of(stranger, name)
    path.write_bytes(mutated(stranger.whole[path], draw))
    stranger.read(path)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON, all of it included."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [at, *(found for key, child in children for found in leaves(child, (*at, key)))]


@pytest.mark.parametrize(
    "name",
    ["result.json", "spec.json", "experiment.json", "ensemble.json", "metrics.jsonl", "studies.journal"],
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_odd_values_are_read_or_refused(stranger, name, draw):
    path = path_of(stranger, name)
    lines = (
        stranger.whole[path].decode().splitlines()
        if "." + name.split(".")[1] in (".jsonl", ".journal")
        else None
    )
    text = stranger.whole[path].decode() if lines is None else draw.draw(st.sampled_from(lines))
    value = json.loads(text)
    place = draw.draw(st.sampled_from(leaves(value)))
    odd = draw.draw(st.sampled_from(ODD))
    if place:
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = odd
    else:
        value = odd
    changed = json.dumps(value)
    path.write_text(
        changed if lines is None else "\n".join(changed if line == text else line for line in lines) + "\n"
    )
    stranger.read(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["itself", "a folder", "nothing", "/dev/zero", "a pipe"])
def test_links_and_what_is_no_file_are_refused_at_once(stranger, name, target, tmp_path):
    path = path_of(stranger, name)
    path.unlink()
    if target == "a pipe":
        os.mkfifo(tmp_path / "pipe")
    places = {"itself": path, "a folder": tmp_path, "nothing": tmp_path / "gone", "a pipe": tmp_path / "pipe"}
    path.symlink_to(places.get(target, Path(target)))
    stranger.read(path)


def test_a_state_without_all_of_its_parts_is_no_state(stranger):
    torch.save({"epoch": 1, "model": {}}, stranger.trial.last)
    assert load_state(stranger.trial.last) is None
    torch.save([1], stranger.trial.last)
    assert load_state(stranger.trial.last) is None
    stranger.trial.last.write_bytes(stranger.whole[stranger.trial.last])
    assert load_state(stranger.trial.last) is not None


def test_an_array_that_claims_to_be_huge_is_refused(stranger):
    path = path_of(stranger, "oof.npz")
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    shape = b"{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000, 1103), }"
    huge = header + shape + b" " * (117 - len(shape)) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        for name in np.load(path_of_copy(stranger, path)).files:
            file.writestr(f"{name}.npy", huge)
    with pytest.raises(ImetError):
        read_predictions(path)
    path.write_bytes(stranger.whole[path])


def path_of_copy(stranger: Stranger, path: Path) -> Path:
    copy = path.with_name("copy.npz")
    copy.write_bytes(stranger.whole[path])
    return copy


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a/../../b"])
def test_a_name_that_leads_out_of_the_run_is_refused(stranger, name):
    path = path_of(stranger, "ensemble.json")
    value = json.loads(stranger.whole[path])
    value["members"][0]["trials"][0] = name
    path.write_text(json.dumps(value))
    with pytest.raises(ImetError, match="trials"):
        read_ensemble(stranger.store.ensemble("k"))
    path.write_bytes(stranger.whole[path])
