"""The kernel: finds its weights and pictures, predicts what fits before the limit, and always leaves a submission.

Exit codes: 0 everything was predicted; 1 no submission; 2 a wrong option; else 64 plus the sum of: 1 the limit came
before the last checkpoint; 2 checkpoints were left out; 4 pictures could not be read; 8 memory, the GPU or loader
processes failed and the kernel went on without, or there are the pictures of two competitions; 16 the last checkpoints
are not in the submission, because it could not be written again. On Kaggle any code but 0 throws the submission away.
There the code is 0 if the submission has a checkpoint in it or the limit stopped the run, and the last line says the
rest.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imet_ray.command_line import Parser, exit_code, positive, zero_or_more
from imet_ray.cores import usable_cores
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.predict import Inference, predict_batches
from imet_ray.prediction.submission import write_submission
from imet_ray.startup import keep_freed_memory
from imet_ray.storage.files import write_json
from imet_ray.units import duration, user_path
from kernel_builder.runtime.checkpoints import load_model, usable_device
from kernel_builder.runtime.exit_status import STOPPED, Timing, exit_code_with_submission, summary
from kernel_builder.runtime.image_cache import ImageCache
from kernel_builder.runtime.inputs import all_files, find_test
from kernel_builder.runtime.locate_weights import WeightsReader, find_secret, find_weights
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.process import (
    INPUTS,
    Warnings,
    disk_faults_in_one_line,
    input_folder,
    log,
    process_seconds,
)
from kernel_builder.runtime.running_blend import RunningBlend
from kernel_builder.runtime.schedule import Deadline, Schedule
from kernel_builder.runtime.watchdog import Watchdog

CHECKING = "checking the weights"


def main(manifest: dict[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run the kernel; the exit code."""
    checked = Manifest.model_validate(manifest)
    options = _parse(argv, checked)
    return exit_code(lambda: _run(options, checked), "run it again")


def _run(options: argparse.Namespace, manifest: Manifest) -> int:
    with disk_faults_in_one_line():
        return _Kernel(options, manifest).run()


class _Kernel:
    """One run, and the watchdog beside it, which may have to end it."""

    def __init__(self, options: argparse.Namespace, manifest: Manifest) -> None:
        self.options, self.manifest = options, manifest
        limit = duration(options.limit, "--limit") if options.limit else manifest.limit
        reserve = duration(options.reserve, "--reserve") if options.reserve else manifest.reserve
        self.deadline = Deadline(limit, reserve, time.monotonic, spent=process_seconds())
        if self.deadline.left() <= 0:
            raise ConfigError("--limit must be longer than --reserve and the start: give more time")
        self.warnings = Warnings()
        self.watchdog = Watchdog(self.deadline, reserve / 2, self._end_hung_run, log)
        self.target = options.output / "submission.csv"
        self.schedule: Schedule | None = None
        # set while the kernel starts
        self.images: ImageCache
        self.reader: WeightsReader
        self.inference: dict[str, Inference]  # by member: what failed once is not tried again

    def run(self) -> int:
        self.watchdog.start()
        try:
            return self._predict()
        finally:
            self.watchdog.stop()

    def _predict(self) -> int:
        self.watchdog.note("looking for pictures")
        files = all_files(input_folder(self.options.input))
        test = find_test(files, self.manifest.competition)
        cores = usable_cores()
        self.images = ImageCache(test, self.options.scratch or Path(tempfile.gettempdir()), cores)
        self.schedule = Schedule(
            self.manifest, len(test.ids), self.deadline, self._publish, log, self.watchdog.note
        )
        self._find_weights(files)
        self.watchdog.note("writing the first submission")
        self.schedule.begin()
        device = self._choose_inference(cores)
        log(
            f"{self.manifest.ensemble}: {len(self.manifest.weights)} checkpoints of {len(self.manifest.members)} "
            f"members, {len(test.ids):,} pictures of {test.files[0].parent}, on {device}; "
            f"started in {self.deadline.elapsed():.1f} s, {self.deadline.left():,.0f} s left"
        )
        self.schedule.run(self._open)
        if self.options.timing is not None:
            try:
                write_json(self.options.timing, self._timing(self.schedule).model_dump())
            except StoreError as error:
                self.warnings.add(str(error))
        return self._finish(self.schedule)

    def _find_weights(self, files: Sequence[Path]) -> None:
        """All of them, and their key tried."""
        self.watchdog.note(CHECKING)
        found = find_weights(self.manifest.weights, files)
        secret = None
        if self.manifest.encrypted:
            secret = find_secret(list(found.values()), self.manifest.key, files)
        self.reader = WeightsReader(found, secret)

    def _choose_inference(self, cores: int) -> torch.device:
        """The device, and for each member how it predicts there."""
        self.watchdog.note("trying the device")
        device = usable_device()
        torch.set_num_threads(min(torch.get_num_threads(), cores))  # torch knows no quotas
        keep_freed_memory()
        workers = self.options.workers
        if workers is None:
            workers = cores - 1 if device.type == "cuda" else 0
        self.inference = {
            member.name: Inference.of(member.recipe, device, workers=workers, views=self.manifest.views)
            for member in self.manifest.members
        }
        for how in self.inference.values():
            how.batch_size = self.options.batch_size or how.batch_size
        return device

    def _open(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        """Set up a checkpoint and its pictures. Its batches are (b, C) float16, in order."""
        self.reader.begin(weights.trial)
        members, order = self.manifest.members, self.manifest.weights
        needed = {other.pack_short_side for other in members[members.index(member) :]}
        pictures = self.images.get(member.pack_short_side, keep=needed)
        how = self.inference[member.name]
        plain = self.reader.take(weights.trial)
        model = load_model(member.recipe, len(self.manifest.label_ids), plain, how.device)
        for following in order[order.index(weights) + 1 :][:1]:
            self.reader.begin(following.trial)
        return predict_batches(model, pictures, np.arange(len(self.images.test.ids)), how)

    def _publish(self, blend: RunningBlend) -> None:
        decoded = blend.decoded(self.images.unreadable)
        test = self.images.test
        write_submission(self.target, test.ids, self.manifest.label_ids, decoded, header=test.header)

    def _timing(self, schedule: Schedule) -> Timing:
        outcome = schedule.outcome
        return Timing(
            pictures=schedule.n,
            batches=outcome.batches,
            elapsed=self.deadline.elapsed(),
            decoding=self.images.seconds,
            writing=outcome.writing,
            left=self.deadline.end - self.deadline.start,
            whole=outcome.checkpoints == len(self.manifest.weights),
            checkpoints=outcome.picture_seconds,
        )

    def _finish(self, schedule: Schedule) -> int:
        """Print the last lines; the exit code."""
        code, lines = summary(
            self.manifest,
            schedule.outcome,
            pictures=schedule.n,
            unreadable=[self.images.test.ids[row] for row in sorted(self.images.unreadable)],
            warnings=self.warnings.lines,
            seconds=self.deadline.elapsed(),
        )
        for line in lines:
            log(line)
        return code

    def _end_hung_run(self, activity: str) -> int:
        """Called by the watchdog, which ends the process then."""
        if self.schedule is not None and activity == CHECKING:
            with contextlib.suppress(Exception):  # of any kind: there is an error then
                self.schedule.begin()
        if self.schedule is None or self.schedule.outcome.written is None:
            print(f"error: the limit came before there was a submission: {activity}", file=sys.stderr)
            return 1
        self.schedule.outcome.stopped = f"{activity}, which took too long"
        code = exit_code_with_submission(STOPPED)
        with contextlib.suppress(Exception):  # of any kind: the submission is there
            code = self._finish(self.schedule)
        return code


def _parse(argv: Sequence[str] | None, manifest: Manifest) -> argparse.Namespace:
    parser = Parser(prog="kernel.py", description=f"Predict with {manifest.ensemble}.", allow_abbrev=False)
    add = parser.add_argument
    add("--input", metavar="DIR", type=user_path, help=f"default: {' or '.join(INPUTS)}")
    add("--output", metavar="DIR", type=user_path, default=Path(), help="default: here")
    add("--limit", metavar="9h", help=f"default: {manifest.limit:g} s")
    add("--reserve", metavar="5m", help=f"kept back; default: {manifest.reserve:g} s")
    scratch = "for decoded pictures; nothing stays; default: where temporary files go"
    add("--scratch", metavar="DIR", type=user_path, help=scratch)
    add("--batch-size", metavar="N", type=positive, help="pictures; default: 64 views")
    add("--timing", metavar="FILE", type=user_path, help="write what took how long, as JSON")
    add("--workers", metavar="N", type=zero_or_more, help="loader processes; default: cores - 1 on a GPU")
    if argv is None:
        argv = [] if "ipykernel" in sys.modules else sys.argv[1:]  # a notebook's own options are not ours
    return parser.parse_args(argv)
