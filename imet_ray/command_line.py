"""What the command lines share: a user's mistake is one line on stderr and an exit code, never a traceback."""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from imet_ray.errors import ImetError


class Parser(argparse.ArgumentParser):
    """argparse with one line for a wrong option; it exits with 2."""

    def add_run(
        self,
        name: str = "the run; default: the newest one",
        data: str = "where the run's data lie now; default: where they lay",
    ) -> None:
        """Add the options that lead to a run and its data.

        Args:
            name: what `--name` means here.
            data: what `--data` means here.
        """
        self.add_argument("--name", help=name)
        places = "where runs lie: a directory, s3://..., gs://... or az://..."
        self.add_argument("--runs", metavar="DIR", default="runs", help=places)
        caches = "generated data and packs; default: ~/.cache/imet_ray"
        self.add_argument("--cache", metavar="DIR", type=Path, help=caches)
        self.add_argument("--data", metavar="DATA", help=data)
        self.add_argument(
            "--from", dest="source", metavar="DIR", type=Path, help="openclipart's unpacked packages"
        )

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}: see --help", file=sys.stderr)
        raise SystemExit(2)


def positive(text: str) -> int:
    """The type of options that count something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def zero_or_more(text: str) -> int:
    """The type of options that count something there may be none of."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {number}")
    return number


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, which schedulers, init systems and a lost lease send, acts like Ctrl-C. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Do the work: its own code, 1 for an error that was raised on purpose, 130 for Ctrl-C or SIGTERM.

    Args:
        interrupted: what to do after Ctrl-C.
    """
    try:
        with interrupted_by_sigterm():
            return work()
    except ImetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
