"""What Ray's pages, and `ps`, call the parts of a sweep: asked of Ray's own API while one runs."""

import json
import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_sweep import PATIENCE, ray_processes, wait_for

from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.slow

SPACE = """
n_folds: 2
trials_per_variant: 1
resources: {cpus_per_trial: 1}
base: {architecture: test_resnet, weights: none, image_size: 192, epochs: 6, batch_size: 4, lr: 0.003}
variants: [{name: bright}, {name: dim, augmentation: none}]
"""


OBSERVER = """
import json, sys, time
from ray.util.state import list_actors, list_jobs, list_tasks
address = sys.argv[1]
actors = list_actors(address, detail=True)
jobs = [job.metadata for job in list_jobs(address, detail=True)]
tasks = []
while not any(name.startswith("out-of-fold") for name in tasks):
    time.sleep(0.2)
    tasks = [task.name for task in list_tasks(address, limit=10_000)]
print(json.dumps({"actors": [actor.repr_name for actor in actors], "jobs": jobs, "tasks": tasks}))
"""


@dataclass
class Story:
    """What was seen of one sweep, by somebody who has the key to its Ray."""

    store: RunDirectory
    titles: list[str]  # of processes
    actors: list[str]  # what they are called
    jobs: list[dict[str, str]]  # their metadata
    tasks: list[str]  # names
    logs: str  # of all workers


def gcs(driver: int) -> str:
    """The address of the Ray that a driver started, from its processes' command lines."""
    return next(
        filter(None, (re.search(r"--gcs-address=(\S+)", line) for line in ray_processes(driver).values()))
    )[1]


def session(driver: int) -> Path:
    """Its folder."""
    return Path(
        next(
            filter(None, (re.search(r"/\S*/session_[\w-]+", line) for line in ray_processes(driver).values()))
        )[0]
    )


@pytest.fixture(scope="module")
def story(tiny_root, tiny_cache, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("names")
    (folder / "space.yml").write_text(SPACE)
    command = [
        *(sys.executable, "launch.py", "--sweep", "--space", str(folder / "space.yml")),
        *("--data", str(tiny_root), "--runs", str(folder / "runs"), "--cache", str(tiny_cache.root)),
        *("--name", "names"),
    ]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    how = {"env": environment, "text": True, "stdout": subprocess.PIPE}
    driver = subprocess.Popen(command, **how, stderr=subprocess.STDOUT)

    def titles() -> list[str]:
        return [line for line in ray_processes(driver.pid).values() if " fold " in line]

    try:
        seen = wait_for(titles, driver, "worker with a title")
        observer = [sys.executable, "-c", OBSERVER, gcs(driver.pid)]
        logs = session(driver.pid) / "logs"
        found = json.loads(subprocess.run(observer, **how, timeout=PATIENCE, check=True).stdout)
        printed = driver.communicate(timeout=PATIENCE)[0]
        assert driver.returncode == 0, printed
    finally:
        driver.kill()
        driver.communicate()
    told = "".join(file.read_text() for file in logs.glob("worker-*.out"))
    return Story(RunDirectory(folder / "runs" / "names"), seen, logs=told, **found)


def test_a_process_is_called_by_its_variant_fold_phase_and_trial(story):
    known = {trial.trial_id: read_spec(trial) for trial in story.store.trials()}
    for title in story.titles:
        variant, _, fold, phase, trial_id = title.strip().removeprefix("ray::").split()[:5]
        assert (variant, int(fold)) == (known[trial_id].variant.name, known[trial_id].fold)
        assert phase in ("search", "promote")


def test_the_actors_are_called_by_the_run(story):
    assert {"trials of names", "metrics of names"} <= set(story.actors)


def test_the_workers_logs_tell_each_trial(story):
    specs = [read_spec(trial) for trial in story.store.trials()]
    assert len(specs) == 4
    for spec in specs:
        phase = "promote" if spec.fold else "search"
        assert f"{spec.variant.name} fold {spec.fold} {phase} {spec.trial_id}: " in story.logs


def test_an_epoch_of_tune_is_a_task_that_is_called_by_the_run(story):
    assert "trials of names.train" in story.tasks


def test_an_out_of_fold_task_is_called_by_its_variant_and_fold(story):
    titles = {f"out-of-fold {read_spec(trial).title}" for trial in story.store.trials()}
    asked = {name for name in story.tasks if name.startswith("out-of-fold")}
    assert asked
    assert asked <= titles


def test_the_job_says_which_run_it_is(story):
    assert [job["job_name"] for job in story.jobs] == ["names"]
