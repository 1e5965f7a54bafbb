"""kill -9 of a sweep's driver at 20 random moments, from its first second to its last; then its end."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_sweep import AGENTS_LAST, PATIENCE, ray_processes, runs

from imet_ray.storage.checked_read import read_arrays, read_json, read_json_lines
from imet_ray.storage.results import TrialResult, read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPACE = """
n_folds: 3
trials_per_variant: 2
resources: {cpus_per_trial: 1}
base: {architecture: test_resnet, weights: none, image_size: 128, epochs: 6, batch_size: 8, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
# Kills are spread over what a sweep goes through: four after each of these, up to so many seconds later.
STAGES = {"start": 8.0, "epoch": 3.0, "result": 3.0, "oof": 1.0, "ensemble": 4.0}
MOMENTS = 20


@dataclass
class Seen:
    """A run directory after a kill: every file that is there was read."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each epoch of a trial: a finger-print
    results: dict[str, TrialResult] = field(default_factory=dict)
    arrays: dict[str, int] = field(default_factory=dict)  # when each prediction was written: nanoseconds


@dataclass
class Story:
    store: RunDirectory
    alone: RunDirectory  # the undisturbed run
    seen: list[Seen]
    kills: list[str]  # how far the sweep had come at each
    end: subprocess.CompletedProcess
    orphans: list[str]


def look(store: RunDirectory) -> Seen:
    found = Seen()
    for trial in store.trials():
        if trial.spec.exists():
            read_spec(trial)
            found.seconds[trial.trial_id] = [row["seconds"] for row in read_json_lines(trial.metrics)]
        if (result := read_result(trial)) is not None:
            found.results[trial.trial_id] = result
        for path in (trial.oof, trial.test):
            if path.exists():
                assert read_arrays(path)
                found.arrays[str(path)] = path.stat().st_mtime_ns
    place = store.ensemble("blend")
    if place.ensemble.exists():
        assert read_json(place.ensemble)["members"]
    return found


def reached(store: RunDirectory, stage: str, before: Seen) -> bool:
    """True if there is more of it than before, or the sweep is past it."""
    now = look(store)
    if stage == "epoch":
        more = sum(map(len, now.seconds.values())) > sum(map(len, before.seconds.values()))
        return more or bool(now.arrays)
    if stage == "result":
        return len(now.results) > len(before.results) or bool(now.arrays)
    blended = store.ensemble("blend").ensemble.exists()
    return stage == "start" or blended or (stage == "oof" and len(now.arrays) > len(before.arrays))


def come_to(store: RunDirectory, seen: Seen) -> str:
    """The last of the stages of which there is something."""
    if store.ensemble("blend").ensemble.exists():
        return "ensemble"
    there = {"oof": seen.arrays, "result": seen.results, "epoch": any(seen.seconds.values())}
    return next((stage for stage, found in there.items() if found), "start")


@pytest.fixture(scope="module")
def story(tiny_root, tiny_cache, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("moments")
    (folder / "space.yml").write_text(SPACE)
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
    how = {"env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def command(runs: str) -> list[str]:
        return [
            *(sys.executable, "launch.py", "--sweep", "--space", str(folder / "space.yml"), "--name", "r"),
            *("--data", str(tiny_root), "--runs", str(folder / runs), "--cache", str(tiny_cache.root)),
        ]

    store, rng = RunDirectory(folder / "runs" / "r"), np.random.default_rng(0)
    seen, families, kills, over = [Seen()], {}, [], False
    while len(kills) < MOMENTS:
        # a sweep that came to its end is still killed while it looks for what is left
        stage = "start" if over else [*STAGES][len(kills) * len(STAGES) // MOMENTS]
        driver = subprocess.Popen(command("runs"), **how)
        try:
            until = time.monotonic() + PATIENCE
            while not reached(store, stage, seen[-1]) and driver.poll() is None:
                assert time.monotonic() < until, stage
                time.sleep(0.1)
            time.sleep(float(rng.uniform(0, STAGES[stage])))
            families |= ray_processes(driver.pid)
            code = driver.poll()
        finally:
            driver.kill()
            printed = driver.communicate()[0]
        seen.append(look(store))
        if code is None:
            kills.append(come_to(store, seen[-1]))
        else:
            assert code == 0, printed
            over = True
    killed = time.monotonic()
    end = subprocess.run(command("runs"), **how, timeout=PATIENCE, check=False)
    seen.append(look(store))
    alone = subprocess.run(command("alone"), **how, timeout=PATIENCE, check=False)
    assert alone.returncode == 0, alone.stdout
    while time.monotonic() < killed + AGENTS_LAST and any(map(runs, families)):
        time.sleep(0.5)
    orphans = [title for pid, title in families.items() if runs(pid)]
    return Story(store, RunDirectory(folder / "alone" / "r"), seen, kills, end, orphans)


def test_the_same_command_comes_to_the_end_after_twenty_kills(story):
    assert {*story.kills} == {*STAGES}
    assert story.end.returncode == 0, story.end.stdout


def test_no_epoch_that_was_written_is_trained_again(story):
    assert any(any(seen.seconds.values()) for seen in story.seen[1:-1])
    for before, after in zip(story.seen, story.seen[1:], strict=False):
        for trial_id, seconds in before.seconds.items():
            assert after.seconds[trial_id][: len(seconds)] == seconds


def test_no_finished_trial_and_no_prediction_is_made_again(story):
    for before, after in zip(story.seen, story.seen[1:], strict=False):
        assert before.results.items() <= after.results.items()
        assert before.arrays.items() <= after.arrays.items()


def test_all_trials_are_those_of_an_undisturbed_run_to_the_last_bit(story):
    trials = {trial.trial_id: trial for trial in story.alone.trials()}
    assert story.seen[-1].results.keys() == trials.keys()
    for trial_id, trial in trials.items():
        ours, theirs = load_file(story.store.trial(trial_id).best), load_file(trial.best)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_submission_is_that_of_an_undisturbed_run(story):
    ours, theirs = (store.ensemble("blend").submission for store in (story.store, story.alone))
    assert ours.read_bytes() == theirs.read_bytes()


def test_no_process_is_left_behind(story):
    assert not story.orphans


def test_a_killed_writes_leftovers_are_few_and_hidden(story):
    left = [path for path in Path(story.store.root).rglob("*.tmp")]
    assert len(left) <= MOMENTS
    assert all(path.name.startswith(".") for path in left)


def test_a_sweep_that_is_asked_to_end_does_so_in_one_line(tiny_root, tiny_cache, tmp_path):
    (tmp_path / "space.yml").write_text(SPACE)
    driver = subprocess.Popen(
        [
            *(sys.executable, "launch.py", "--sweep", "--space", str(tmp_path / "space.yml"), "--name", "r"),
            *("--data", str(tiny_root), "--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root)),
        ],
        env=os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    store, until = RunDirectory(tmp_path / "runs" / "r"), time.monotonic() + PATIENCE
    try:
        while not reached(store, "epoch", Seen()):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < until
            time.sleep(0.1)
        driver.terminate()
        printed = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    assert driver.returncode == 130
    assert printed.splitlines()[-1] == "interrupted: the same command continues"
    assert "SIGTERM" not in printed
    assert "Traceback" not in printed
