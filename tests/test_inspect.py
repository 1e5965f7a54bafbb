"""A run in a bucket, as other tools show it on a machine that took no part in it."""

import shlex
import shutil

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_launch import run
from test_run_status import ROW

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


def command(capsys, *options: object) -> tuple[list[str], str]:
    """What `--optuna-dashboard` prints: the command, and the remarks below it."""
    code, out, err = run(capsys, "--optuna-dashboard", *options)
    assert (code, err) == (0, "")
    first, _, remarks = out.partition("\n")
    return shlex.split(first), remarks


def test_the_command_for_its_studies_names_a_copy_of_the_journal(written, runs, tmp_path, capsys):
    begin_study(written, "a")
    write_json(written.experiment, {}, written.files)
    words, remarks = command(capsys, "--runs", runs, "--cache", tmp_path / "other")
    storage = JournalStorage(JournalFileBackend(words[-1]))
    assert words[-3:-1] == ["--storage-class", "JournalFileStorage"]
    assert [study.study_name for study in storage.get_all_studies()] == ["a"]
    assert str(tmp_path / "other") in words[-1]
    assert not words[-1].endswith("studies.journal")  # which a driver here would go on with
    assert "a copy" in remarks
    begin_study(written, "b")
    words, _ = command(capsys, "--runs", runs, "--cache", tmp_path / "other")
    storage = JournalStorage(JournalFileBackend(words[-1]))
    assert [study.study_name for study in storage.get_all_studies()] == ["a", "b"]


@pytest.fixture
def local(tmp_path) -> RunDirectory:
    store = RunDirectory(tmp_path / "my runs" / "told")
    begin_study(store, "a")
    store.experiment.write_text("{}")
    return store


def test_the_command_for_local_studies_names_the_journal(local, capsys):
    words, remarks = command(capsys, "--runs", local.root.parent, "--serve", 9000)
    assert words[:2] == ["uvx", "--from"]
    assert f"optuna=={optuna.__version__}" in words  # which reads what ours has written
    assert words[-6:] == [
        *("optuna-dashboard", "--storage-class", "JournalFileStorage", str(local.journal)),
        *("--port", "9000"),
    ]
    assert "change nothing there" in remarks


@pytest.mark.parametrize(
    ("url", "shown", "way"),
    [
        ("postgresql://me:hunter2@h:5/db", "postgresql://me@h:5/db", "set PGPASSWORD"),
        (
            "postgresql://me@h/db?password=hunter2&sslmode=require",
            "postgresql://me@h/db?sslmode=require",
            "PGPASSWORD",
        ),
        ("mysql+pymysql://me:hunter2@h/db", "mysql+pymysql://me@h/db", "put it into the URL"),
        ("postgresql://me@h/db", "postgresql://me@h/db", ""),
    ],
)
def test_the_command_for_studies_in_a_database_has_its_url_and_no_password(local, capsys, url, shown, way):
    local.studies_id.write_text("1a2b")
    words, remarks = command(capsys, "--runs", local.root.parent, "--studies", url)
    assert words[-1] == shown
    assert ("psycopg[binary]" in " ".join(words)) == url.startswith("postgresql")
    assert "told-1a2b/VARIANT" in remarks
    assert way in remarks
    assert ("password" in remarks) == ("hunter2" in url)
    assert "hunter2" not in remarks


def test_a_database_file_that_does_not_exist_is_one_line(local, tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/typo.db"
    code, _, err = run(capsys, "--optuna-dashboard", "--runs", local.root.parent, "--studies", url)
    assert code == 1
    assert err == f"error: --studies: there is no file {tmp_path}/typo.db\n"


def test_a_run_without_studies_is_one_line(local, capsys):
    local.journal.unlink()
    code, _, err = run(capsys, "--optuna-dashboard", "--runs", local.root.parent)
    assert code == 1
    assert "has no journal: sweep first" in err


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
