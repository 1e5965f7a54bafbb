"""The processes of a sweep, waiting for what it does, and processes that begin with all imported."""

import gc
import multiprocessing
import multiprocessing.context
import os
import subprocess
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.nodes import below

PATIENCE = 600  # seconds for anything to happen
AGENTS_LAST = 120  # seconds: Ray's two agents try to reach their dead head for 60 s before they give up

T = TypeVar("T")


def runs(pid: int) -> bool:
    """True if it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ray_processes(driver: int) -> dict[int, str]:
    """Processes below a driver whose command line is Ray's."""
    return {pid: title for pid, title in below(driver).items() if "ray" in title}


def wait_for(condition: Callable[[], T], process: subprocess.Popen, what: str) -> T:
    """What the condition gives, as soon as it is something; the process must run until then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process.poll() is not None:
            raise AssertionError(f"the sweep ended before {what}: {process.communicate()}")
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {PATIENCE} s")


def ready(target: Callable[..., None], *args: object) -> multiprocessing.context.ForkServerProcess:
    """A process to be, forked from one that has imported what sweeps need (10 s of a core) and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["serial_sweep", "matplotlib.backends.backend_agg", "iterstrat.ml_stratifiers"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()
    return context.Process(target=_begin, args=(dict(os.environ), target, args))


def _begin(environment: dict[str, str], target: Callable[..., None], args: tuple[object, ...]) -> None:
    """With the environment as it is now, not as it was when the server began."""
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # all that is imported: else each collection looks through it for 0.7 s
    target(*args)
