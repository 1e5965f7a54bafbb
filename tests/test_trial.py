"""What a worker makes of a trial's end; no Ray is started."""

import pytest
import torch

from imet_ray.cluster import trial as adapter
from imet_ray.cluster.session import Slot
from imet_ray.errors import StoreError
from imet_ray.storage.files import SupersededError
from imet_ray.storage.results import read_result
from imet_ray.storage.run_directory import RunDirectory


class Left(BaseException):
    """The process ended at once."""


@pytest.fixture
def run(make_spec, tiny_data, tmp_path, monkeypatch):
    """Runs a trial whose training ends with an error; what Tune was told, and the trial."""
    told = []
    monkeypatch.setattr(adapter.tune, "report", told.append)

    def leave(code):
        raise Left

    monkeypatch.setattr(adapter.os, "_exit", leave)

    def _run(error: Exception, loader_workers: int = 1):
        def train(*args, **kwargs):
            raise error

        monkeypatch.setattr(adapter, "train_trial", train)
        spec = make_spec()
        slot = Slot(RunDirectory(tmp_path), 1.0, 0.0, loader_workers, joined=False)
        adapter.run_trial({"spec": spec.model_dump_json(), "phase": "search"}, tiny_data, slot)
        return told, RunDirectory(tmp_path).trial(spec.trial_id)

    return _run


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        ConnectionResetError(104, "Connection reset by peer"),
        torch.AcceleratorError("CUDA error: unspecified launch failure", 719),
    ],
)
def test_where_a_loader_or_the_gpu_is_lost_the_process_ends_and_the_trial_has_no_result(run, error, tmp_path):
    with pytest.raises(Left):
        run(error)
    assert not [*tmp_path.glob("trials/*/result.json")]


def test_a_fault_of_ours_in_a_loader_fails_the_trial_with_its_traceback(run):
    told, trial = run(KeyError("Caught KeyError in DataLoader worker process 0.\nOriginal Traceback"))
    result = read_result(trial)
    assert result is not None
    assert result.status == "failed"
    assert "Caught KeyError in DataLoader worker process 0" in result.reason
    assert "KeyError" in (trial.root / "error.txt").read_text()
    assert told == [{"failed": result.reason}]


def test_without_loaders_none_can_have_died(run):
    _, trial = run(ConnectionResetError(104, "Connection reset by peer"), loader_workers=0)
    result = read_result(trial)
    assert result is not None
    assert "Connection reset by peer" in result.reason


def test_a_fault_of_the_set_up_is_told_and_is_not_the_trials(run):
    told, trial = run(StoreError("disk full"))
    assert told == [{"fatal": "disk full"}]
    assert read_result(trial) is None


def test_a_trial_that_was_taken_over_is_left_to_others(run):
    told, trial = run(SupersededError("trial"))
    assert told == [{"superseded": True}]
    assert read_result(trial) is None
