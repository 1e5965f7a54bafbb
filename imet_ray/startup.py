"""How a process starts: with docstrings, memory that is kept, and the garbage collector at rest while it imports."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

# parameters of glibc's mallopt, from malloc.h, and values that no tensor here reaches
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
NEVER = {TRIM_THRESHOLD: 2**31 - 1, MMAP_THRESHOLD: 2**30}  # bytes
# For the environment of Ray's processes, which must have it when they start: glibc's malloc with one arena. A worker
# has more threads than glibc has arenas (8 for each core), and Tune runs each trial in a new thread: it got the next
# arena, and could not use what the others kept. Nothing leaked, yet a worker grew until each arena was as large as a
# trial. Memory of its own after each of 8 trials of the demo sweep on 2 cores: 0.70 to 1.80 GB, +0.13 with each; with
# one arena 0.81 and 0.85 from the 4th on. Outside Ray, 30 small trials of 48 to 96 px in as many threads beside 24 idle
# ones: 7.8 GB, now 1.8 from the 16th on. It costs no time: the sweep's 8 trials take 77 s of CPU, and took 79.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Around imports that take seconds, the first time: what they make is no garbage, now or later.

    Measured on 2 cores: all imports of a worker take 6.5 s instead of 8.2, and a full collection after them, which
    each trial does at its start, 1 ms instead of 300.
    """
    if "torch" in sys.modules:
        yield
        return
    keep_freed_memory()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next tensor, where it would give it back; glibc alone is asked.

    torch frees each layer's output on a CPU, and the system then clears the pages of the next one. Measured on 2 cores:
    `--tag` has 0.2 million page faults instead of 2.8, and takes 9.2 s instead of 12.4; its peak of memory is the same.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            for parameter, value in NEVER.items():
                mallopt(parameter, value)


def keep_docstrings() -> None:
    """Start this script again with `python -O`, if it runs with -OO: Ray reads docstrings when it is imported."""
    if sys.flags.optimize > 1:
        os.environ["PYTHONOPTIMIZE"] = "1"  # in the workers too
        os.execv(sys.executable, [sys.executable, *sys.argv])
