"""The kernel: finds its weights and pictures, predicts what fits before the limit, and always leaves a submission.

Exit codes: 0 everything was predicted; 1 no submission; 2 a wrong option; else 64 plus, added up: 1 the limit came
before the last checkpoint, 2 checkpoints were left out, 4 pictures could not be read, 8 memory, the GPU or loader
processes failed and the kernel went on without, 16 the last checkpoints are not in the submission, for it could not be
written again. On Kaggle, where any code but 0 throws the submission away, one with a checkpoint in it, or that the
limit cut off, exits with 0, and the last line says the rest.
"""

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.command_line import Parser, exit_code, positive, zero_or_more
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.submission import write_submission
from imet_ray.storage.files import write_json
from imet_ray.units import duration
from kernel_builder.runtime.checkpoints import Checkpoints
from kernel_builder.runtime.device import usable_device
from kernel_builder.runtime.exit_status import CUT, told
from kernel_builder.runtime.exit_status import exit_code as ending_code
from kernel_builder.runtime.image_cache import PictureShelf
from kernel_builder.runtime.inputs import all_files, find_test
from kernel_builder.runtime.locate_weights import find_secret, find_weights
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.running_blend import Tally
from kernel_builder.runtime.schedule import Deadline, Run
from kernel_builder.runtime.watchdog import Watch

INPUTS = ("/kaggle/input", "../input")
LONGEST_START = 3600.0  # seconds: a process that claims more has another clock than /proc/uptime


def main(manifest: dict[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run the kernel; the exit code."""
    known = Manifest.model_validate(manifest)
    options = _parse(argv, known)
    return exit_code(lambda: _readable(options, known), "run it again")


def _readable(options: argparse.Namespace, manifest: Manifest) -> int:
    """A disk's faults in one line, too."""
    try:
        return _Kernel(options, manifest)()
    except OSError as error:
        raise StoreError(f"{error.filename or 'input or output'}: {error.strerror or error}") from error


class _Kernel:
    """One run, and the watch beside it, which may have to end it."""

    def __init__(self, options: argparse.Namespace, manifest: Manifest) -> None:
        self.options, self.manifest = options, manifest
        limit = duration(options.limit, "--limit") if options.limit else manifest.limit
        reserve = duration(options.reserve, "--reserve") if options.reserve else manifest.reserve
        self.deadline = Deadline(limit, reserve, time.monotonic, spent=_process_seconds())
        if self.deadline.left() <= 0:
            raise ConfigError("--limit must be longer than --reserve and the start: give more time")
        self.heard = _Heard()
        self.watch = Watch(self.deadline, reserve / 2, self._too_late, _say)
        self.run: Run | None = None
        self.shelf: PictureShelf | None = None
        self.checkpoints: Checkpoints | None = None
        self.target = options.output / "submission.csv"

    def __call__(self) -> int:
        self.watch.start()
        try:
            return self._predict()
        finally:
            self.watch.stop()

    def _predict(self) -> int:
        self.watch.tell("looking for pictures and weights")
        files = [path for root in _inputs(self.options.input) for path in all_files(root)]
        pictures = find_test(files)
        if len(pictures.samples) > 1:
            others = ", ".join(str(path.parent) for path in pictures.samples[1:])
            self.heard.note(f"the pictures of {pictures.samples[0].parent}, not those of {others}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.shelf = PictureShelf(pictures, _scratch(self.options.scratch), cores)
        self.run = Run(
            self.manifest, len(pictures.ids), self._open, self.deadline, self._publish, _say, self.watch.tell
        )
        before = self.target.read_bytes() if self.target.is_file() else None
        self.run.begin()
        try:
            self.checkpoints = self._checkpoints(files, cores)
        except BaseException:  # whoever forgot a data set shall see that, and no new submission
            self.run.outcome.written = None
            with contextlib.suppress(OSError):
                if before is None:
                    self.target.unlink(missing_ok=True)
                else:
                    self.target.write_bytes(before)
            raise
        _say(
            f"{self.manifest.ensemble}: {self.manifest.checkpoints} checkpoints of {len(self.manifest.members)} "
            f"members, {len(pictures.ids):,} pictures of {pictures.samples[0].parent}, on {self.checkpoints.device}; "
            f"started in {self.deadline.elapsed():.1f} s, {self.deadline.left():,.0f} s left"
        )
        self.run()
        if self.options.timing is not None:
            try:
                write_json(self.options.timing, self._timing())
            except StoreError as error:
                self.heard.note(str(error))
        return self._end()

    def _checkpoints(self, files: Sequence[Path], cores: int) -> Checkpoints:
        """All weights found, and their key tried."""
        assert self.shelf is not None
        self.watch.tell("checking the weights")
        found = find_weights(self.manifest, files)
        secret = find_secret(list(found.values()), self.manifest.key, files)
        device = usable_device()
        workers = self.options.workers
        return Checkpoints(
            self.manifest,
            found,
            secret,
            self.shelf,
            device=device,
            batch_size=self.options.batch_size,
            workers=workers if workers is not None else (cores - 1 if device.type == "cuda" else 0),
        )

    def _open(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        assert self.checkpoints is not None
        return self.checkpoints.open(member, weights)

    def _publish(self, tally: Tally) -> None:
        assert self.shelf is not None
        write_submission(
            self.target,
            self.shelf.pictures.ids,
            self.manifest.label_ids,
            tally.decoded(self.shelf.unreadable),
        )

    def _timing(self) -> dict[str, Any]:
        """What each part took, for whoever foretells a larger run."""
        assert self.run is not None
        assert self.shelf is not None
        outcome = self.run.outcome
        return {
            "pictures": len(self.shelf.pictures.ids),
            "batches": outcome.batches,
            "elapsed": self.deadline.elapsed(),
            "decoding": self.shelf.seconds,
            "writing": outcome.writing,
            "left": self.deadline.end - self.deadline.start,
            "whole": outcome.checkpoints == self.manifest.checkpoints,
            "checkpoints": outcome.picture_seconds,
        }

    def _end(self) -> int:
        """The last lines, and the exit code."""
        assert self.run is not None
        assert self.shelf is not None
        code, lines = told(
            self.manifest,
            self.run.outcome,
            pictures=len(self.shelf.pictures.ids),
            unreadable=len(self.shelf.unreadable),
            heard=self.heard.lines,
            seconds=self.deadline.elapsed(),
        )
        for line in lines:
            _say(line)
        return code

    def _too_late(self, doing: str) -> int:
        """Said by the watch, which ends the process then."""
        if self.run is None or self.run.outcome.written is None:
            print(f"error: the limit came before there was a submission: {doing}", file=sys.stderr)
            return 1
        self.run.outcome.stopped = f"{doing}, which took too long"
        code = ending_code(CUT)
        with contextlib.suppress(Exception):  # whatever it is, the submission is there
            code = self._end()
        return code


class _Heard(logging.Handler):
    """Keeps and prints warnings of the prediction."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        for name in (
            "imet_ray.prediction.predict",
            "kernel_builder.runtime.image_cache",
            "kernel_builder.runtime.device",
        ):
            logger = logging.getLogger(name)
            logger.handlers = [self]  # in a notebook, those of an earlier kernel are gone

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())

    def note(self, text: str) -> None:
        if text not in self.lines:
            self.lines.append(text)
            _say(text)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(text, flush=True)


def _inputs(given: Path | None) -> list[Path]:
    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"--input must be a folder, got {given}: name the one with the data sets in it")
        return [given]
    found = [Path(place) for place in INPUTS if Path(place).is_dir()]
    if not found:
        raise ConfigError(f"no input folder at {' or '.join(INPUTS)}: give --input DIR")
    return found[:1]


def _scratch(given: Path | None) -> Path:
    """Where pictures are decoded to; the working directory where there is no place for temporary files."""
    if given is not None:
        return given
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path()


def _process_seconds() -> float:
    """Since this process began: importing torch counts. 0 where that cannot be believed."""
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
