"""The kernel: finds its weights and pictures, predicts what fits before the limit, and always leaves a submission.

Exit codes: 0 everything was predicted; 1 no submission; 2 a wrong option; else 64 plus the sum of: 1 the limit came
before the last checkpoint; 2 checkpoints were left out; 4 pictures could not be read; 8 memory, the GPU or loader
processes failed and the kernel went on without; 16 the last checkpoints are not in the submission, because it could not
be written again. On Kaggle any code but 0 throws the submission away. There the code is 0 if the submission has a
checkpoint in it or the limit stopped the run, and the last line says the rest.
"""

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imet_ray.command_line import Parser, exit_code, positive, zero_or_more
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.submission import write_submission
from imet_ray.storage.files import write_json
from imet_ray.units import duration
from kernel_builder.runtime.checkpoints import Checkpoints, usable_device
from kernel_builder.runtime.exit_status import STOPPED, exit_code_with_submission, summary
from kernel_builder.runtime.image_cache import ImageCache
from kernel_builder.runtime.inputs import all_files, find_test
from kernel_builder.runtime.locate_weights import find_secret, find_weights
from kernel_builder.runtime.manifest import Manifest
from kernel_builder.runtime.running_blend import RunningBlend
from kernel_builder.runtime.schedule import Deadline, Schedule
from kernel_builder.runtime.watchdog import Watchdog

INPUTS = ("/kaggle/input", "../input")
LONGEST_START = 3600.0  # seconds: more means that /proc/uptime has another clock than the process


def main(manifest: dict[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run the kernel; the exit code."""
    checked = Manifest.model_validate(manifest)
    options = _parse(argv, checked)
    return exit_code(lambda: _run(options, checked), "run it again")


def _run(options: argparse.Namespace, manifest: Manifest) -> int:
    """Run the kernel; a disk's faults are one line, too."""
    try:
        return _Kernel(options, manifest).run()
    except OSError as error:
        raise StoreError(f"{error.filename or 'input or output'}: {error.strerror or error}") from error


class _Kernel:
    """One run, and the watchdog beside it, which may have to end it."""

    def __init__(self, options: argparse.Namespace, manifest: Manifest) -> None:
        self.options, self.manifest = options, manifest
        limit = duration(options.limit, "--limit") if options.limit else manifest.limit
        reserve = duration(options.reserve, "--reserve") if options.reserve else manifest.reserve
        self.deadline = Deadline(limit, reserve, time.monotonic, spent=_process_seconds())
        if self.deadline.left() <= 0:
            raise ConfigError("--limit must be longer than --reserve and the start: give more time")
        self.warnings = _Warnings()
        self.watchdog = Watchdog(self.deadline, reserve / 2, self._end_hung_run, _log)
        self.schedule: Schedule | None = None
        self.images: ImageCache | None = None
        self.target = options.output / "submission.csv"

    def run(self) -> int:
        self.watchdog.start()
        try:
            return self._predict()
        finally:
            self.watchdog.stop()

    def _predict(self) -> int:
        self.watchdog.note("looking for pictures and weights")
        files = [path for root in _inputs(self.options.input) for path in all_files(root)]
        test = find_test(files)
        if len(test.samples) > 1:
            others = ", ".join(str(path.parent) for path in test.samples[1:])
            self.warnings.add(f"the pictures of {test.samples[0].parent}, not those of {others}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.images = ImageCache(test, _scratch(self.options.scratch), cores)
        self.schedule = Schedule(
            self.manifest, len(test.ids), self.deadline, self._publish, _log, self.watchdog.note
        )
        before = self.target.read_bytes() if self.target.is_file() else None
        self.schedule.begin()
        try:
            checkpoints = self._checkpoints(files, self.images, cores)
        except BaseException:  # such as a forgotten dataset: an error, and no new submission
            self.schedule.outcome.written = None
            with contextlib.suppress(OSError):
                if before is None:
                    self.target.unlink(missing_ok=True)
                else:
                    self.target.write_bytes(before)
            raise
        _log(
            f"{self.manifest.ensemble}: {self.manifest.checkpoints} checkpoints of {len(self.manifest.members)} "
            f"members, {len(test.ids):,} pictures of {test.samples[0].parent}, on {checkpoints.device}; "
            f"started in {self.deadline.elapsed():.1f} s, {self.deadline.left():,.0f} s left"
        )
        self.schedule.run(checkpoints.open)
        if self.options.timing is not None:
            try:
                write_json(self.options.timing, self._timing())
            except StoreError as error:
                self.warnings.add(str(error))
        return self._finish()

    def _checkpoints(self, files: Sequence[Path], images: ImageCache, cores: int) -> Checkpoints:
        """All weights found, and their key tried."""
        self.watchdog.note("checking the weights")
        found = find_weights(self.manifest, files)
        secret = find_secret(list(found.values()), self.manifest.key, files)
        device = usable_device()
        workers = self.options.workers
        return Checkpoints(
            self.manifest,
            found,
            secret,
            images,
            device=device,
            batch_size=self.options.batch_size,
            workers=workers if workers is not None else (cores - 1 if device.type == "cuda" else 0),
        )

    def _publish(self, blend: RunningBlend) -> None:
        assert self.images is not None
        decoded = blend.decoded(self.images.unreadable)
        write_submission(self.target, self.images.test.ids, self.manifest.label_ids, decoded)

    def _timing(self) -> dict[str, Any]:
        """The fields of `kernel_builder.dry_run.Timing`."""
        assert self.schedule is not None
        assert self.images is not None
        outcome = self.schedule.outcome
        return {
            "pictures": len(self.images.test.ids),
            "batches": outcome.batches,
            "elapsed": self.deadline.elapsed(),
            "decoding": self.images.seconds,
            "writing": outcome.writing,
            "left": self.deadline.end - self.deadline.start,
            "whole": outcome.checkpoints == self.manifest.checkpoints,
            "checkpoints": outcome.picture_seconds,
        }

    def _finish(self) -> int:
        """Print the last lines; the exit code."""
        assert self.schedule is not None
        assert self.images is not None
        code, lines = summary(
            self.manifest,
            self.schedule.outcome,
            pictures=len(self.images.test.ids),
            unreadable=len(self.images.unreadable),
            warnings=self.warnings.lines,
            seconds=self.deadline.elapsed(),
        )
        for line in lines:
            _log(line)
        return code

    def _end_hung_run(self, activity: str) -> int:
        """Called by the watchdog, which ends the process then."""
        if self.schedule is None or self.schedule.outcome.written is None:
            print(f"error: the limit came before there was a submission: {activity}", file=sys.stderr)
            return 1
        self.schedule.outcome.stopped = f"{activity}, which took too long"
        code = exit_code_with_submission(STOPPED)
        with contextlib.suppress(Exception):  # of any kind: the submission is there
            code = self._finish()
        return code


class _Warnings(logging.Handler):
    """Keeps and prints the warnings of the prediction."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        for name in (
            "imet_ray.prediction.predict",
            "kernel_builder.runtime.image_cache",
            "kernel_builder.runtime.checkpoints",
        ):
            logging.getLogger(name).handlers = [self]  # replaces those of an earlier kernel in the notebook

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        if text not in self.lines:
            self.lines.append(text)
            _log(text)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(text, flush=True)


def _inputs(given: Path | None) -> list[Path]:
    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"--input must be a folder, got {given}: name the one with the datasets in it")
        return [given]
    found = [Path(place) for place in INPUTS if Path(place).is_dir()]
    if not found:
        raise ConfigError(f"no input folder at {' or '.join(INPUTS)}: give --input DIR")
    return found[:1]


def _scratch(given: Path | None) -> Path:
    """Where decoded pictures go; the working directory if there is no folder for temporary files."""
    if given is not None:
        return given
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path()


def _process_seconds() -> float:
    """Seconds since this process began: importing torch counts. 0 if the system does not say, or not credibly."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        seconds = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    return seconds if 0 <= seconds <= LONGEST_START else 0.0


def _parse(argv: Sequence[str] | None, manifest: Manifest) -> argparse.Namespace:
    parser = Parser(prog="kernel.py", description=f"Predict with {manifest.ensemble}.", allow_abbrev=False)
    parser.add_argument("--input", metavar="DIR", type=Path, help=f"default: {' or '.join(INPUTS)}")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path(), help="default: here")
    parser.add_argument("--limit", metavar="9h", help=f"default: {manifest.limit:g} s")
    parser.add_argument("--reserve", metavar="5m", help=f"kept back; default: {manifest.reserve:g} s")
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        type=Path,
        help="for decoded pictures; nothing stays; default: where temporary files go",
    )
    parser.add_argument("--batch-size", metavar="N", type=positive, help="pictures; default: 64 views")
    parser.add_argument("--timing", metavar="FILE", type=Path, help="write what took how long, as JSON")
    parser.add_argument(
        "--workers", metavar="N", type=zero_or_more, help="loader processes; default: cores - 1 on a GPU"
    )
    if argv is None:
        argv = [] if "ipykernel" in sys.modules else sys.argv[1:]  # a notebook's own options are not ours
    return parser.parse_args(argv)
