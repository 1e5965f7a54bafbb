"""The whole job with a real Ray, and the accidents that happen to it: kill -9 of a trial, then of the driver.

One story, told once a session; each test looks at one thing that must be true of it.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from imet_ray.storage.checked_read import read_json, read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.slow

SPACE = """
n_folds: 3
trials_per_variant: 2
asha: {grace_epochs: 2, factor: 2}
resources: {cpus_per_trial: 1}
base: {architecture: test_resnet, weights: none, image_size: 192, epochs: 4, batch_size: 8, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
PATIENCE = 400  # seconds for anything to happen
AGENTS_LAST = 120  # seconds: Ray's two agents try to reach their dead head for 60 s before they give up


@dataclass
class Story:
    """What was seen on the way."""

    store: RunDirectory
    killed_worker_of: dict[str, int]  # trials that ran when a worker was killed, and their epochs by then
    before: dict[str, dict]  # each trial when the driver was killed
    orphans: list[int]
    end: subprocess.CompletedProcess
    after: dict[str, dict]
    again: subprocess.CompletedProcess
    at_last: dict[str, dict]


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return found
        found.append(pid)
    return found


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ray_processes(driver: int) -> dict[int, str]:
    """Processes below a driver whose command line is Ray's."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "ray" in line and driver in ancestors(int(path.parent.name)):
            found[int(path.parent.name)] = line
    return found


def state(store: RunDirectory) -> dict[str, dict]:
    """Each trial: when its result was written, who wrote it, the seconds that its epochs took."""
    found = {}
    for trial in store.trials():
        if trial.spec.exists():
            found[trial.trial_id] = {
                "result": trial.result.stat().st_mtime_ns if trial.result.exists() else None,
                "oof": trial.oof.stat().st_mtime_ns if trial.oof.exists() else None,
                "test": trial.test.stat().st_mtime_ns if trial.test.exists() else None,
                "writer": trial.token.read_text() if trial.token.exists() else None,
                "seconds": [row["seconds"] for row in read_json_lines(trial.metrics)],
            }
    return found


def wait_for(condition, process, what):
    deadline = time.time() + PATIENCE
    while time.time() < deadline:
        found = condition()
        if found:
            return found
        if process.poll() is not None:
            raise AssertionError(f"the sweep ended before {what}: {process.communicate()}")
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {PATIENCE} s")


@pytest.fixture(scope="session")
def story(tiny_root, tiny_cache, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "space.yml").write_text(SPACE)
    command = [
        *(sys.executable, "launch.py", "--sweep", "--space", str(folder / "space.yml")),
        *("--data", str(tiny_root), "--runs", str(folder / "runs"), "--cache", str(tiny_cache.root)),
        *("--name", "story"),
    ]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
    how = {"env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    store = RunDirectory(folder / "runs" / "story")
    driver = subprocess.Popen(command, **how)
    family: dict[int, str] = {}
    try:

        def trains():
            now = state(store)
            return {k: len(v["seconds"]) for k, v in now.items() if v["result"] is None and v["seconds"]}

        running = wait_for(trains, driver, "trial that trains")
        family = ray_processes(driver.pid)
        workers = [pid for pid, line in family.items() if " fold 0 search " in line]  # their titles
        assert workers, family
        os.kill(workers[0], signal.SIGKILL)

        def some_done():
            now = state(store)
            half = [k for k, v in now.items() if v["result"] is None and v["seconds"]]
            return half and sum(v["result"] is not None for v in now.values()) >= 2

        wait_for(some_done, driver, "two results and a trial that trains")
        family = ray_processes(driver.pid)
    finally:
        driver.kill()
        driver.communicate()
        killed = time.time()
    before = state(store)
    end = subprocess.run(command, **how, timeout=PATIENCE, check=False)
    after = state(store)
    again = subprocess.run(command, **how, timeout=PATIENCE, check=False)
    at_last = state(store)
    while time.time() < killed + AGENTS_LAST and any(map(runs, family)):
        time.sleep(0.5)
    return Story(store, running, before, [pid for pid in family if runs(pid)], end, after, again, at_last)


def test_the_same_command_finishes_what_was_killed(story):
    assert story.end.returncode == 0, story.end.stdout
    assert story.store.ensemble("blend").submission.exists()


def test_no_finished_trial_is_trained_again(story):
    finished = {k: v for k, v in story.before.items() if v["result"] is not None}
    assert len(finished) >= 2
    for trial_id, was in finished.items():
        promoted = len(story.after[trial_id]["seconds"]) > len(was["seconds"])  # stopped early, then gone on
        if not promoted:
            assert story.after[trial_id]["result"] == was["result"]
            assert story.after[trial_id]["writer"] == was["writer"]
        assert story.after[trial_id]["seconds"][: len(was["seconds"])] == was["seconds"]


def test_a_killed_driver_costs_a_running_trial_at_most_one_epoch(story):
    running = {k: v for k, v in story.before.items() if v["result"] is None and v["seconds"]}
    assert running
    for trial_id, was in running.items():
        kept = story.after[trial_id]["seconds"][: len(was["seconds"])]
        assert kept == was["seconds"]  # measured seconds are a finger-print: these epochs ran once


def test_a_killed_worker_is_replaced_and_its_trial_goes_on(story):
    assert story.killed_worker_of
    for trial_id in story.killed_worker_of:
        result = read_result(story.store.trial(trial_id))
        assert result is not None
        assert result.status in ("complete", "stopped")


def test_a_killed_driver_leaves_no_process_behind(story):
    assert not story.orphans


def test_each_variant_is_trained_on_all_folds_with_one_set_of_hparams(story):
    complete = [trial for trial in story.store.trials() if read_result(trial).status == "complete"]
    for variant in ("none", "light"):
        specs = [read_spec(trial) for trial in complete]
        by_recipe: dict[str, set[int]] = {}
        for spec in specs:
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


def test_a_finished_sweep_trains_and_predicts_nothing_again(story):
    assert story.again.returncode == 0, story.again.stdout
    assert story.at_last == story.after


def test_the_end_is_a_leaderboard_a_verdict_and_the_next_command(story):
    for words in ("leaderboard", "overhead", "nested", "blend", "Next:", "dashboard http://127.0.0.1"):
        assert words in story.end.stdout


def test_the_report_is_one_self_contained_page(story):
    page = story.store.ensemble("blend").report.read_text()
    assert page.count("data:image/png;base64,") == 9
    assert page.count("data:image/jpeg;base64,") == 12 + 2 * 12  # test pictures, and both kinds of mistakes
    assert "http://" not in page
    assert "https://" not in page


def test_a_fault_of_the_set_up_stops_the_sweep_with_one_line(tiny_root, tiny_cache, tmp_path):
    space = tmp_path / "space.yml"
    space.write_text(SPACE.replace("weights: none", f"weights: {tmp_path}/missing.pth"))
    found = subprocess.run(
        [
            *(sys.executable, "launch.py", "--sweep", "--space", str(space), "--data", str(tiny_root)),
            *("--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert found.returncode == 1
    errors = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "missing.pth" in errors[0]
    assert "Traceback" not in found.stderr


def test_a_trial_that_another_writer_takes_over_is_trained_to_its_end(tiny_root, tiny_cache, tmp_path):
    """As a dead driver's last worker does, which begins after the next driver's."""
    space = tmp_path / "space.yml"
    space.write_text(
        SPACE.replace("asha: {grace_epochs: 2, factor: 2}\n", "").replace("[none, light]", "[none]")
    )
    command = [
        *(sys.executable, "launch.py", "--sweep", "--space", str(space), "--data", str(tiny_root)),
        *("--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root), "--name", "r"),
    ]
    store = RunDirectory(tmp_path / "runs" / "r")
    driver = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:

        def trains() -> list[str]:
            return [k for k, v in state(store).items() if v["writer"] and v["result"] is None]

        taken = store.trial(wait_for(trains, driver, "trial that trains")[0])
        token = taken.acquire()
        printed = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    assert driver.returncode == 0, printed
    assert taken.token.read_text() != token  # it was taken back
    assert {result.status for trial in store.trials() if (result := read_result(trial))} == {"complete"}
    assert len(store.trials()) == 4
