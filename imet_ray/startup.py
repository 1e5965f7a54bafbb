"""How a process starts: with docstrings, and importing torch and timm with the garbage collector at rest."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Around imports that take seconds, the first time: what they make is no garbage, now or later.

    Measured on 2 cores: all imports of a worker take 6.5 s instead of 8.2, and a full collection after them, which
    each trial does at its start, 1 ms instead of 300.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_docstrings() -> None:
    """Start this script again with `python -O`, if it runs with -OO: Ray reads docstrings when it is imported."""
    if sys.flags.optimize > 1:
        os.environ["PYTHONOPTIMIZE"] = "1"  # in the workers too
        os.execv(sys.executable, [sys.executable, *sys.argv])
