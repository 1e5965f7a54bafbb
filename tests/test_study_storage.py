"""Where Optuna's studies lie: the run's journal or any storage that Optuna opens, with no password told."""

import contextlib
import sqlite3
import time
from random import Random

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from imet_ray.cluster import study_storage as studies
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.study_storage import Studies, open_storage, open_studies, without_password
from imet_ray.errors import ConfigError
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage import object_store as buckets
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.storage.runs import set_aside
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 3
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 2}
variants: [{name: a}, {name: b}]
search: {dropout: {low: 0.0, high: 0.5}}
"""


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    (tmp_path / "space.yml").write_text(SPACE)
    return read_space(tmp_path / "space.yml", {}, check=check_recipe)


def work(space: SearchSpace, store: RunDirectory, url: str | None, *, trials: int) -> list[str]:
    """Train so many trials in thought; their ids."""
    done = []
    with open_studies(store, url) as opened:
        policy = Policy(space, store, "d", "f", studies=opened)
        while len(done) < trials and not isinstance(found := policy.next(), str):
            assert found is not None
            trial_id = found.spec.trial_id
            score = found.spec.hparams["dropout"]
            write_json(store.trial(trial_id).spec, found.spec.model_dump(mode="json"))
            write_result(
                store.trial(trial_id), TrialResult(trial_id=trial_id, status="complete", score=score)
            )
            policy.done(trial_id)
            done.append(trial_id)
    return done


def test_a_sweep_over_sqlite_goes_on_where_it_stopped(tmp_path, space):
    url = f"sqlite:///{tmp_path}/studies.db"
    whole = work(space, RunDirectory(tmp_path / "whole"), None, trials=100)
    first = work(space, RunDirectory(tmp_path / "r"), url, trials=4)
    rest = work(space, RunDirectory(tmp_path / "r"), url, trials=100)
    assert first + rest == whole  # as with the journal, undisturbed
    assert not RunDirectory(tmp_path / "r").journal.exists()


@pytest.fixture
def cut_off(monkeypatch):
    """Some of what a database has carried out, it does not say, once it is open."""
    monkeypatch.setattr(buckets, "PAUSE_S", (0.001, 0.01))
    random, cuts = Random(0), []

    def opened(url: str) -> RDBStorage:
        found = open_storage(url)
        dialect = found.engine.dialect

        def commit(connection: sqlite3.Connection) -> None:
            connection.commit()
            if random.random() < 0.3:
                cuts.append(connection)
                raise sqlite3.OperationalError

        monkeypatch.setattr(dialect, "do_commit", commit)
        return found

    monkeypatch.setattr(studies, "open_storage", opened)
    return cuts


def test_what_a_data_base_did_and_did_not_say_is_not_done_twice(tmp_path, space, cut_off):
    calm = work(space, RunDirectory(tmp_path / "calm"), None, trials=100)
    assert work(space, RunDirectory(tmp_path / "r"), f"sqlite:///{tmp_path}/studies.db", trials=100) == calm
    assert len(cut_off) > 10


@pytest.mark.parametrize("told", [True, False])
def test_a_driver_that_was_killed_beside_an_empty_set_asks_for_the_right_ones(tmp_path, space, told):
    """It had begun two sets without hparams, and told Optuna or not that the first failed."""
    calm = work(space, RunDirectory(tmp_path / "calm"), None, trials=100)
    store = RunDirectory(tmp_path / "r")
    first = work(space, store, None, trials=1)
    study = optuna.load_study(study_name="a", storage=JournalStorage(JournalFileBackend(str(store.journal))))
    empty = study.ask()
    if told:
        study.tell(empty, state=TrialState.FAIL)
    study.ask()
    rest = work(space, store, None, trials=100)
    assert sorted(first + rest) == sorted(calm)


def test_a_set_that_was_finished_before_is_refused_by_a_patient_storage_too(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    with open_studies(RunDirectory(tmp_path / "r"), url) as opened:
        study = optuna.create_study(storage=opened.storage)
        trial = study.ask()
        study.tell(trial, 0.5)
        with pytest.raises(UpdateFinishedTrialError):
            opened.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])


def test_two_runs_of_one_name_share_a_data_base_and_no_study(tmp_path, space):
    url = f"sqlite:///{tmp_path}/studies.db"
    before = work(space, RunDirectory(tmp_path / "r"), url, trials=100)
    set_aside(tmp_path / "r")
    assert (
        work(space, RunDirectory(tmp_path / "r"), url, trials=100) == before
    )  # from the beginning, as the first
    with sqlite3.connect(tmp_path / "studies.db") as base:
        names = [name for (name,) in base.execute("select study_name from studies")]
    assert len(set(names)) == 4
    assert {name.partition("-")[0] for name in names} == {"r"}
    base.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nothing://me:hunter2@127.0.0.1:9/db",
        "mysql+nothing://me:hunter2@127.0.0.1/db?password=hunter2",
        "redis://me:hunter2@127.0.0.1:9/0",
        "me:hunter2@host/db",
        "sqlite:////nowhere/at/all/hunter2@x.db",
    ],
)
def test_a_password_is_in_no_message(url):
    with pytest.raises(ConfigError) as found:
        open_storage(url)
    text = str(found.value)
    assert "--studies" in text
    assert "hunter2" not in text
    assert "\n" not in text
    assert found.value.__cause__ is None


def test_tables_of_an_older_optuna_are_named_with_the_way_out(tmp_path):
    url = f"sqlite:///{tmp_path}/old.db"
    open_storage(url).engine.dispose()
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as base, base:
        base.execute("update alembic_version set version_num = 'v0.9.0.a'")
    with pytest.raises(ConfigError, match="of an older Optuna: run `optuna storage upgrade") as found:
        open_storage(url)
    assert "does it exist" not in str(found.value)


def test_a_database_that_cannot_be_opened_says_why():
    with pytest.raises(ConfigError, match="unable to open database file"):
        open_storage("sqlite:////nowhere/at/all/x.db")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:a%40b@host:5/db?password=x@y", "postgresql://host:5/db"),
        ("postgresql://me:a?b@host/db", "postgresql://host/db"),
        ("postgresql:///db?host=/run/sockets", "postgresql:///db"),
        ("postgresql://me:a@[::1]:5/db", "postgresql://[::1]:5/db"),
        ("postgresql://", "postgresql://"),
        ("postgresql://me:a@b:c@host:5/db", "postgresql://..."),
    ],
)
def test_what_is_shown_of_a_url_is_where_it_leads(url, expected):
    assert without_password(url) == expected


def test_no_url_is_stored_with_the_run(tmp_path, space):
    work(space, RunDirectory(tmp_path / "r"), f"sqlite:///{tmp_path}/hunter2.db", trials=100)
    for path in (tmp_path / "r").rglob("*"):
        assert not path.is_file() or "hunter2" not in path.read_text()


def test_the_journal_is_sent_now_and_then_and_at_the_end(tmp_path):
    sent = []

    class Counted(RunDirectory):
        def publish_journal(self) -> None:
            sent.append(time.monotonic())

    ours = Studies(InMemoryStorage(), journal_of=Counted(tmp_path))
    for _ in range(1000):
        ours.save()
    assert len(sent) == 1
    ours.save(last=True)
    assert len(sent) == 2


def test_a_storage_of_optunas_own_kind_is_what_is_opened(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    optuna.create_study(study_name="x", storage=storage)
    assert [study.study_name for study in storage.get_all_studies()] == ["x"]
