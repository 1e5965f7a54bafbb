"""A sweep whose trials are trained by two workers each, on a real Ray; one of the workers is killed on the way."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import PATIENCE, ray_processes, wait_for

from benchmarks.nodes import Cluster, cluster
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SPACE = """
n_folds: 2
trials_per_variant: 1
resources: {cpus_per_trial: 1, workers_per_trial: 2}
base: {architecture: test_resnet, weights: none, image_size: 256, epochs: 4, batch_size: 4, lr: 0.003}
variants: [{name: pair}]
"""


@dataclass
class Story:
    store: RunDirectory
    killed: str  # the trial whose worker was killed
    before: list[dict]  # its metrics then
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
def story(tiny_root, tiny_cache, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("team")
    driver = sweep(folder, SPACE, tiny_root, tiny_cache.root)
    store = RunDirectory(folder / "runs" / "r")
    try:

        def trains() -> tuple[str, list[dict]] | None:
            for trial in store.trials():
                rows = read_json_lines(trial.metrics)
                if rows and not trial.result.exists():
                    return trial.trial_id, rows
            return None

        killed, before = wait_for(trains, driver, "trial that trains")
        workers = [p for p, line in ray_processes(driver.pid).items() if "RayTrainWorker" in line]
        assert len(workers) == 2
        os.kill(workers[-1], signal.SIGKILL)
        family = ray_processes(driver.pid)
        printed = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    time.sleep(1)
    left = [line for pid, line in family.items() if "Train" in line and Path(f"/proc/{pid}/exe").exists()]
    return Story(store, killed, before, (driver.returncode, printed), left)


def test_each_fold_was_trained_by_two_workers_to_the_end(story):
    code, printed = story.end
    assert code == 0, printed
    found = {read_spec(trial).fold: read_result(trial) for trial in story.store.trials()}
    assert found.keys() == {0, 1}
    assert all(result is not None and result.status == "complete" for result in found.values())
    assert {read_spec(trial).workers for trial in story.store.trials()} == {2}
    assert "2 workers" in printed


def test_a_killed_worker_costs_its_team_at_most_one_epoch(story):
    kept = read_json_lines(story.store.trial(story.killed).metrics)
    assert len(kept) == 4
    assert [row["seconds"] for row in kept[: len(story.before)]] == [row["seconds"] for row in story.before]


def test_no_worker_is_left_behind(story):
    assert not story.left


def test_a_team_whose_node_is_lost_for_good_goes_on_with_the_worker_that_is_left(
    tiny_root, tiny_cache, tmp_path
):
    with cluster() as ray:
        nodes = [ray.add(), ray.add()]
        for node in nodes:
            ray.until_up(node)
        driver = sweep(tmp_path, SPACE, tiny_root, tiny_cache.root, ray)
        store = RunDirectory(tmp_path / "runs" / "r")
        try:

            def trains() -> list[list[dict]]:
                found = [read_json_lines(t.metrics) for t in store.trials() if not t.result.exists()]
                return [rows for rows in found if rows]

            before = wait_for(trains, driver, "trial that trains")[0]
            ray.lose(nodes[1])
            printed = driver.communicate(timeout=PATIENCE)[0]
        finally:
            driver.kill()
    assert driver.returncode == 0, printed
    assert all(row["workers"] == 2 for row in before)
    found = [read_json_lines(trial.metrics) for trial in store.trials()]
    assert [len(rows) for rows in found] == [4, 4]
    assert any(rows[: len(before)] == before and rows[-1]["workers"] == 1 for rows in found)
    assert "interrupted" in printed, printed


IMPATIENT = """
import sys
import launch
from imet_ray.cluster import sweep

def train(config, data, slot):
    from imet_ray.cluster import ddp_trial as ddp
    ddp.RESIZE_S = 3.0  # it is 300
    ddp.run_ddp_trial(config, data, slot)

sweep.train_in_group = train
raise SystemExit(launch.main(sys.argv[1:]))
"""


def test_a_team_that_began_with_one_worker_grows_when_a_node_comes(tiny_root, tiny_cache, tmp_path):
    space = SPACE.replace("epochs: 4", "epochs: 100")
    store = RunDirectory(tmp_path / "runs" / "r")

    def rows() -> list[dict]:
        return [row for trial in store.trials() for row in read_json_lines(trial.metrics)]

    def grown() -> bool:
        return any(row["workers"] == 2 for row in rows())

    with cluster() as ray:
        ray.until_up(ray.add())
        with sweep(tmp_path, space, tiny_root, tiny_cache.root, ray, ("-c", IMPATIENT)) as driver:
            try:
                alone = wait_for(rows, driver, "epoch of a team of one")
                assert not grown()
                ray.until_up(ray.add())
                wait_for(grown, driver, "epoch of a team of two")
            finally:
                driver.kill()
    assert rows()[: len(alone)] == alone
    assert [row["epoch"] for row in rows()] == [*range(1, len(rows()) + 1)]


def test_a_fault_of_the_set_up_in_a_team_is_one_line(tiny_root, tiny_cache, tmp_path):
    space = SPACE.replace("weights: none", f"weights: {tmp_path}/missing.pth")
    driver = sweep(tmp_path, space, tiny_root, tiny_cache.root)
    printed = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 1
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, printed
    assert "missing.pth" in errors[0]
    assert "Traceback" not in printed
