"""A Ray cluster whose nodes are processes of this machine, each with the processes below it to kill.

For `benchmarks.chaos` and the tests of faults. Nodes with addresses of their own are another matter: tests/hosts.py.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from imet_ray.cluster.session import prepare_environment

RAY = Path(sys.executable).with_name("ray")
# that two nodes of one machine would else fight for: without its agents' a raylet ends
PORTS = (
    *(
        "node-manager",
        "object-manager",
        "dashboard-agent-listen",
        "dashboard-agent-grpc",
        "runtime-env-agent",
    ),
    "metrics-export",
)
UP = "Ray runtime started"  # what `ray start` says then
START_S = 120.0  # for a node to come up


class Node:
    """One `ray start`, and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self.process, self.name = process, name

    def family(self) -> dict[int, str]:
        """Its processes that run, and their titles."""
        return below(self.process.pid)

    def workers(self) -> dict[int, str]:
        """Those that train, and the trial that each has: the parents of their loaders, not these."""
        found = {
            pid: title.removeprefix("ray::").strip()
            for pid, title in self.family().items()
            if title.startswith("ray::") and " fold " in title
        }
        return {pid: title for pid, title in found.items() if parent_of(pid) not in found}

    def raylet(self) -> int:
        """The process that makes it a node."""
        return next(pid for pid, title in self.family().items() if "/raylet/raylet" in title.split(" ")[0])

    def kill(self) -> None:
        """All of its processes at once, as when the power goes."""
        for pid in [self.process.pid, *self.family()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A head, and nodes."""

    def __init__(self, folder: Path, *, dashboard: bool = False, head_cpus: int = 0) -> None:
        """
        Args:
            folder: for Ray's own files; sockets lie in it, so its path must be short.
            dashboard: with one, and so with jobs.
            head_cpus: for trials on the head.
        """
        self.folder, self.has_dashboard, self.head_cpus = folder, dashboard, head_cpus
        self.nodes: dict[str, Node] = {}
        self.made = 0
        prepare_environment()
        token = folder / "token"
        token.write_text("a" * 64)
        token.chmod(0o600)
        self.environment = os.environ | {
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder)},
            **{"PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"},
        }
        self.given: set[int] = set()  # ports
        self.port, self.dashboard_port = self._ports(2)
        self.head: Node | None = None

    @property
    def address(self) -> str:
        """For `--address`."""
        return f"127.0.0.1:{self.port}"

    def add(self, cpus: int = 1, environment: Mapping[str, str] | None = None) -> Node:
        """One more node; it is not awaited."""
        self.made += 1
        name = f"node{self.made}"
        more = [f"--address={self.address}", f"--num-cpus={cpus}"]
        self.nodes[name] = self._start(name, more, environment)
        return self.nodes[name]

    def lose(self, node: Node) -> None:
        """Kill a node, and forget it."""
        node.kill()
        self.nodes.pop(node.name, None)

    def begin(self) -> None:
        """Start the head, at the same address if there was one before."""
        self.head = self._start("head", ["--head", f"--port={self.port}", f"--num-cpus={self.head_cpus}"])
        self.until_up(self.head)

    def end(self) -> None:
        """Kill all that is left."""
        for node in [*self.nodes.values(), *([self.head] if self.head else [])]:
            node.kill()
        self.nodes.clear()

    def _start(self, name: str, options: list[str], environment: Mapping[str, str] | None = None) -> Node:
        ports = [f"--{kind}-port={port}" for kind, port in zip(PORTS, self._ports(len(PORTS)), strict=True)]
        command = [str(RAY), "start", "--block", *ports, *options]
        if name == "head":
            command += [
                f"--temp-dir={self.folder}",
                f"--include-dashboard={str(self.has_dashboard).lower()}",
                f"--dashboard-port={self.dashboard_port}",
            ]
        # Ray gives a node 30 s to register, too few beside much other work
        tries = (
            f"for i in 1 2 3; do {shlex.join(command)}; grep -q '{UP}' {self.folder}/{name}.log && exit; done"
        )
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["sh", "-c", tries], env=self.environment | (environment or {}), stdout=log, stderr=log
            )
        return Node(process, name)

    def _ports(self, count: int) -> list[int]:
        """As many that are free, and that no node was given."""
        found: list[int] = []
        while len(found) < count:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self.given:
                self.given.add(port)
                found.append(port)
        return found

    def until_up(self, node: Node) -> None:
        """Wait for a node."""
        log, until = self.folder / f"{node.name}.log", time.monotonic() + START_S
        while UP.encode() not in log.read_bytes():
            if node.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{node.name} does not start: {log.read_text()}")
            time.sleep(0.2)


@contextlib.contextmanager
def cluster(*, dashboard: bool = False, head_cpus: int = 0) -> Iterator[Cluster]:
    """A cluster in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="imet"))
    made = Cluster(folder, dashboard=dashboard, head_cpus=head_cpus)
    try:
        made.begin()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def parent_of(pid: int) -> int:
    """Of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def below(pid: int) -> dict[int, str]:
    """Processes that descend from one, and their titles; those that have ended and wait to be told of are left out."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.name)] = int(parent)
                titles[int(path.name)] = (
                    (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
    found: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: titles[child] for child in found - {pid}}
