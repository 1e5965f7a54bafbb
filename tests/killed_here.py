"""A sweep that kills itself, as kill -9 does, beside a write: run in a process of its own."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Point = tuple[str, str]  # "before" or "after", and the file, from `root` on


def sweep(argv: Sequence[str], root: Path, log: Path, kills: Counter[Point]) -> None:
    """Sweep, until the first of the points that have a kill left; else exit with the sweep's code.

    Args:
        root: only what is put in place below it counts.
        log: gets each file that was put in place, a line each, and the point of the kill.
    """
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def reach(when: str, where: str) -> None:
        os.write(said, f"{when} {where}\n".encode())
        if kills[when, where] > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def append(file: int) -> None:
        """To the journal, which Optuna makes sure of after each write."""
        path = Path(f"/proc/self/fd/{file}").readlink()
        ours = path.suffix == ".journal" and path.is_relative_to(root)
        if ours:
            reach("before", str(path.relative_to(root)))
        fsync(file)
        if ours:
            reach("after", str(path.relative_to(root)))

    def watched(put: Callable[..., None]) -> Callable[..., None]:
        def put_in_place(source: Any, target: Any, **how: Any) -> None:
            path = Path(os.fsdecode(target)).absolute()
            if not path.is_relative_to(root):
                return put(source, target, **how)
            where = str(path.relative_to(root))
            reach("before", where)
            put(source, target, **how)
            reach("after", where)

        return put_in_place

    fsync, os.fsync = os.fsync, append
    os.replace, os.rename = watched(os.replace), watched(os.rename)
    run(argv, log)


def run(argv: Sequence[str], log: Path) -> None:
    """Sweep, and exit with its code; what it prints goes beside the log."""
    printed = os.open(log.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, sys.stdout.fileno())
    os.dup2(printed, sys.stderr.fileno())
    import serial_sweep

    code = serial_sweep.sweep(argv)
    sys.stdout.flush()
    os._exit(code)


def points(log: Path) -> list[Point]:
    """That were reached, in their order."""
    return [
        (when, where) for when, _, where in (line.partition(" ") for line in log.read_text().splitlines())
    ]
