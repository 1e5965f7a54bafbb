"""The whole job with a real Ray, and the accidents that happen to it: a worker is killed, then the driver.

One story, told once; each test looks at one thing that must be true of it. A kill beside each single write:
test_every_write.py.
"""

import csv
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from processes import AGENTS_LAST, PATIENCE, ray_processes, runs, wait_for
from seen import Seen, look, refuse_lost_work, refuse_other_outcome

from imet_ray.storage.checked_read import read_json
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPACE = """
n_folds: 3
trials_per_variant: 2
resources: {cpus_per_trial: 1}
base: {architecture: test_resnet, weights: none, image_size: 128, epochs: 4, batch_size: 8, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
# Somebody who has the key to a sweep's Ray, and asks its API what the parts of the sweep are called.
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
HOW = {"text": True, "stdout": subprocess.PIPE}


@dataclass
class Names:
    """What was seen of the undisturbed sweep while it ran."""

    titles: list[str]  # of processes
    actors: list[str]  # what they are called
    jobs: list[dict[str, str]]  # their metadata
    tasks: list[str]  # names
    logs: str  # of all workers
    printed: str  # by the driver


@dataclass
class Story:
    """What was seen on the way."""

    store: RunDirectory
    alone: RunDirectory  # the undisturbed run
    killed_worker_of: list[str] = field(default_factory=list)  # trials that ran when a worker was killed
    seen: list[Seen] = field(default_factory=list)  # after each driver
    asked_to_end: tuple[int, str] = (0, "")  # exit code and what was printed
    end: subprocess.CompletedProcess | None = None
    orphans: list[str] = field(default_factory=list)
    names: Names | None = None


class Driver:
    """The command, again and again."""

    def __init__(self, folder: Path, data: Path, cache: Path) -> None:
        (folder / "space.yml").write_text(SPACE)
        self.store, self.alone = (RunDirectory(folder / name / "story") for name in ("runs", "alone"))
        self.family: dict[int, str] = {}  # processes that it must not leave behind
        self.environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.argv = [
            *(sys.executable, "launch.py", "--sweep", "--space", str(folder / "space.yml")),
            *("--data", str(data), "--cache", str(cache), "--name", "story"),
        ]

    def start(self, store: RunDirectory | None = None) -> subprocess.Popen:
        argv = [*self.argv, "--runs", str((store or self.store).root.parent)]
        return subprocess.Popen(argv, env=self.environment, stderr=subprocess.STDOUT, **HOW)

    def run(self) -> subprocess.CompletedProcess:
        """To its end."""
        driver = self.start()
        try:
            printed = driver.communicate(timeout=PATIENCE)[0]
        finally:
            driver.kill()
        return subprocess.CompletedProcess(driver.args, driver.returncode, printed)

    def begun(self, epochs: int | None = None) -> list[str]:
        """Trials that have had an epoch, or just so many, and have no result."""
        now = look(self.store)
        training = {trial: len(rows) for trial, rows in now.seconds.items() if trial not in now.results}
        return [trial for trial, n in training.items() if (n == epochs if epochs else n)]


@pytest.fixture(scope="module")
def story(tiny_root, tiny_cache, tmp_path_factory) -> Story:
    driver = Driver(tmp_path_factory.mktemp("sweep"), tiny_root, tiny_cache.root)
    told = Story(driver.store, driver.alone)
    kill_a_worker_then_the_driver(driver, told)
    told.seen.append(look(told.store))
    ask_to_end(driver, told)
    told.seen.append(look(told.store))
    killed = time.monotonic()
    told.end = driver.run()
    told.seen.append(look(told.store))
    told.names = observe(driver)
    while time.monotonic() < killed + AGENTS_LAST and any(map(runs, driver.family)):
        time.sleep(0.5)
    told.orphans = [title for pid, title in driver.family.items() if runs(pid)]
    return told


def kill_a_worker_then_the_driver(driver: Driver, told: Story) -> None:
    """kill -9 of both, each while trials are trained."""
    process = driver.start()
    try:
        told.killed_worker_of = wait_for(driver.begun, process, "trial that trains")
        # a worker has no title between two epochs
        worker = next(iter(wait_for(lambda: training(process), process, "worker that trains")))
        os.kill(worker, signal.SIGKILL)
        wait_for(
            lambda: driver.begun(epochs=1) and len(look(told.store).results) >= 2,
            process,
            "two results and a trial that has just begun",
        )
        driver.family |= ray_processes(process.pid)
    finally:
        process.kill()
        process.communicate()


def ask_to_end(driver: Driver, told: Story) -> None:
    """SIGTERM after an epoch more, as schedulers of clusters send it."""
    process = driver.start()
    try:
        # a worker that outlives the killed driver may write an epoch more
        wait_for(lambda: training(process), process, "worker that trains")
        before = sum(map(len, look(told.store).seconds.values()))
        wait_for(lambda: sum(map(len, look(told.store).seconds.values())) > before, process, "epoch more")
        driver.family |= ray_processes(process.pid)
        process.terminate()
        printed = process.communicate(timeout=PATIENCE)[0]
    finally:
        process.kill()
    told.asked_to_end = process.returncode, printed


def training(process: subprocess.Popen) -> dict[int, str]:
    """The workers that train, and their titles."""
    return {pid: title for pid, title in ray_processes(process.pid).items() if " fold " in title}


def observe(driver: Driver) -> Names:
    """The undisturbed run, and what Ray's pages and `ps` call its parts while it goes on."""
    process = driver.start(driver.alone)

    def found(pattern: str) -> str:
        """In the command lines of Ray's processes."""
        lines = ray_processes(process.pid).values()
        return next(match[1] for line in lines if (match := re.search(pattern, line)))

    try:
        seen = wait_for(lambda: training(process), process, "worker with a title")
        logs = Path(found(r"(/\S*/session_[\w-]+)")) / "logs"
        observer = [sys.executable, "-c", OBSERVER, found(r"--gcs-address=(\S+)")]
        named = subprocess.run(observer, env=driver.environment, timeout=PATIENCE, check=True, **HOW).stdout
        printed = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, printed
    finally:
        process.kill()
        process.communicate()
    told = "".join(file.read_text() for file in logs.glob("worker-*.out"))
    return Names(list(seen.values()), logs=told, printed=printed, **json.loads(named))


def test_the_same_command_finishes_what_was_killed(story):
    assert story.end.returncode == 0, story.end.stdout
    assert story.store.ensemble("blend").submission.exists()


def test_no_epoch_that_was_written_and_no_finished_trial_is_trained_again(story):
    assert len(story.seen[0].results) >= 2
    assert story.seen[0].seconds.keys() - story.seen[0].results.keys()  # trials that were being trained
    for before, after in zip(story.seen, story.seen[1:], strict=False):
        refuse_lost_work(before, after)


def test_all_is_that_of_an_undisturbed_run_to_the_last_bit(story):
    refuse_other_outcome(story.store, story.alone)


def test_a_killed_worker_is_replaced_and_its_trial_goes_on(story):
    assert story.killed_worker_of
    for trial_id in story.killed_worker_of:
        assert read_result(story.store.trial(trial_id)).status == "complete"


def test_no_process_is_left_behind(story):
    assert not story.orphans


def test_a_sweep_that_is_asked_to_end_does_so_in_one_line(story):
    code, printed = story.asked_to_end
    assert code == 130, printed
    assert printed.splitlines()[-1] == "interrupted: the same command continues"
    assert "SIGTERM" not in printed
    assert "Traceback" not in printed


def test_each_variant_is_trained_on_all_folds_with_one_set_of_hparams(story):
    for variant in ("none", "light"):
        by_recipe: dict[str, set[int]] = {}
        for spec in map(read_spec, story.store.trials()):
            if spec.variant.name == variant:
                by_recipe.setdefault(spec.recipe.model_dump_json(), set()).add(spec.fold)
        assert {0, 1, 2} in by_recipe.values()


def test_each_training_picture_is_predicted_once_a_variant(story, tiny_catalog):
    ensemble = read_json(story.store.ensemble("blend").ensemble)
    for member in ensemble["members"]:
        ids = np.concatenate([np.load(story.store.trial(t).oof)["ids"] for t in member["trials"]])
        assert sorted(ids.tolist()) == sorted(tiny_catalog.train.ids)


def test_the_submission_has_the_samples_rows_and_a_label_each(story, tiny_root):
    with story.store.ensemble("blend").submission.open() as file:
        rows = list(csv.reader(file))
    with (tiny_root / "sample_submission.csv").open() as file:
        sample = list(csv.reader(file))
    assert rows[0] == sample[0]
    assert [row[0] for row in rows] == [row[0] for row in sample]
    assert all(row[1] for row in rows)


def test_the_end_is_a_leaderboard_a_verdict_and_the_next_command(story):
    for words in ("leaderboard", "overhead", "nested", "blend", "Next:", "dashboard http://127.0.0.1"):
        assert words in story.names.printed


def test_the_report_is_one_self_contained_page(story):
    page = story.store.ensemble("blend").report.read_text()
    assert page.count("data:image/svg+xml;base64,") == 9
    assert page.count("data:image/jpeg;base64,") == 12 + 2 * 12  # test pictures, and both kinds of mistakes
    assert "http://" not in page
    assert "https://" not in page


def test_a_process_is_called_by_its_variant_fold_phase_and_trial(story):
    known = {trial.trial_id: read_spec(trial) for trial in story.alone.trials()}
    for title in story.names.titles:
        variant, _, fold, phase, trial_id = title.strip().removeprefix("ray::").split()[:5]
        assert (variant, int(fold)) == (known[trial_id].variant.name, known[trial_id].fold)
        assert phase in ("search", "promote")


def test_the_actors_are_called_by_the_run(story):
    assert {"trials of story", "metrics of story"} <= set(story.names.actors)


def test_the_workers_logs_tell_each_trial(story):
    specs = [read_spec(trial) for trial in story.alone.trials()]
    assert len(specs) == 2 * (2 + 2)
    for spec in specs:
        phase = "promote" if spec.fold else "search"
        assert f"{spec.variant.name} fold {spec.fold} {phase} {spec.trial_id}: " in story.names.logs


def test_an_epoch_of_tune_is_a_task_that_is_called_by_the_run(story):
    assert "trials of story.train" in story.names.tasks


def test_an_out_of_fold_task_is_called_by_its_variant_and_fold(story):
    titles = {f"out-of-fold {read_spec(trial).title}" for trial in story.alone.trials()}
    asked = {name for name in story.names.tasks if name.startswith("out-of-fold")}
    assert asked
    assert asked <= titles


def test_the_job_says_which_run_it_is(story):
    assert [job["job_name"] for job in story.names.jobs] == ["story"]
