"""The nodes of a cluster: what they are asked before a sweep begins, and which of them has a fault, on a real Ray."""

import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2._internal import constants
from ray.train.v2.api.callback import RayTrainCallback

from imet_ray.cluster import ddp_trial as ddp
from imet_ray.cluster import node_environment as nodes
from imet_ray.cluster.tasks import predict_held_out
from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, read_result, write_result
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LOST = {"NodeID": "ab" * 28, "NodeManagerAddress": "192.0.2.77", "Alive": True}


@pytest.fixture(autouse=True)
def on_ray(shared_ray):
    return shared_ray


@pytest.fixture
def with_lost(monkeypatch):
    """So many times Ray still lists a node that is no more."""
    listed = ray.nodes

    def _with_lost(times: int) -> None:
        left = iter(range(times))
        monkeypatch.setattr(ray, "nodes", lambda: listed() + ([LOST] if next(left, None) is not None else []))

    return _with_lost


def test_nodes_of_the_same_versions_are_counted():
    assert nodes.refuse_other_versions() == 1


def test_a_node_that_is_lost_while_it_is_asked_is_left_out(with_lost):
    with_lost(1)
    assert nodes.refuse_other_versions() == 1


def test_a_node_that_is_there_and_cannot_be_asked_is_named(with_lost):
    with_lost(2)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77 has"):
        nodes.refuse_other_versions()


def test_a_node_of_another_version_is_named_with_both(monkeypatch):
    ours, here = nodes.versions(), os.getpid()
    monkeypatch.setattr(nodes, "versions", lambda: ours | ({"timm": "0.0.1"} if os.getpid() == here else {}))
    with pytest.raises(ConfigError, match=rf"timm {ours['timm']}, here 0\.0\.1"):
        nodes.refuse_other_versions()


@pytest.mark.parametrize("joined", [True, False])
def test_a_fault_in_a_prediction_is_told_with_its_node_where_there_may_be_several(
    on_ray, joined, tiny_data, make_spec, tmp_path
):
    spec = make_spec()
    trial = RunDirectory(tmp_path / "r").trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))  # and no checkpoint
    with pytest.raises(StoreError, match="best.safetensors") as caught:
        predict_held_out([trial], RunDirectory(tmp_path / "r"), tiny_data, replace(on_ray, joined=joined))
    assert (f"(on {socket.gethostname()}, " in str(caught.value)) == joined


def test_a_fault_in_a_team_is_told_with_the_node_of_its_worker(on_ray, make_spec, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise StoreError("disk full")

    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ddp.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ddp, "train_trial", full)
    slot = replace(on_ray, joined=True).slot(RunDirectory(tmp_path))
    with pytest.raises(StoreError, match=rf"^disk full \(on {socket.gethostname()}, [\d.]+\)$"):
        ddp._train({"job": ddp.Job(make_spec(), "search", None, slot)})


@pytest.mark.parametrize(("gpus", "told"), [(0.0, str(ddp.START_S)), (0.5, None)])
def test_a_team_that_may_be_smaller_does_not_wait_long_for_room(
    on_ray, make_spec, tmp_path, monkeypatch, gpus, told
):
    spec = make_spec()
    slot = replace(on_ray, gpus_per_trial=gpus).slot(RunDirectory(tmp_path))
    end = TrialResult(trial_id=spec.trial_id, status="complete", score=0.5, epochs=1)
    found = {}

    class Trainer:
        def __init__(self, *args: object, **how: object) -> None: ...

        def fit(self) -> None:  # as Ray's reads what it hands on
            found.update(constants.get_env_vars_to_propagate())
            write_result(RunDirectory(tmp_path).trial(spec.trial_id), end)

    monkeypatch.setattr(ddp, "TorchTrainer", Trainer)
    monkeypatch.setattr(ddp, "TuneReportCallback", RayTrainCallback)
    monkeypatch.setenv(ddp.START, "")  # so that it is taken back
    monkeypatch.delenv(ddp.START)
    ddp.run_ddp_trial({"spec": spec.model_dump_json(), "phase": "search"}, None, slot)
    assert read_result(RunDirectory(tmp_path).trial(spec.trial_id)) == end
    assert found.get(constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR) == told
