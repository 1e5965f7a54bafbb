"""A cluster that grows and shrinks with the sweep: Ray's autoscaler, whose machines are processes of this one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from imet_ray.storage.results import read_result
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.cluster

SPACE = """
n_folds: 3
trials_per_variant: 3
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 4, batch_size: 8, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
MOST = 4  # machines
PATIENCE = 300  # seconds for the sweep
IDLE_S = 6  # after which a machine is given back
CLUSTER = {  # what Ray's AutoscalingCluster writes; its template is not in the wheel, and it stops every Ray there is
    "cluster_name": "growing",
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "max_workers": MOST,
    "idle_timeout_minutes": IDLE_S / 60,
    "upscaling_speed": 1.0,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "machine": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST},
    },
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{
        key: []
        for key in (
            *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
            *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
            *("rsync_exclude", "rsync_filter"),
        )
    },
    "file_mounts_sync_continuously": False,
}
# Writes how many nodes are there, each second.
COUNT = """
import sys, time, ray
while not ray.is_initialized():
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError):
        time.sleep(0.5)  # the head is not ready
with open(sys.argv[2], "w", buffering=1) as file:
    while True:
        print(sum(node["Alive"] for node in ray.nodes()), file=file)
        time.sleep(1)
"""


@dataclass
class Story:
    store: RunDirectory
    sweep: subprocess.CompletedProcess
    during: list[int]  # machines, each second of the sweep
    after: int  # some time after it


class Head:
    """A Ray on this machine whose autoscaler starts others; all of its processes name its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = folder / "token"
        token.write_text("a" * 64)
        token.chmod(0o600)
        self.environment = os.environ | {
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_enable_autoscaler_v2": "1"},
            **{"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_TMPDIR": str(folder)},
            **{
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            },
            **{"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"},
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        provider = CLUSTER["provider"] | {"gcs_address": f"{get_node_ip_address()}:{self.port}"}
        (folder / "autoscaler.json").write_text(json.dumps(CLUSTER | {"provider": provider}))
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0"),
            *(f"--port={self.port}", f"--autoscaling-config={folder / 'autoscaler.json'}"),
            *("--include-dashboard=false", f"--temp-dir={folder}"),
        ]
        with (folder / "head.log").open("w") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "head.log").read_text())

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self._kill_rest()

    def _kill_rest(self) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(self.folder).encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="grow"))  # short: sockets lie in it
    made = Head(folder)
    try:
        made.wait()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def story(head, tiny_root, tiny_cache, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("growing")
    (folder / "space.yml").write_text(SPACE)
    command = [
        *(sys.executable, "tests/stub_sweep.py", "--sweep", "--address", head.address, "--name", "r"),
        *("--space", str(folder / "space.yml"), "--data", str(tiny_root)),
        *("--runs", str(folder / "runs"), "--cache", str(tiny_cache.root)),
    ]
    counted = folder / "counted"
    counter = subprocess.Popen(
        [sys.executable, "-c", COUNT, head.address, str(counted)],
        env=head.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: counted.exists() and machines(counted) == [0])  # the head alone
        sweep = subprocess.run(
            command,
            env=head.environment | {"STUB_SECONDS": "2"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        during = machines(counted)
        wait_for(lambda: machines(counted)[-1] == 0)
    finally:
        counter.kill()
        counter.wait()
    return Story(RunDirectory(folder / "runs" / "r"), sweep, during, machines(counted)[-1])


def machines(counted: Path) -> list[int]:
    """Nodes but the head, each second until now."""
    return [int(line) - 1 for line in counted.read_text().split()]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + IDLE_S + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_sweep_on_machines_that_are_not_there_yet_comes_to_its_end(story):
    assert story.sweep.returncode == 0, story.sweep.stdout + story.sweep.stderr
    results = [read_result(trial) for trial in story.store.begun_trials()]
    assert len(results) == 2 * (3 + 2)
    assert all(result is not None and result.status == "complete" for result in results)


def test_the_cluster_grows_to_all_machines_that_the_sweep_can_use(story):
    assert max(story.during) == MOST


def test_the_cluster_shrinks_to_nothing_when_the_sweep_is_over(story):
    assert story.after == 0
