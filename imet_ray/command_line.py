"""What the command lines share: a user's mistake is one line on stderr and an exit code, never a traceback."""

import argparse
import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from imet_ray.errors import ConfigError, ImetError
from imet_ray.units import user_path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
INSTALLED = {"launch.py": "imet-ray", "blend.py": "imet-ray-blend"}  # commands, by the script in a clone
CLOSED_PIPE = 141  # what shells say of a program that SIGPIPE ended


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
        self.add_argument("--cache", metavar="DIR", type=user_path, help=caches)
        self.add_argument("--data", metavar="DATA", help=data)
        packages = "openclipart's unpacked packages"
        self.add_argument("--from", dest="source", metavar="DIR", type=user_path, help=packages)

    def add_views(self, text: str) -> None:
        """Add the options that choose test-time views.

        Args:
            text: what `--views` means here.
        """
        self.add_argument("--views", metavar="centre,flip", help=text)
        self.add_argument(
            "--pool-views", metavar="HOW", help="of --views: mean (the default), max or geometric"
        )

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}: see --help", file=sys.stderr)
        raise SystemExit(2)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)  # of --help: who reads it may have left
        super().exit(status, message)


def program(script: str) -> str:
    """What a user calls this script of ours: as it was called, in a clone or installed."""
    return INSTALLED[script] if Path(sys.argv[0]).name in INSTALLED.values() else script


def pasted(*words: object) -> str:
    """A command line that a shell reads as these words; `python launch.py` is what the user calls it."""
    if words[:1] == ("python",) and words[1] in INSTALLED and program(str(words[1])) != words[1]:
        words = (INSTALLED[str(words[1])], *words[2:])
    return shlex.join(map(str, words))


def refuse_pooling_alone(views: str | None, pooling: str | None) -> None:
    """Refuse `--pool-views` where no views are named.

    Raises:
        ConfigError: saying what to add.
    """
    if pooling is not None and views is None:
        raise ConfigError(f"--pool-views {pooling} says how --views are pooled: give these, too")


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


def given_settings(pairs: list[str]) -> dict[str, Any]:
    """What `--set` says: `dropout=0.3` as YAML would read the value."""
    import yaml

    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE such as dropout=0.3, got {pair!r}")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set takes KEY=VALUE such as dropout=0.3, got {pair!r}") from None
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(settings[key], str):
                settings[key] = float(settings[key])  # 1e-4: YAML 1.1 takes it for a word
    return settings


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
        return _exit_code(work, interrupted)
    except BrokenPipeError:  # who read what we print has left, as `| head` does
        _print_nowhere(sys.stdout, sys.stderr)
        return CLOSED_PIPE
    except OSError as error:  # our own files say so themselves
        if error.errno not in NO_ROOM:
            raise
        _print_nowhere(sys.stdout)
        print(
            f"error: {error}, for what is printed or for temporary files: make room, then {interrupted}",
            file=sys.stderr,
        )
        return 1


def _print_nowhere(*streams: TextIO | None) -> None:
    """What is left in these streams, and would fail again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no files, in a notebook
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]


def _exit_code(work: Callable[[], int], interrupted: str) -> int:
    try:
        with interrupted_by_sigterm():
            code = work()
            print(end="", flush=True)
            return code
    except ImetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "imet_ray", "kernel_builder"):
            raise
        print(
            f"error: {sys.executable} has no package {package}: `uv run launch.py` brings all (pip install uv), and so "
            "does `pip install .` in an environment of your own",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
