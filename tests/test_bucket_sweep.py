"""A sweep whose run lies in a bucket: killed, then continued by a machine that has nothing of it.

One store speaks for all: what differs between them is in test_object_store.py and test_bucket_mirror.py.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from bucket_server import Proxy
from bucket_stores import S3Store

from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import runs_at

pytestmark = [pytest.mark.cluster, pytest.mark.parametrize("server", ["s3"], indirect=True)]

SPACE = """
n_folds: 3
trials_per_variant: 2
resources: {cpus_per_trial: 1}
base: {architecture: test_resnet, weights: none, image_size: 128, epochs: 4, batch_size: 8, lr: 0.003}
variants: [{name: a}]
search: {dropout: {low: 0.0, high: 0.5}}
"""
OUTAGE_S = 15  # of the store, while the second machine trains
BEFORE = 20  # writes until then
PATIENCE = 400  # seconds for anything to happen


@dataclass
class Story:
    """What was seen on the way."""

    url: str  # of the runs
    before: dict[str, list[float]]  # seconds of each epoch that was in the bucket at the kill, by trial
    complete: set[str]  # trials with a result by then
    end: subprocess.CompletedProcess
    store: RunDirectory  # as a third machine sees it
    status: subprocess.CompletedProcess
    blend: subprocess.CompletedProcess
    harmed: int
    outage: bool  # there was one
    keys: list[str]
    caches: list[Path]


def epochs(store: RunDirectory) -> dict[str, list[float]]:
    store.fetch()
    return {t.trial_id: [row["seconds"] for row in read_json_lines(t.metrics)] for t in store.begun_trials()}


@pytest.fixture(scope="module")
def story(server: Proxy, tiny_root, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "space.yml").write_text(SPACE)
    caches = [folder / name for name in ("first", "second", "third")]
    proxy, url = server, f"{server.scheme}://shared/iMet/runs"
    with pytest.MonkeyPatch.context() as patch:
        for key, value in proxy.environment.items():
            patch.setenv(key, value)
        proxy.store.create("shared")

        def command(program: str, *options: str, cache: Path) -> list[str]:
            return [sys.executable, program, *options, "--runs", url, "--name", "r", "--cache", str(cache)]

        what = ["--sweep", "--space", str(folder / "space.yml"), "--data", str(tiny_root)]
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
        how = {"env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        seen = runs_at(url, Cache(caches[2])).run("r")
        driver = subprocess.Popen(command("launch.py", *what, cache=caches[0]), **how)
        try:
            until = time.time() + PATIENCE
            while not (found := epochs(seen)) or sum(map(len, found.values())) < 6:
                assert driver.poll() is None, driver.communicate()
                assert time.time() < until
                time.sleep(0.5)
        finally:
            driver.kill()
            driver.communicate()
        before = epochs(seen)
        complete = {trial.trial_id for trial in seen.begun_trials() if read_result(trial) is not None}
        calls, writes, back = 0, 0, None

        def harm(method: str, path: str) -> str | None:
            """Every seventh request fails, one way or another; while it trains all do, for a while."""
            nonlocal calls, writes, back
            calls, writes = calls + 1, writes + (method in ("PUT", "POST"))
            if back is None and writes >= BEFORE:
                back = time.monotonic() + OUTAGE_S
            if back is not None and time.monotonic() < back:
                return "reset"
            return ("slow", "reset", "lost", "half")[calls // 7 % 4] if calls % 7 == 0 else None

        proxy.harm = harm

        def run(argv: list[str]) -> subprocess.CompletedProcess:
            return subprocess.run(argv, timeout=2 * PATIENCE, check=False, **how)

        end = run(command("launch.py", *what, cache=caches[1]))
        proxy.harm = lambda method, path: None
        epochs(seen)
        return Story(
            url=url,
            before=before,
            complete=complete,
            end=end,
            store=seen,
            status=run(command("launch.py", "--status", cache=caches[2])),
            blend=run(command("blend.py", "--method", "uniform", "--out", "again", cache=caches[2])),
            harmed=proxy.harmed,
            outage=back is not None,
            keys=proxy.store.keys("shared"),
            caches=caches,
        )


def test_another_machine_brings_the_sweep_to_its_end(story):
    assert story.end.returncode == 0, story.end.stdout
    assert "finished in" in story.end.stdout
    assert f"run     {story.url}/r" in story.end.stdout
    assert f"launch.py --tag PICTURES --with r/blend --runs {story.url}" in story.end.stdout
    assert story.harmed > 5
    assert story.outage


def test_no_epoch_that_was_in_the_bucket_is_trained_again(story):
    assert sum(map(len, story.before.values())) >= 6
    after = epochs_of(story.store)
    for trial_id, seconds in story.before.items():
        assert after[trial_id][: len(seconds)] == seconds


def epochs_of(store: RunDirectory) -> dict[str, list[float]]:
    """As they were fetched last: the server is gone."""
    return {t.trial_id: [row["seconds"] for row in read_json_lines(t.metrics)] for t in store.begun_trials()}


def test_all_trials_are_whole_in_the_bucket(story):
    results = [read_result(trial) for trial in story.store.begun_trials()]
    assert all(result is not None and result.status in ("complete", "stopped") for result in results)
    folds = [read_spec(trial).fold for trial in story.store.begun_trials()]
    assert {0, 1, 2} <= set(folds)


def test_a_third_machine_sees_how_far_it_is_and_blends_again(story):
    assert story.status.returncode == 0, story.status.stdout
    assert "blended: blend" in story.status.stdout
    assert story.blend.returncode == 0, story.blend.stdout
    assert "iMet/runs/r/ensembles/again/ensemble.json" in story.keys


def test_the_bucket_holds_the_artefacts_and_no_rubbish(story):
    names = {key.rpartition("/")[2] for key in story.keys}
    assert {
        "experiment.json",
        "folds.csv",
        "studies.journal",
        "best.safetensors",
        "oof.npz",
        "submission.csv",
    } <= names
    left = [key for key in story.keys if key.endswith(("last.pt", "driver.json", "driver.lock"))]
    assert not left
    assert not [key for key in story.keys if "tmp" in key or "/tune/" in key or key.endswith("version")]


def test_no_credentials_are_in_any_file_or_on_the_terminal(story):
    secret = S3Store.secret
    for said in (story.end, story.status, story.blend):
        assert secret not in said.stdout
    for cache in story.caches:
        for path in cache.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes()
