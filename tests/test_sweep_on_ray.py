"""Sweeps in this process, on a Ray that runs already: what stops them, and what stops their trials."""

import threading
import time

import pytest
import ray
import stub_sweep
from processes import PATIENCE
from seen import look

from imet_ray.cluster import sweep
from imet_ray.cluster.sweep import SetupFaultError, run_sweep
from imet_ray.space_file import read_space
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's, about the machine

SPACE = """
n_folds: 3
trials_per_variant: {trials}
resources: {{cpus_per_trial: 1}}
{more}
base: {{architecture: test_resnet, weights: {weights}, image_size: 32, epochs: 4, lr: 0.003, keep: last}}
variants: [{{name: a}}]
search: {{dropout: {{low: 0.0, high: 0.5}}}}
"""


@pytest.fixture
def run(shared_ray, tiny_data, tmp_path):
    """Sweeps a space into a run directory of the test's own."""

    def _run(trials: int = 2, weights: str = "none", more: str = "") -> None:
        (tmp_path / "space.yml").write_text(SPACE.format(trials=trials, weights=weights, more=more))
        space = read_space(tmp_path / "space.yml", check=check_recipe)
        run_sweep(space, RunDirectory(tmp_path / "r"), tiny_data, shared_ray)

    return _run


@pytest.fixture
def stub(monkeypatch):
    """Trials that learn nothing."""
    ray.cloudpickle.register_pickle_by_value(stub_sweep)
    monkeypatch.setattr(sweep, "train_in_worker", stub_sweep.train)
    yield
    ray.cloudpickle.unregister_pickle_by_value(stub_sweep)


def test_trials_that_are_behind_are_stopped_early_and_those_that_are_promoted_never(run, stub, tmp_path):
    run(trials=5, more="asha: {grace_epochs: 1, factor: 2}")
    trials = RunDirectory(tmp_path / "r").trials()
    by_status: dict[str, list] = {"complete": [], "stopped": []}
    for trial in trials:
        by_status[read_result(trial).status].append(trial)
    assert by_status["stopped"]
    for trial in by_status["stopped"]:
        assert read_spec(trial).fold == 0
        assert read_result(trial).epochs == len(read_json_lines(trial.metrics)) < 4
    assert {read_spec(trial).fold for trial in by_status["complete"]} == {0, 1, 2}
    assert all(len(read_json_lines(trial.metrics)) == 4 for trial in by_status["complete"])
    before = look(RunDirectory(tmp_path / "r"))
    run(trials=5, more="asha: {grace_epochs: 1, factor: 2}")
    assert look(RunDirectory(tmp_path / "r")) == before  # a finished sweep trains nothing again


def test_a_trial_that_another_writer_takes_over_is_trained_to_its_end(run, tmp_path):
    """As a dead driver's last worker does, which begins after the next driver's."""
    store, taken = RunDirectory(tmp_path / "r"), {}

    def take_over() -> None:
        until = time.monotonic() + PATIENCE
        while not taken and time.monotonic() < until:
            for trial in store.trials():
                if trial.token.exists() and not trial.result.exists():
                    taken[trial.trial_id] = trial.acquire()
                    return
            time.sleep(0.02)

    other = threading.Thread(target=take_over)
    other.start()
    run()
    other.join()
    ((trial_id, token),) = taken.items()
    assert store.trial(trial_id).token.read_text() != token  # it was taken back
    assert {read_result(trial).status for trial in store.trials()} == {"complete"}
    assert len(store.trials()) == 4


def test_a_fault_of_the_set_up_stops_the_sweep_with_one_line(run, tmp_path):
    with pytest.raises(SetupFaultError, match=r"^[^\n]*missing\.pth[^\n]*$"):
        run(weights=f"{tmp_path}/missing.pth")
    assert not [trial for trial in RunDirectory(tmp_path / "r").trials() if trial.result.exists()]
