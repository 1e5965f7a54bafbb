"""What TensorBoard and MLflow are given of a run, read back with their own libraries."""

import json
import socket
import sys
import time
import urllib.request

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_launch import run
from test_run_status import ROW, unfinished

from imet_ray.errors import ConfigError
from imet_ray.reporting.exports import local_uri, log_runs, serve_tensorboard, write_events
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")

ROWS = [ROW | {"at": 1000.0}, ROW | {"epoch": 2, "score": 0.5, "at": 1011.0, "train_loss": 0.25}]


@pytest.fixture
def store(tmp_path, make_spec, monkeypatch) -> RunDirectory:
    """A complete trial, one that was stopped, one that failed, and one that runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = RunDirectory(tmp_path / "runs" / "told")
    store.root.mkdir(parents=True)
    store.experiment.write_text("{}")
    for name, status, rows in (
        ("a", "complete", ROWS),
        ("b", "stopped", ROWS[:1]),
        ("c", "failed", ROWS[:1]),
    ):
        spec = make_spec(name=name, fold=1)
        end = TrialResult(
            trial_id=spec.trial_id, status=status, score=0.5, epochs=len(rows), reason="NaN" * (name == "c")
        )
        write_result(unfinished(store, spec, rows), end)
    unfinished(store, make_spec(name="d"), ROWS[:1])
    return store


def promote(store: RunDirectory, make_spec) -> None:
    """The stopped trial was trained to its end."""
    spec = make_spec(name="b", fold=1)
    end = TrialResult(trial_id=spec.trial_id, status="complete", score=0.5, epochs=2)
    write_result(unfinished(store, spec, ROWS), end)


def curves(store: RunDirectory, title: str) -> dict[str, list[tuple[int, float, float]]]:
    """What TensorBoard itself reads: by tag, the steps, values and times."""
    found = EventAccumulator(str(store.tensorboard / title))
    found.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value), event.wall_time) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_each_curve_as_it_was_trained(store, make_spec):
    assert write_events(store) == (3, 3)
    found = curves(store, make_spec(name="a", fold=1).title)
    assert found["score"] == [(1, 0.4321, 1000.0), (2, 0.5, 1011.0)]
    assert found["train_loss"] == [(2, 0.25, 1011.0)]
    assert not (store.tensorboard / make_spec(name="d").title).exists()  # it runs


def test_tensorboards_files_are_written_once_and_again_after_a_promotion(store, make_spec):
    write_events(store)
    before = {path: path.stat().st_mtime_ns for path in store.tensorboard.glob("*/*")}
    assert before
    assert write_events(store) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in store.tensorboard.glob("*/*")} == before
    promote(store, make_spec)
    assert write_events(store) == (1, 3)
    assert curves(store, make_spec(name="b", fold=1).title)["score"] == [
        (1, 0.4321, 1000.0),
        (2, 0.5, 1011.0),
    ]


@pytest.mark.slow
def test_tensorboard_is_served_on_loopback_with_the_runs_trials(store, make_spec):
    write_events(store)
    address = serve_tensorboard(store, 0)
    assert address.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 60
    names: list[str] = []
    while not names and time.monotonic() < deadline:
        with urllib.request.urlopen(f"{address}data/runs", timeout=10) as answer:
            names = json.load(answer)
        time.sleep(0.2)
    assert make_spec(name="a", fold=1).title in names


def logged(store: RunDirectory) -> dict[str, object]:
    """MLflow's runs that are there, by name."""
    client = MlflowClient(local_uri(store))
    experiment = client.get_experiment_by_name("told")
    return {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}


def test_mlflow_has_settings_curves_and_end_of_each_trial(store, make_spec):
    assert log_runs(store) == (3, 3)
    runs = logged(store)
    spec = make_spec(name="a", fold=1)
    complete = runs[spec.title]
    assert complete.info.status == "FINISHED"
    assert complete.data.params["lr"] == "0.003"
    assert complete.data.params["fold"] == "1"
    assert complete.data.metrics["score"] == 0.5
    history = MlflowClient(local_uri(store)).get_metric_history(complete.info.run_id, "score")
    assert [(one.step, one.value, one.timestamp) for one in history] == [
        (1, 0.4321, 1_000_000),
        (2, 0.5, 1_011_000),
    ]
    failed = runs[make_spec(name="c", fold=1).title]
    assert (failed.info.status, failed.data.tags["mlflow.note.content"]) == ("FAILED", "NaN")


def test_mlflow_is_told_once_and_again_of_what_was_promoted_or_left_half(store, make_spec):
    log_runs(store)
    before = {name: one.info.run_id for name, one in logged(store).items()}
    assert log_runs(store) == (0, 3)
    assert {name: one.info.run_id for name, one in logged(store).items()} == before
    promote(store, make_spec)
    half = make_spec(name="a", fold=1).title
    MlflowClient(local_uri(store)).update_run(before[half], status="RUNNING")  # as a killed export leaves it
    assert log_runs(store) == (2, 3)
    after = {name: one.info.run_id for name, one in logged(store).items()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        half,
        make_spec(name="b", fold=1).title,
    }


def test_mlflow_goes_where_the_environment_says_and_a_password_in_it_is_not_printed(
    store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    code, out, _ = run(capsys, "--mlflow", "--runs", store.root.parent)
    assert code == 0
    assert out.startswith("3 trials written, 0 were there: $MLFLOW_TRACKING_URI\n")
    assert not store.mlflow.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, out, err = run(capsys, "--mlflow", "--runs", store.root.parent)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "$MLFLOW_TRACKING_URI" in err
    assert "secret" not in out + err


def test_a_port_that_is_taken_is_one_line(store):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="give another port"),
    ):
        serve_tensorboard(store, taken.getsockname()[1])


@pytest.mark.parametrize(
    ("flag", "packages"),
    [
        ("--tensorboard", ["tensorboard"]),
        ("--mlflow", ["mlflow", "mlflow.exceptions", "mlflow.tracking"]),
    ],
)
def test_a_missing_extra_is_one_line_with_the_way_out(store, monkeypatch, capsys, flag, packages):
    for package in [*packages, *(["torch.utils.tensorboard"] if flag == "--tensorboard" else [])]:
        monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, flag, "--runs", store.root.parent)
    assert code == 1
    expected = f"uv run --extra {flag[2:]} launch.py {flag}"
    assert err == f"error: {flag} needs packages that are not installed: {expected}\n"
