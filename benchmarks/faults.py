"""What happens to clusters, done to one of `benchmarks.nodes`: each fault picks its victim, and says whom it hit.

A lost node is replaced, as an autoscaler would.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.nodes import Cluster, Node, below

PATIENCE_S = 120.0  # for a victim


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


FAULTS: dict[str, Fault] = {
    "trial": kill_trial,
    "loader": kill_loader,
    "raylet": kill_raylet,
    "node": kill_node,
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
