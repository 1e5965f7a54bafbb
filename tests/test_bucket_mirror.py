"""Runs in a bucket, over servers that speak as three object stores do, and the harm that happens on the way."""

import logging
import math
import pickle
import secrets
from pathlib import Path

import pytest
from bucket_stores import FULL

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import files
from imet_ray.storage import object_store as buckets
from imet_ray.storage.checked_read import read_json
from imet_ray.storage.files import SupersededError, write_json
from imet_ray.storage.results import TrialResult, read_result, write_result
from imet_ray.storage.run_directory import Cache, RunDirectory, TrialDirectory
from imet_ray.storage.runs import Runs, runs_at

WRITES = ("PUT", "POST")
TRIALS = 10_000  # in the bucket FULL; other stores than S3 have fewer, of two pages


def write_text(directory: RunDirectory | TrialDirectory, path: Path, text: str) -> None:
    files.write_text(path, text, directory.files)


def test_what_one_node_writes_another_reads(on_node):
    here, there = on_node("a"), on_node("b")
    files.write_json(here.experiment, {"a": 1}, here.files)
    write_result(here.trial("t"), TrialResult(trial_id="t", status="complete", score=0.5))
    files.write_json(here.trial("t").spec, {}, here.files)
    there.fetch()
    assert read_json(there.experiment) == {"a": 1}
    assert [trial.trial_id for trial in there.begun_trials()] == ["t"]
    assert read_result(there.trial("t")) == read_result(here.trial("t"))


def test_a_trial_that_moves_finds_its_last_state(on_node):
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    here.fetch_all()
    here.acquire()
    write_text(here, here.last, "epoch 3")
    there.fetch_all()
    assert there.last.read_text() == "epoch 3"
    here.files.remove(here.last)
    there.fetch_all()
    assert not there.last.exists()


def test_an_older_writer_on_another_node_is_told_that_it_was_superseded(on_node):
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    older = here.acquire()
    here.check(older)
    newer = there.acquire()
    with pytest.raises(SupersededError):
        here.check(older)
    there.check(newer)


def test_a_write_that_an_older_writer_had_on_its_way_changes_nothing(on_node):
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    here.fetch_all()
    here.acquire()
    write_text(here, here.best, "epoch 1")
    there.fetch_all()
    there.acquire()
    write_text(there, there.best, "epoch 2")
    with pytest.raises(SupersededError):  # its check was before
        write_text(here, here.best, "late")
    there.fetch(there.best)
    assert there.best.read_text() == "epoch 2"


def test_the_newer_writer_goes_on_where_the_older_ones_write_came_between(on_node):
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    here.fetch_all()
    here.acquire()
    there.fetch_all()
    there.acquire()
    write_text(here, here.last, "late")
    write_text(there, there.last, "newer")
    here.fetch(here.last)
    assert here.last.read_text() == "newer"


@pytest.mark.parametrize("harm", ["slow", "reset", "half", "lost"])
@pytest.mark.parametrize("name", ["last.pt", "result.json"])
def test_a_write_that_is_disturbed_is_whole_in_the_end(on_node, proxy, monkeypatch, harm, name):
    monkeypatch.setattr(buckets, "PAUSE_S", (0.1, 1.0))
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    here.fetch_all()
    here.acquire()
    left = [harm] * 5
    proxy.harm = lambda method, path: left.pop() if left and method in WRITES else None
    write_text(here, here.root / name, "x" * 100_000)
    assert not left
    there.fetch_all()
    assert (there.root / name).read_text() == "x" * 100_000


@pytest.mark.parametrize("harm", ["half", "reset"])
def test_half_an_upload_is_never_taken_for_a_whole_one(on_node, proxy, monkeypatch, harm):
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    write_text(here, here.result, "old" * 1000)
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.5)
    proxy.harm = lambda method, path: harm if method in WRITES else None
    with pytest.raises(StoreError):
        write_text(here, here.result, "new" * 100_000)
    proxy.harm = lambda method, path: None
    there.fetch_all()
    assert here.result.read_text() == there.result.read_text() == "old" * 1000


def test_what_is_here_and_never_came_to_the_bucket_does_not_count(on_node):
    here = on_node("a")
    here.trial("t").root.mkdir(parents=True)
    here.trial("t").result.write_text("{}")
    here.fetch(owner=True)
    assert read_result(here.trial("t")) is None


def test_an_outage_of_some_seconds_loses_nothing(on_node, proxy, caplog):
    here, there = on_node("a").trial("t"), on_node("b").trial("t")
    proxy.outage(5.0)
    with caplog.at_level(logging.WARNING):
        write_text(here, here.metrics, "one line\n")
    assert proxy.harmed
    assert "trying again for up to" in caplog.text
    there.fetch_all()
    assert there.metrics.read_text() == "one line\n"


def test_an_outage_without_an_end_is_one_line(on_node, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE_S", 1.0)
    proxy.harm = lambda method, path: "slow"
    expected = rf"^{proxy.scheme}://b-\w+ has not answered for 1 s \({proxy.store.slow}\)"
    with pytest.raises(StoreError, match=expected) as found:
        on_node("a").fetch()
    assert "\n" not in str(found.value)


def test_ten_thousand_trials_are_one_paged_listing(proxy, tmp_path):
    runs = runs_at(f"{proxy.scheme}://{FULL}/runs", Cache(tmp_path))
    proxy.requests.clear()
    runs.run("r").fetch()
    assert (
        len(proxy.requests) == proxy.listings() == math.ceil(min(TRIALS, proxy.store.most) / proxy.store.page)
    )


def test_results_that_are_here_already_are_not_read_again(on_node, proxy):
    here, there = on_node("a"), on_node("b")
    for i in range(50):
        write_result(here.trial(f"t{i}"), TrialResult(trial_id=f"t{i}", status="complete"))
    there.fetch()
    proxy.requests.clear()
    there.fetch()
    assert len(proxy.requests) == proxy.listings() == 1


def test_the_newest_run_and_runs_by_name_are_found_in_the_bucket(on_node, bucket, proxy, tmp_path):
    runs = runs_at(f"{proxy.scheme}://{bucket}/runs", Cache(tmp_path / "x"))
    with pytest.raises(ConfigError, match=f"no run in {proxy.scheme}://{bucket}/runs"):
        runs.open(None)
    here = on_node("a")
    files.write_json(here.experiment, {}, here.files)
    assert runs.open(None).root.name == "r"
    copy = runs.run("a-backup")
    for name in (copy.experiment.name, copy.driven.name):
        write_json(copy.root / name, {"run": "r", "at": 1.0}, copy.files)
        write_json(runs.run("r").root / name, {"run": "r", "at": 1.0}, copy.files)
    assert runs.open(None).root.name == "r"
    with pytest.raises(ConfigError, match="choose one of: a-backup, r"):
        runs.open("q")


def test_sizes_are_known_without_reading(on_node):
    write_text(on_node("a").trial("t"), on_node("a").trial("t").best, "12345")
    there = on_node("b")
    assert there.files.size_of(there.trial("t").best) == 5
    assert there.files.size_of(there.trial("u").best) is None


@pytest.mark.parametrize(
    "key", ["runs/r/../../../spec.json", "runs/r//etc/spec.json", "runs/r/trials/./spec.json"]
)
@pytest.mark.parametrize("server", ["s3", "gs"], indirect=True)
def test_a_key_that_leads_out_of_the_run_is_named_and_not_followed(on_node, bucket, proxy, tmp_path, key):
    proxy.store.put(bucket, {key: b"{}"})
    assert proxy.store.keys(bucket) == [key]
    with pytest.raises(StoreError, match=f'has a key that is no path, "{key}": rename that object$'):
        on_node("a").fetch()
    assert not list(tmp_path.rglob("spec.json"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://me:hunter2@bucket/x", "without user, password"),
        ("s3://bucket/x?key=hunter2", "without user, password"),
        ("s3:///x", "'' is no name of a bucket"),
        ("gs://bucket-/x", "'bucket-' is no name of a bucket"),
        ("s3://bucket/../x", "'..'"),
        ("ftp://bucket/x", "unknown object store 'ftp://': .*az://, gs://, s3://"),
        ("gs://me:hunter2@bucket/x", "without user, password"),
        ("az://me:hunter2@bucket/x", "without user, password"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_and_its_password_not_repeated(tmp_path, url, expected):
    with pytest.raises(ConfigError, match=expected) as found:
        runs_at(url, Cache(tmp_path))
    assert "hunter2" not in str(found.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_run_in_a_bucket_is_shown_as_its_url_and_pickled_with_it(tmp_path, scheme):
    run = runs_at(f"{scheme}://bucket/a/s3:/b/", Cache(tmp_path)).run("r")
    assert run.files.address(run.root) == f"{scheme}://bucket/a/s3:/b/r"
    assert pickle.loads(pickle.dumps(run)) == run
    assert runs_at("a/b", Cache(tmp_path)) == Runs(Path("a/b"))


def test_a_path_with_a_colon_in_it_is_a_path(tmp_path):
    store = Runs(tmp_path / "s3:" / "bucket").run("r")
    files.write_json(store.experiment, {}, store.files)
    assert Runs(tmp_path / "s3:" / "bucket").open(None).root == store.root


def test_a_bucket_that_is_not_there_is_one_line(proxy, tmp_path):
    with pytest.raises(ConfigError, match=f"there is no bucket {proxy.scheme}://nobodys-own"):
        runs_at(f"{proxy.scheme}://nobodys-own/runs", Cache(tmp_path)).run("r").fetch()


def test_without_credentials_it_says_so(proxy, tmp_path, monkeypatch):
    for key, value in proxy.store.no_credentials(proxy.address).items():
        if value:
            monkeypatch.setenv(key, value)
        else:
            monkeypatch.delenv(key, raising=False)
    with pytest.raises(ConfigError, match=proxy.store.ways_in) as found:
        runs_at(f"{proxy.scheme}://bucket/runs", Cache(tmp_path)).run("r").fetch()
    assert "\n" not in str(found.value)


def test_the_studies_go_to_the_bucket_and_what_is_newer_here_is_kept(on_node):
    here, there = on_node("a"), on_node("b")
    here.root.mkdir(parents=True)
    here.journal.write_text("one\n")
    here.publish_journal()
    here.journal.write_text("one\ntwo\n")  # not sent any more
    there.fetch(owner=True)
    assert there.journal.read_text() == "one\n"
    here.fetch(owner=True)
    assert here.journal.read_text() == "one\ntwo\n"
    there.journal.write_text("one\nother\n")
    there.publish_journal()
    here.fetch(owner=True)
    assert here.journal.read_text() == "one\nother\n"


@pytest.mark.parametrize("harm", ["slow", "reset", "cut"])
def test_a_read_that_is_disturbed_is_whole_in_the_end(on_node, proxy, monkeypatch, harm):
    monkeypatch.setattr(buckets, "PAUSE_S", (0.1, 1.0))
    text = secrets.token_hex(500_000)
    write_text(on_node("a").trial("t"), on_node("a").trial("t").best, text)
    left = [harm] * 5
    proxy.harm = lambda method, path: left.pop() if left and method == "GET" and "best" in path else None
    there = on_node("b").trial("t")
    there.fetch(there.best)
    assert not left
    assert there.best.read_text() == text
