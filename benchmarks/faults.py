"""What happens to clusters, done to one of `benchmarks.nodes`: each fault picks its victim, and says whom it hit.

A lost node is replaced, as an autoscaler would.
"""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from benchmarks.nodes import Cluster, Node, below

PATIENCE_S = 120.0  # for a victim
LEFT_S = 6.0  # of a machine whose end was announced; AWS gives two minutes


@dataclass(frozen=True)
class Harm:
    """What a fault did."""

    what: str
    trials: tuple[str, ...]  # ids of those that lost their worker
    at: float  # of time.time()


Fault = Callable[[Cluster, np.random.Generator], Harm]


def kill_trial(cluster: Cluster, rng: np.random.Generator) -> Harm:
    """kill -9 of a worker that trains."""
    node, pid, title = _pick(cluster, rng, _trainers)
    os.kill(pid, signal.SIGKILL)
    return Harm(f"kill -9 of the worker of {title} on {node.name}", _ids([title]), time.time())


def kill_loader(cluster: Cluster, rng: np.random.Generator) -> Harm:
    """kill -9 of a process that loads pictures for a trial."""
    node, pid, title = _pick(cluster, rng, _loaders)
    os.kill(pid, signal.SIGKILL)
    return Harm(f"kill -9 of a loader of {title} on {node.name}", _ids([title]), time.time())


def kill_raylet(cluster: Cluster, rng: np.random.Generator) -> Harm:
    """kill -9 of what makes a machine a node; its workers see to themselves."""
    node, _, _ = _pick(cluster, rng, _trainers)
    hit = _ids(node.workers().values())
    os.kill(node.raylet(), signal.SIGKILL)
    at = time.time()
    until = time.monotonic() + PATIENCE_S
    while node.workers() and time.monotonic() < until:
        time.sleep(0.2)
    left = len(node.workers())
    cluster.lose(node)
    cluster.add()
    return Harm(f"kill -9 of the raylet of {node.name}; {left} workers outlived it", hit, at)


def kill_node(cluster: Cluster, rng: np.random.Generator) -> Harm:
    """The power of a machine goes."""
    node, _, _ = _pick(cluster, rng, _trainers)
    hit, at = _ids(node.workers().values()), time.time()
    cluster.lose(node)
    cluster.add()
    return Harm(f"power off of {node.name}", hit, at)


def announce_end(cluster: Cluster, rng: np.random.Generator) -> Harm:
    """A spot machine is announced to go, and goes; what watches for it runs as on AWS."""
    node, _, _ = _pick(cluster, rng, _trainers)
    with _metadata() as service:
        subprocess.run(
            [sys.executable, "-m", "imet_ray.cluster.spot", cluster.address, "--node", node.node_id()],
            env=cluster.environment | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service},
            timeout=PATIENCE_S,
            check=True,
            capture_output=True,
        )
    time.sleep(LEFT_S)
    hit, at = _ids(node.workers().values()), time.time()
    cluster.lose(node)
    cluster.add()
    return Harm(f"spot notice for {node.name}, which went {LEFT_S:g} s later", hit, at)


FAULTS: dict[str, Fault] = {
    "trial": kill_trial,
    "loader": kill_loader,
    "raylet": kill_raylet,
    "node": kill_node,
    "spot": announce_end,
}


def _ids(titles: Iterable[str]) -> tuple[str, ...]:
    return tuple(title.split()[-1] for title in titles)


def _trainers(node: Node) -> dict[int, str]:
    return node.workers()


def _loaders(node: Node) -> dict[int, str]:
    return {child: title for pid, title in node.workers().items() for child in below(pid)}


def _pick(
    cluster: Cluster, rng: np.random.Generator, victims: Callable[[Node], dict[int, str]]
) -> tuple[Node, int, str]:
    """One of the victims on all nodes, waiting for one to be there."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = [
            (node, pid, title) for node in cluster.nodes.values() for pid, title in victims(node).items()
        ]
        if found:
            return found[int(rng.integers(len(found)))]
        time.sleep(0.1)
    raise TimeoutError(f"nothing to harm within {PATIENCE_S:.0f} s: is the sweep over?")


@contextlib.contextmanager
def _metadata() -> Iterator[str]:
    """The metadata service of a machine that will be taken back."""
    end = (datetime.now(UTC) + timedelta(seconds=LEFT_S)).strftime("%Y-%m-%dT%H:%M:%SZ")

    class Service(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._say("a-token")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
            self._say(json.dumps({"action": "terminate", "time": end}))

        def _say(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
