"""A sweep whose trials are trained by two workers each, on a real Ray: one is killed, a node is lost, another comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from processes import PATIENCE, runs, wait_for

from benchmarks.nodes import Cluster, cluster
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

SPACE = """
n_folds: 2
trials_per_variant: 1
resources: {cpus_per_trial: 1, workers_per_trial: 2}
base: {architecture: test_resnet, weights: none, image_size: 64, epochs: 10, batch_size: 4, lr: 0.003}
variants: [{name: pair}]
"""
# The sweep's command, whose teams look for more nodes each 3 s (it is 300). One worker alone is slow: the trial still
# trains when the next node is up.
IMPATIENT = """
import sys
import launch
from imet_ray.cluster import sweep

def slowly(config):
    import time
    import ray.train
    from imet_ray.cluster import ddp_trial
    report = ray.train.report
    def paced(metrics):
        time.sleep(1 if ray.train.get_context().get_world_size() == 2 else 4)
        report(metrics)
    ray.train.report = paced
    ddp_trial._train(config)

def train(config, data, slot):
    from imet_ray.cluster import ddp_trial
    ddp_trial.RESIZE_S, ddp_trial._train = 3.0, slowly
    ddp_trial.run_ddp_trial(config, data, slot)

sweep.train_in_group = train
raise SystemExit(launch.main(sys.argv[1:]))
"""
Rows = dict[str, list[dict]]  # each trial's metrics


@dataclass
class Story:
    store: RunDirectory
    before: dict[str, Rows]  # the metrics just before each accident
    end: tuple[int, str]  # exit code and what was printed
    left: list[str]  # processes of Ray's that trained when all was over


def sweep(
    folder: Path,
    space: str,
    data: Path,
    cache: Path,
    ray: Cluster | None = None,
    launch: tuple[str, ...] = ("launch.py",),
    studies: str | None = None,
) -> subprocess.Popen:
    (folder / "space.yml").write_text(space)
    command = [
        *(sys.executable, *launch, "--sweep", "--space", str(folder / "space.yml"), "--data", str(data)),
        *("--runs", str(folder / "runs"), "--cache", str(cache), "--name", "r"),
    ]
    command += ["--studies", studies] if studies else []
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
    if ray is not None:
        command += ["--address", ray.address]
        environment = ray.environment
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


@pytest.fixture(scope="module")
def story(ray, tiny_root, tiny_cache, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("team")
    store, before = RunDirectory(folder / "runs" / "r"), {}
    nodes = [ray.add(), ray.add()]
    for node in nodes:
        ray.until_up(node)
    driver = sweep(folder, SPACE, tiny_root, tiny_cache.root, ray, ("-c", IMPATIENT))

    def await_epoch_of(workers: int, after: Rows) -> Rows:
        """The metrics, when there is an epoch of so many workers that was not there."""

        def reached() -> Rows | None:
            rows = metrics(store)
            new = [row for trial, of in rows.items() for row in of[len(after.get(trial, [])) :]]
            return rows if any(row["workers"] == workers for row in new) else None

        return wait_for(reached, driver, f"epoch of {workers} workers")

    try:
        before["a worker is killed"] = await_epoch_of(2, {})
        workers = [p for node in nodes for p, title in node.family().items() if "RayTrainWorker" in title]
        assert len(workers) == 2
        os.kill(workers[-1], signal.SIGKILL)
        before["a node is lost"] = await_epoch_of(2, before["a worker is killed"])
        ray.lose(nodes[1])
        before["a node comes"] = await_epoch_of(1, before["a node is lost"])
        nodes[1] = ray.add()
        before["the end"] = await_epoch_of(2, before["a node comes"])
        family = {pid: title for node in nodes for pid, title in node.family().items()}
        printed = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    time.sleep(1)
    left = [title for pid, title in family.items() if "Train" in title and runs(pid)]
    return Story(store, before, (driver.returncode, printed), left)


def metrics(store: RunDirectory) -> Rows:
    return {trial.trial_id: read_json_lines(trial.metrics) for trial in store.trials()}


def test_each_fold_was_trained_to_the_end(story):
    code, printed = story.end
    assert code == 0, printed
    found = {read_spec(trial).fold: read_result(trial) for trial in story.store.trials()}
    assert found.keys() == {0, 1}
    assert all(result is not None and result.status == "complete" for result in found.values())
    assert {read_spec(trial).workers for trial in story.store.trials()} == {2}
    assert "2 workers" in printed
    assert "interrupted" in printed


def test_no_accident_costs_an_epoch_that_was_written(story):
    for before in story.before.values():
        for trial_id, rows in before.items():
            assert read_json_lines(story.store.trial(trial_id).metrics)[: len(rows)] == rows


def test_a_team_that_lost_a_node_goes_on_with_the_worker_that_is_left_until_another_comes(story):
    trials = metrics(story.store).values()
    for rows in trials:
        assert [row["epoch"] for row in rows] == [*range(1, 11)]
    sizes = [[size for size, _ in groupby(row["workers"] for row in rows)] for rows in trials]
    assert [2, 1, 2] in sizes


def test_no_worker_is_left_behind(story):
    assert not story.left


def test_a_fault_of_the_set_up_in_a_team_is_one_line(ray, story, tiny_root, tiny_cache, tmp_path):
    space = SPACE.replace("weights: none", f"weights: {tmp_path}/missing.pth")
    driver = sweep(tmp_path, space, tiny_root, tiny_cache.root, ray)
    printed = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 1
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, printed
    assert "missing.pth" in errors[0]
    assert "Traceback" not in printed
