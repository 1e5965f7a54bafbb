"""A run in a bucket, as other tools show it on a machine that took no part in it."""

import json
import shutil
import threading
import time
import urllib.request

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_launch import run
from test_run_status import ROW

from imet_ray.cluster import studies_page
from imet_ray.cluster.studies_page import serve_studies
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture
def runs(proxy, bucket) -> str:
    return f"{proxy.scheme}://{bucket}/runs"


@pytest.fixture
def written(on_node) -> RunDirectory:
    """The run as its driver sees it."""
    return on_node("driver")


def begin_study(store: RunDirectory, name: str) -> None:
    store.root.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(store.journal)))
    optuna.create_study(study_name=name, storage=storage, direction="maximize")
    store.publish_journal()


def test_its_studies_are_served_as_they_grow(written, on_node, monkeypatch):
    monkeypatch.setattr(studies_page, "AGAIN_S", 0.0)
    begin_study(written, "a")
    other = on_node("other")
    server = serve_studies(other, 0)
    assert not other.journal.exists()  # which a driver there would go on with
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def served() -> list[str]:
        url = f"http://127.0.0.1:{server.server_port}/api/studies"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return [one["study_name"] for one in json.load(answer)["study_summaries"]]

    try:
        assert served() == ["a"]
        begin_study(written, "b")
        until = time.monotonic() + 30
        while served() == ["a"] and time.monotonic() < until:
            time.sleep(0.1)
        assert served() == ["a", "b"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("flag", ["--tensorboard", "--mlflow"])
def test_its_trials_are_told(written, runs, tmp_path, make_spec, capsys, monkeypatch, flag):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = make_spec()
    trial = written.trial(spec.trial_id)
    write_json(written.experiment, {}, written.files)
    write_json(trial.spec, spec.model_dump(mode="json"), trial.files)
    write_json_lines(trial.metrics, [ROW], trial.files)
    write_result(trial, TrialResult(trial_id=spec.trial_id, status="complete", score=0.5, epochs=1))
    code, out, _ = run(capsys, flag, "--runs", runs, "--cache", tmp_path / "other")
    assert code == 0
    assert "1 trials" in out
    assert str(tmp_path / "other") in out  # told from its own copy


def test_its_phase_and_its_driver_are_known_though_predictions_stay_where_they_are(
    trained, written, runs, tmp_path, capsys
):
    root = trained.run.store.root
    for path in (*root.glob("trials/*/*"), root / "experiment.json", root / "folds.csv"):
        with written.files.writing(written.root / path.relative_to(root)) as temporary:
            shutil.copyfile(path, temporary)
    write_json(written.lease, {"driver": "process 7", "host": "far"}, written.files)
    code, out, _ = run(capsys, "--status", "--runs", runs, "--cache", tmp_path / "other")
    assert code == 0
    assert "r: out-of-fold: 6 of 6 checkpoints predicted" in out
    assert "driver   process 7 on far\n" in out
    written.files.remove(written.lease)
    _, out, _ = run(capsys, "--status", "--runs", runs, "--cache", tmp_path / "other")
    assert "driver   none is seen from here: the same command continues\n" in out
    assert not [*(tmp_path / "other").rglob("oof.npz")]
