"""A sweep on a cluster to which all happens that happens to clusters: then its trials are those of an undisturbed one.

One story on real Ray processes. `benchmarks.chaos` does the same at random, for as long as one likes.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import runs
from safetensors.torch import load_file

from benchmarks.faults import FAULTS
from benchmarks.nodes import Cluster, below, cluster
from imet_ray.storage.checked_read import read_arrays, read_json_lines
from imet_ray.storage.results import TrialResult, read_result, read_spec, standings
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

SPACE = """
n_folds: 3
trials_per_variant: 2
resources: {cpus_per_trial: 1, loader_workers: 1}
base: {architecture: test_resnet, weights: none, image_size: 128, epochs: 8, batch_size: 8, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
PATIENCE = 400  # seconds for anything to happen
GIB = 1 << 30
ROOM = 3 * GIB  # that a node may take before Ray's monitor acts
HOG = f"import time; taken = b'x' * {GIB}; time.sleep({PATIENCE})"
EPOCHS_BETWEEN = 2  # two faults


@dataclass
class Seen:
    """A run directory, as it was just before a fault, or at the end."""

    seconds: dict[str, list[float]]  # that each epoch of a trial took: measured, so a finger-print
    results: dict[str, TrialResult]


@dataclass
class Story:
    store: RunDirectory
    done: dict[str, str] = field(default_factory=dict)  # what each fault did
    before: dict[str, Seen] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)  # by each sitting
    codes: list[int] = field(default_factory=list)
    took_s: float = 0.0  # from the head's death to the driver's end
    orphans: list[str] = field(default_factory=list)
    end: Seen | None = None
    alone: RunDirectory | None = None  # the undisturbed run


class Sweep:
    """The command, again and again."""

    def __init__(self, folder: Path, data: Path, cache: Path) -> None:
        (folder / "space.yml").write_text(SPACE)
        self.folder, self.store = folder, RunDirectory(folder / "runs" / "r")
        self.argv = [
            *(
                sys.executable,
                "launch.py",
                "--sweep",
                "--space",
                str(folder / "space.yml"),
                "--data",
                str(data),
            ),
            *("--cache", str(cache), "--name", "r"),
        ]
        self.out = folder / "out"

    def start(self, ray: Cluster) -> subprocess.Popen[bytes]:
        argv = [*self.argv, "--runs", str(self.folder / "runs"), "--address", ray.address]
        with self.out.open("wb") as out:
            return subprocess.Popen(argv, env=ray.environment, stdout=out, stderr=subprocess.STDOUT)

    def alone(self, ray: Cluster) -> RunDirectory:
        """An undisturbed run on a Ray of its own."""
        argv = [*self.argv, "--runs", str(self.folder / "alone")]
        subprocess.run(argv, env=ray.environment, check=True, timeout=PATIENCE, capture_output=True)
        return RunDirectory(self.folder / "alone" / "r")

    def seen(self) -> Seen:
        trials = [trial for trial in self.store.trials() if trial.spec.exists()]
        rows = {trial.trial_id: read_json_lines(trial.metrics) for trial in trials}
        results = {trial.trial_id: read_result(trial) for trial in trials}
        return Seen(
            {trial_id: [row["seconds"] for row in of] for trial_id, of in rows.items()},
            {trial_id: result for trial_id, result in results.items() if result is not None},
        )

    def wait(self, driver: subprocess.Popen[bytes], epochs: int, results: int = 0) -> Seen:
        """Until so many more epochs are trained, and so many trials are finished."""
        until, least = time.monotonic() + PATIENCE, sum(map(len, self.seen().seconds.values())) + epochs
        while sum(map(len, (seen := self.seen()).seconds.values())) < least or len(seen.results) < results:
            assert driver.poll() is None, self.out.read_text()
            assert time.monotonic() < until, self.out.read_text()
            time.sleep(0.2)
        return seen


@pytest.fixture(scope="module")
def story(tiny_root, tiny_cache, tmp_path_factory) -> Iterator[Story]:
    if memory()[1] < 8 * GIB:
        pytest.skip("needs 8 GB of free memory")
    sweep = Sweep(tmp_path_factory.mktemp("faults"), tiny_root, tiny_cache.root)
    told, rng = Story(sweep.store), np.random.default_rng(0)
    with cluster() as ray:
        for _ in range(2):
            ray.add()
        driver = sweep.start(ray)
        try:
            for name, fault in FAULTS.items():
                told.before[name] = sweep.wait(driver, EPOCHS_BETWEEN)
                told.done[name] = fault(ray, rng).what
            told.before["memory"] = sweep.wait(driver, EPOCHS_BETWEEN)
            use_up_memory(ray, driver, sweep.out)
            told.before["head"] = sweep.wait(driver, EPOCHS_BETWEEN, results=1)
            family = below(driver.pid)
            assert ray.head is not None
            ray.head.kill()
            killed = time.monotonic()
            told.codes.append(driver.wait(PATIENCE))
            told.took_s = time.monotonic() - killed
            told.printed.append(sweep.out.read_text())
            told.orphans = [title for pid, title in family.items() if runs(pid)]
            for node in list(ray.nodes.values()):
                ray.lose(node)
            ray.begin()
            for _ in range(2):
                ray.add()
            driver = sweep.start(ray)
            told.codes.append(driver.wait(PATIENCE))
            told.printed.append(sweep.out.read_text())
        finally:
            driver.kill()
            driver.wait()
        told.end = sweep.seen()
        told.alone = sweep.alone(ray)
        yield told


def memory() -> tuple[int, int]:
    """Bytes of this machine, and those that are free."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))


def use_up_memory(ray: Cluster, driver: subprocess.Popen[bytes], out: Path) -> None:
    """Take memory until the monitor of a node that is careful has ended a worker; then another takes its place."""
    total, free = memory()
    ray.lose(next(iter(ray.nodes.values())))
    careful = ray.add(environment={"RAY_memory_usage_threshold": f"{(total - free + ROOM) / total:.4f}"})
    until = time.monotonic() + PATIENCE
    while not careful.workers():
        assert time.monotonic() < until
        time.sleep(0.2)
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        while "out of memory" not in out.read_text():
            assert driver.poll() is None, out.read_text()
            assert time.monotonic() < until, out.read_text()
            if memory()[1] > 3 * GIB:  # tests beside this one may give memory back
                hogs.append(subprocess.Popen([sys.executable, "-c", HOG]))
            time.sleep(1)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    ray.lose(careful)  # what else runs on this machine may take as much again
    ray.add()


def test_the_sweep_comes_to_its_end_though_the_head_was_lost(story):
    assert story.codes == [1, 0], story.printed
    assert story.store.ensemble("blend").submission.exists()


@pytest.mark.parametrize("fault", [*FAULTS, "memory", "head"])
def test_no_epoch_that_was_trained_before_a_fault_is_trained_again(story, fault):
    for trial_id, seconds in story.before[fault].seconds.items():
        assert story.end.seconds[trial_id][: len(seconds)] == seconds


@pytest.mark.parametrize("fault", [*FAULTS, "memory", "head"])
def test_no_trial_that_was_finished_before_a_fault_is_touched_again(story, fault):
    assert story.before["head"].results
    for trial_id, result in story.before[fault].results.items():
        assert story.end.results[trial_id] == result


def test_all_trials_are_those_of_an_undisturbed_run_to_the_last_bit(story):
    alone = {trial.trial_id: read_result(trial) for trial in story.alone.trials()}
    assert story.end.results.keys() == alone.keys()
    for trial_id, result in story.end.results.items():
        assert (result.status, result.score, result.epoch) == (
            "complete",
            alone[trial_id].score,
            alone[trial_id].epoch,
        )
        ours, theirs = (load_file(store.trial(trial_id).best) for store in (story.store, story.alone))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_leaderboard_is_that_of_an_undisturbed_run(story):
    names = sorted({read_spec(trial).variant.name for trial in story.store.trials()})
    found = [(s.variant, s.hparams, s.score) for s in standings(story.store, names)]
    assert len(found) == 2
    assert found == [(s.variant, s.hparams, s.score) for s in standings(story.alone, names)]


@pytest.mark.parametrize(
    "cause",
    ["its worker on", "out of memory: Ray ended its worker"],
)
def test_one_line_says_what_befell_a_trial(story, cause):
    lines = [line for line in story.printed[0].splitlines() if cause in line]
    assert lines, story.printed[0]
    assert all("interrupted" in line and "another goes on" in line for line in lines)


def test_nothing_is_told_in_rays_own_words(story):
    for printed in story.printed:
        assert "Traceback" not in printed
        assert "Raylet is terminated" not in printed
        assert "was killed while executing" not in printed


def test_a_lost_head_is_one_line_within_a_minute(story):
    errors = [line for line in story.printed[0].splitlines() if line.startswith("error:")]
    assert len(errors) == 1, story.printed[0]
    assert "the head of the cluster" in errors[0]
    assert "the same command continues" in errors[0]
    assert story.took_s < 60


def test_neither_a_raylet_nor_the_driver_leaves_workers_behind(story):
    assert "; 0 workers outlived it" in story.done["raylet"]
    assert not story.orphans


def test_every_file_that_is_there_is_whole(story):
    held_out = [trial.oof for trial in story.store.trials() if trial.oof.exists()]
    assert len(held_out) == 6  # two variants on three folds
    assert sum(len(read_arrays(path)["probs"]) for path in held_out) == 2 * 90
