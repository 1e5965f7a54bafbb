"""The sweep on a real cluster: three hosts with addresses, sshd and processes of their own, set up by `ray up`.

The project's own file is used, with other addresses. All of it happens on this machine: see `hosts`.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import hosts
import pytest
import yaml

from imet_ray.results import read_result, read_spec
from imet_ray.store import Store, read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).with_name("ray")
SPACE = """
n_folds: 3
trials_per_variant: 2
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 2, batch_size: 16, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
PATIENCE = 120  # seconds for anything to happen


@dataclass
class Cluster:
    """What was seen while it was up."""

    store: Store
    up: subprocess.CompletedProcess
    sweep: subprocess.CompletedProcess
    other_nodes: set[str]  # addresses of the workers
    ran_on: set[str]  # addresses of the nodes that trained
    listening: dict[str, str]  # of the head: `ss -ltn`
    without_token: subprocess.CompletedProcess
    wrong_token: subprocess.CompletedProcess
    job: subprocess.CompletedProcess
    down: subprocess.CompletedProcess
    left: dict[str, str]  # Ray's processes on each host, in the end


def config_of(found: list[hosts.Host], key: Path, place: Path) -> Path:
    """`cluster-local.yaml` for these hosts."""
    config = yaml.safe_load((REPOSITORY / "cluster-local.yaml").read_text())
    config["provider"] |= {"head_ip": found[0].address, "worker_ips": [host.address for host in found[1:]]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    place.write_text(yaml.safe_dump(config))
    return place


@pytest.fixture(scope="module")
def cluster(tiny_root, tmp_path_factory) -> Cluster:
    if (why := hosts.missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("network")
    environment = folder / "common" / "imet_ray" / ".venv"
    environment.mkdir(parents=True)
    hosts.copy_environment(Path(sys.prefix), environment, f"{hosts.HOME}/imet_ray/.venv")
    token = folder / "home" / ".ray" / "auth_token"
    outside = os.environ | {"RAY_TMPDIR": str(folder / "ray"), "HOME": str(folder / "home")}

    def ray(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [RAY, *argv],
            cwd=REPOSITORY,
            env=outside,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE * 3,
        )

    with hosts.hosts(folder, 3, in_common=["imet_ray/.venv"]) as (found, key):
        token.parent.mkdir(parents=True)
        ray("get-auth-token", "--generate")
        token.chmod(0o600)
        config = config_of(found, key, folder / "cluster.yaml")
        up = ray("up", str(config), "-y", "--no-config-cache")
        head, workers = found[0], found[1:]
        assert up.returncode == 0, up.stdout + up.stderr
        until = time.monotonic() + PATIENCE
        while "3 local.cluster.node" not in (status := head.run("ray status").stdout):
            assert time.monotonic() < until, status
            time.sleep(1)
        shared = folder / "shared"
        (shared / "space.yml").write_text(SPACE)
        subprocess.run(["cp", "-r", str(tiny_root), str(shared / "data")], check=True)
        where = f"--runs {hosts.SHARED}/runs --cache {hosts.SHARED}/cache --name net"
        data = f"--space {hosts.SHARED}/space.yml --data {hosts.SHARED}/data"
        sweep = ray("exec", str(config), f"python launch.py --sweep --address auto {data} {where}")
        listening = {host.address: host.run("ss -ltn").stdout for host in found}
        join = f"ray start --address={head.address}:6379 --block & sleep 8; kill %1"
        worker = workers[0]
        without = worker.run(
            f"HOME=/tmp RAY_AUTH_MODE=disabled python -c 'import ray; ray.init(address=\"{head.address}:6379\")'"
        )
        wrong = worker.run(
            f"RAY_AUTH_TOKEN={'0' * 64} python -c 'import ray; ray.init(address=\"{head.address}:6379\")'"
        )
        job = head.run(
            "HOME=/tmp RAY_AUTH_MODE=disabled ray job submit --address http://127.0.0.1:8265 -- true"
        )
        down = ray("down", str(config), "-y")
        until = time.monotonic() + PATIENCE
        while True:
            left = {
                host.address: host.run("pgrep -af raylet\\|gcs_server | grep -v pgrep").stdout
                for host in found
            }
            if not any(left.values()) or time.monotonic() > until:
                break
            time.sleep(1)
    del join
    store = Store(shared / "runs" / "net")
    ran_on = {line for trial in store.trials() for line in [trial.root.name]}
    return Cluster(
        store,
        up,
        sweep,
        {host.address for host in workers},
        ran_on,
        listening,
        without,
        wrong,
        job,
        down,
        left,
    )


def test_a_sweep_on_three_hosts_ends_with_the_artefacts_of_all_trials(cluster):
    assert cluster.sweep.returncode == 0, cluster.sweep.stdout[-3000:] + cluster.sweep.stderr[-3000:]
    complete = [trial for trial in cluster.store.trials() if read_result(trial).status == "complete"]
    assert len(complete) == 8
    folds = {(read_spec(trial).variant.name, read_spec(trial).fold) for trial in complete}
    assert folds == {(name, fold) for name in ("none", "light") for fold in range(3)}
    for trial in complete:
        assert trial.best.exists()
        assert len(read_json_lines(trial.metrics)) == 2
    assert cluster.store.ensemble("blend").submission.exists()
    assert "3 nodes, of one version" in cluster.sweep.stdout
