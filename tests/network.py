"""A cluster on three hosts, set up by the project's own `cluster-local.yaml` with other addresses: see `hosts`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hosts
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).with_name("ray")
PATIENCE = 480  # seconds for anything to happen

Done = subprocess.CompletedProcess
T = TypeVar("T")


class Network:
    """Three hosts, and `ray` on the machine that launches."""

    def __init__(self, folder: Path, found: list[hosts.Host], key: Path) -> None:
        self.folder, self.hosts = folder, found
        self.environment = os.environ | {"RAY_TMPDIR": str(folder / "ray"), "HOME": str(folder / "home")}
        self.token = folder / "home" / ".ray" / "auth_token"
        self.token.parent.mkdir(parents=True)
        self.ray("get-auth-token", "--generate")
        self.token.chmod(0o600)
        config = yaml.safe_load((REPOSITORY / "cluster-local.yaml").read_text())
        config["provider"] |= {
            "head_ip": found[0].address,
            "worker_ips": [host.address for host in found[1:]],
        }
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
        self.config = folder / "cluster.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def await_nodes(self) -> None:
        try:
            wait_for(lambda: "3 local.cluster.node" in self.hosts[0].run("ray status").stdout, "three nodes")
        except AssertionError as error:
            told = self.hosts[0].run("ray status; tail -n 80 /tmp/ray/session_latest/logs/monitor.*").stdout
            raise AssertionError(f"{error}: {told}") from None

    def ray(self, *argv: str) -> Done:
        return subprocess.run(
            [RAY, *argv],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE * 2,
        )

    def up(self) -> None:
        done = self.ray("up", str(self.config), "-y", "--no-config-cache")
        assert done.returncode == 0, done.stdout + done.stderr
        self.await_nodes()

    def sweep(
        self,
        name: str = "net",
        *,
        cache: str = f"{hosts.SHARED}/cache",
        options: str = "",
        submitted: bool = False,
        stub: float | None = None,
    ) -> Done:
        """
        Args:
            stub: seconds of an epoch of trials without torch, where it is asked only where they run.
        """
        shared = hosts.SHARED
        where = f"--runs {shared}/runs --cache {cache} --name {name} {options}"
        what = f"--space {shared}/space.yml --data {shared}/data"
        submit = "ray job submit --working-dir . -- " if submitted else ""
        program = (
            "python launch.py" if stub is None else f"env STUB_SECONDS={stub} python tests/stub_sweep.py"
        )
        command = f"{submit}{program} --sweep --address auto {what} {where}"
        return self.ray("exec", str(self.config), command)

    def strangers(self) -> dict[str, Callable[[], Done]]:
        """Who tries to come in, each on a worker: without a token, with another one, with a job."""
        head, worker = self.hosts[0], self.hosts[1]
        join = f"""python -c 'import ray; ray.init(address="{head.address}:6379")'"""
        job = "ray job submit --address http://127.0.0.1:8265 -- true"
        closed = "HOME=/tmp RAY_AUTH_MODE=disabled"
        return {
            "no token": lambda: worker.run(f"{closed} {join}"),
            "another token": lambda: worker.run(f"RAY_AUTH_TOKEN={'0' * 64} {join}"),
            "a job": lambda: head.run(f"{closed} {job}"),
        }

    def rays(self) -> dict[str, str]:
        """Ray's processes on each host that is there."""
        wanted = "pgrep -af 'raylet|gcs_server' | grep -v pgrep"
        return {host.name: host.run(wanted).stdout for host in self.hosts if host.init.poll() is None}


def wait_for(condition: Callable[[], T], what: str) -> T:
    """What the condition gives, as soon as it is something."""
    until = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until, f"no {what} within {PATIENCE} s"
        time.sleep(0.5)
    return found
