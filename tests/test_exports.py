"""What TensorBoard, MLflow and optuna-dashboard are given of a run, read back with their own libraries."""

import contextlib
import json
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_launch import run
from test_run_status import ROW, unfinished

from imet_ray.cluster.studies_page import ReadOnlyJournal, serve_studies
from imet_ray.errors import ConfigError, StoreError
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


@pytest.fixture
def studies(store):
    """A server over two studies of one trial each."""
    storage = JournalStorage(JournalFileBackend(str(store.journal)))
    for name in ("a", "b"):
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
        study.enqueue_trial({"dropout": 0.25})
        study.optimize(lambda trial: trial.suggest_float("dropout", 0, 0.5), n_trials=1)
    server = serve_studies(store, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_studies_are_served_on_loopback(studies):
    assert studies.server_address[0] == "127.0.0.1"
    with urllib.request.urlopen(f"http://127.0.0.1:{studies.server_port}/api/studies", timeout=30) as answer:
        found = json.load(answer)
    assert [one["study_name"] for one in found["study_summaries"]] == ["a", "b"]


def test_studies_of_a_data_base_are_served_too(store, tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(study_name="of-a-base", storage=url)
    server = serve_studies(store, 0, url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.server_port}/api/studies", timeout=30
        ) as answer:
            found = json.load(answer)
    finally:
        server.shutdown()
        server.server_close()
    assert [one["study_name"] for one in found["study_summaries"]] == ["of-a-base"]


def test_a_data_base_that_is_not_there_is_not_made(store, tmp_path):
    with pytest.raises(ConfigError, match=r"--studies: cannot open sqlite:.*: is it there"):
        serve_studies(store, 0, f"sqlite:///{tmp_path}/typo.db")
    assert not (tmp_path / "typo.db").exists()
    (tmp_path / "other.db").touch()
    with pytest.raises(ConfigError, match="is it there"):
        serve_studies(store, 0, f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").read_bytes()


def test_a_data_base_that_goes_away_is_one_line_and_one_that_is_back_is_read(store, tmp_path, capfd, caplog):
    url = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(study_name="of-a-base", storage=url)
    server = serve_studies(store, 0, url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"

    def execute(query: str) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "studies.db")) as link:
            link.execute(query)

    try:
        execute("alter table studies rename to away")
        for path, code in (("api/studies", 500), ("csv/1", 503), ("api/studies", 500)):
            with pytest.raises(urllib.error.HTTPError, match=str(code)) as refused:
                urllib.request.urlopen(f"{root}/{path}", timeout=30)
            refused.value.close()
            urllib.request.urlopen(f"{root}/dashboard", timeout=30).close()
        execute("alter table away rename to studies")
        with urllib.request.urlopen(f"{root}/api/studies", timeout=30) as answer:
            assert "of-a-base" in answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    (record,) = caplog.records
    assert record.getMessage() == "--studies: the data base does not answer (OperationalError): is it away?"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_fault_that_is_not_the_data_bases_is_told_as_it_is(store, tmp_path, caplog):
    url = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(study_name="of-a-base", storage=url)
    server = serve_studies(store, 0, url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(urllib.error.HTTPError, match="500") as refused:
            urllib.request.urlopen(
                f"http://127.0.0.1:{server.server_port}/api/studies/1?after=zz", timeout=30
            )
        refused.value.close()
    finally:
        server.shutdown()
        server.server_close()
    assert "zz" in caplog.text
    assert "data base" not in caplog.text


@pytest.mark.parametrize(("method", "path"), [("DELETE", "api/studies/0"), ("POST", "api/studies")])
def test_who_looks_at_the_studies_cannot_change_them(studies, store, method, path):
    before = store.journal.read_bytes()
    request = urllib.request.Request(
        f"http://127.0.0.1:{studies.server_port}/{path}", method=method, data=b"{}"
    )
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(request, timeout=30)
    refused.value.close()
    with pytest.raises(StoreError, match="read only"):
        optuna.delete_study(study_name="a", storage=JournalStorage(ReadOnlyJournal(store)))
    assert store.journal.read_bytes() == before


def test_a_port_that_is_taken_is_one_line(studies, store):
    with pytest.raises(ConfigError, match=f"--serve {studies.server_port}: .*give another port"):
        serve_studies(store, studies.server_port)
    with pytest.raises(ConfigError, match="give another port"):
        serve_tensorboard(store, studies.server_port)


@pytest.mark.parametrize(
    ("flag", "packages"),
    [
        ("--tensorboard", ["tensorboard"]),
        ("--mlflow", ["mlflow", "mlflow.exceptions", "mlflow.tracking"]),
        ("--optuna-dashboard", ["optuna_dashboard"]),
    ],
)
def test_a_missing_extra_is_one_line_with_the_way_out(store, monkeypatch, capsys, flag, packages):
    for package in [*packages, *(["torch.utils.tensorboard"] if flag == "--tensorboard" else [])]:
        monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, flag, "--runs", store.root.parent)
    assert code == 1
    expected = f"uv run --extra {flag[2:]} launch.py {flag}"
    assert err == f"error: {flag} needs packages that are not installed: {expected}\n"


def test_a_run_without_studies_is_one_line(store, capsys):
    code, _, err = run(capsys, "--optuna-dashboard", "--runs", store.root.parent)
    assert code == 1
    assert "has no journal: sweep first" in err
