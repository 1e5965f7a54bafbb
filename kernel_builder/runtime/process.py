"""A kernel's process, whatever it does: its input folder, the time since its start, warnings as they come."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from imet_ray.errors import ConfigError, StoreError

INPUTS = ("/kaggle/input", "../input")
LONGEST_START = 3600.0  # seconds: more means that the process began by another clock


class Warnings(logging.Handler):
    """Keeps and prints the warnings of what runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        for name in ("imet_ray", "kernel_builder"):
            logging.getLogger(name).handlers = [self]  # replaces that of an earlier kernel in the notebook

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        if text not in self.lines:
            self.lines.append(text)
            log(text)


def log(text: str) -> None:
    """Print a line at once."""
    with contextlib.suppress(OSError):  # nobody listens any more
        print(text, flush=True)


@contextlib.contextmanager
def disk_faults_in_one_line() -> Iterator[None]:
    """A fault of input or output, as an error for the user."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or 'input or output'}: {error.strerror or error}") from error


def input_folder(given: Path | None) -> Path:
    """The folder that Kaggle mounts datasets in, or the given one."""
    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"--input must be a folder, got {given}: name the one with the datasets in it")
        return given
    for place in map(Path, INPUTS):
        if place.is_dir():
            return place
    raise ConfigError(f"no input folder at {' or '.join(INPUTS)}: give --input DIR")


def process_seconds() -> float:
    """Seconds since this process began: importing torch counts, a notebook's earlier cells, too. 0 if not known."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):  # not Linux
        return 0.0
    return seconds if 0 <= seconds <= LONGEST_START else 0.0
