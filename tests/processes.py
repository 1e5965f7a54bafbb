"""The processes of a sweep, and waiting for what it does."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.nodes import below

PATIENCE = 400  # seconds for anything to happen
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
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {PATIENCE} s")
