"""The kernel that trains one trial, epoch by epoch until it is done or the limit comes; it goes on from its output.

Exit codes: 0 the trial is trained and its held-out fold predicted; 1 nothing was trained; 2 a wrong option; else 64
plus the sum of: 1 the limit came before the last epoch; 2 the trial failed for its own reasons; 4 the held-out fold
is not predicted. On Kaggle any code but 0 throws the output away. There the code is 0 if an epoch was trained, and the
last line says the rest.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imet_ray.command_line import Parser, exit_code, zero_or_more
from imet_ray.cores import usable_cores
from imet_ray.data.training_data import TrainingData
from imet_ray.data.views import count_views
from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.predict import predict_checkpoint
from imet_ray.startup import keep_freed_memory
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import TrialResult, read_result
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics
from imet_ray.units import clock, duration, user_path
from kernel_builder.runtime.checkpoints import usable_device
from kernel_builder.runtime.exit_status import exit_code_with_submission
from kernel_builder.runtime.find_training import find_data, go_on_from
from kernel_builder.runtime.inputs import all_files
from kernel_builder.runtime.locate_weights import find_secret, find_weights, read_weights
from kernel_builder.runtime.process import (
    INPUTS,
    Warnings,
    disk_faults_in_one_line,
    input_folder,
    log,
    process_seconds,
)
from kernel_builder.runtime.schedule import Deadline
from kernel_builder.runtime.training_manifest import TrainingManifest
from kernel_builder.runtime.watchdog import Watchdog

LIMIT, FAILED, NO_OOF = 1, 2, 4
MARGIN = 1.2  # so many times as long as the longest epoch so far the next one may take


def main(manifest: dict[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run the kernel; the exit code."""
    checked = TrainingManifest.model_validate(manifest)
    options = _parse(argv, checked)
    return exit_code(lambda: _run(options, checked), "run it again")


def _run(options: argparse.Namespace, manifest: TrainingManifest) -> int:
    with disk_faults_in_one_line():
        return _Kernel(options, manifest).run()


class _LimitError(Exception):
    """No further epoch fits."""


class _Kernel:
    """One run, and the watchdog beside it, which may have to end it."""

    def __init__(self, options: argparse.Namespace, manifest: TrainingManifest) -> None:
        self.options, self.manifest, self.spec = options, manifest, manifest.spec
        limit = duration(options.limit, "--limit") if options.limit else manifest.limit
        reserve = duration(options.reserve, "--reserve") if options.reserve else manifest.reserve
        self.deadline = Deadline(limit, reserve, time.monotonic, spent=process_seconds())
        if self.deadline.left() <= 0:
            raise ConfigError("--limit must be longer than --reserve and the start: give more time")
        self.watchdog = Watchdog(self.deadline, reserve / 2, self._end_hung_run, log)
        self.trial = RunDirectory(options.output.resolve()).trial(self.spec.trial_id)
        self.longest = self.ended = 0.0  # seconds: the longest epoch; when the last one ended
        Warnings()

    def run(self) -> int:
        self.watchdog.start()
        try:
            scratch = self.options.scratch or Path(tempfile.gettempdir())
            with tempfile.TemporaryDirectory(dir=scratch, prefix="imet_ray-") as place:
                return self._train(Cache(Path(place)))
        finally:
            self.watchdog.stop()
            self.trial.files.remove(self.trial.start)

    def _train(self, cache: Cache) -> int:
        self.watchdog.note("looking for data")
        files = all_files(input_folder(self.options.input))
        if (earlier := go_on_from(files, self.spec, self.trial)) is not None:
            log(f"goes on from {earlier}")
        data = find_data(files, self.spec, self.manifest.folds, cache)
        self._find_start(files)
        self.watchdog.note("decoding pictures")
        cores = usable_cores()
        data.split.pack(self.spec.pack_short_side, workers=cores)
        device = usable_device()
        torch.set_num_threads(min(torch.get_num_threads(), cores))  # torch knows no quotas
        keep_freed_memory()
        workers = self.options.workers
        if workers is None:
            workers = cores - 1 if device.type == "cuda" else 0
        log(
            f"{self.spec.title}: {len(data.split.ids):,} pictures of {data.split.root}, on {device}; started in "
            f"{self.deadline.elapsed():.1f} s, {self.deadline.left():,.0f} s left"
        )
        self.watchdog.note("the first epoch")
        self.ended = self.deadline.clock()
        try:
            result = train_trial(
                self.spec, data, self.trial, device=device, loader_workers=workers, report=self._after_epoch
            )
        except _LimitError:
            return self._finish(None, LIMIT)
        if result.status == "failed":
            return self._finish(result, FAILED)
        return self._finish(result, 0 if self._predict(data, device, workers) else NO_OOF)

    def _find_start(self, files: Sequence[Path]) -> None:
        """Put the untrained weights beside the trial, unless it was trained already."""
        start = self.manifest.start
        if start is None or self._history():
            return
        self.watchdog.note("checking the weights")
        found = find_weights([start], files)[start.trial]
        secret = find_secret([found], self.manifest.key, files) if self.manifest.encrypted else None
        with self.trial.files.writing(self.trial.start) as temporary:
            temporary.write_bytes(read_weights(found, secret))

    def _after_epoch(self, metrics: EpochMetrics) -> None:
        """Report it; stop if the next one would end too late. All of the epoch is on disk."""
        now, epochs = self.deadline.clock(), self.spec.recipe.epochs
        self.longest, self.ended = max(self.longest, now - self.ended), now
        title = metric_named(self.spec.metric).title
        log(
            f"epoch {metrics['epoch']}/{epochs}  loss {metrics['train_loss']:.4f}  valid {metrics['valid_loss']:.4f}  "
            f"{title} {metrics['score']:.4f}  {clock(max(0.0, self.deadline.left()))} left"
        )
        if metrics["epoch"] < epochs and self.deadline.left() < MARGIN * self.longest:
            raise _LimitError
        self.watchdog.note(f"epoch {metrics['epoch'] + 1} of {epochs}")

    def _predict(self, data: TrainingData, device: torch.device, workers: int) -> bool:
        """Predict the held-out fold; False if that would end too late. The next sweep then does it."""
        seconds = max((row["evaluate_s"] for row in self._history()), default=0.0)  # by one view
        if self.deadline.left() < MARGIN * seconds * count_views(self.spec.recipe.views):
            return False
        self.watchdog.note("predicting the held-out fold")
        rows = data.rows(self.spec.fold, held_out=True)
        predict_checkpoint(
            self.trial,
            data.split,
            rows,
            path=self.trial.oof,
            label_ids=data.label_ids,
            device=device,
            workers=workers,
        )
        return True

    def _history(self) -> list[EpochMetrics]:
        return read_json_lines(self.trial.metrics)

    def _finish(self, result: TrialResult | None, wrong: int) -> int:
        """Print the last line; the exit code."""
        title, epochs = metric_named(self.spec.metric).title, len(self._history())
        said = [f"{epochs} of {self.spec.recipe.epochs} epochs"]
        if result is not None and result.status == "complete":
            said.append(f"{title} {result.score:.4f}")
        if wrong & LIMIT:
            said.append("stopped by the limit: run the kernel again with this output attached to it")
        if wrong & FAILED and result is not None:
            said.append(f"failed: {result.reason}")
        if wrong & NO_OOF:
            said.append("the held-out fold is not predicted, which the sweep does")
        log(f"{self.trial.root}: {'; '.join(said)}; {clock(self.deadline.elapsed())}")
        return exit_code_with_submission(wrong)

    def _end_hung_run(self, activity: str) -> int:
        """Called by the watchdog, which ends the process then."""
        with contextlib.suppress(Exception):  # of any kind: what is on disk is whole
            if self.trial.result.exists():
                return self._finish(read_result(self.trial), NO_OOF)
            if self._history():
                return self._finish(None, LIMIT)
        print(f"error: the limit came before an epoch had ended: {activity}: give more time", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None, manifest: TrainingManifest) -> argparse.Namespace:
    parser = Parser(prog="kernel.py", description=f"Train {manifest.spec.title}.", allow_abbrev=False)
    add = parser.add_argument
    add("--input", metavar="DIR", type=user_path, help=f"default: {' or '.join(INPUTS)}")
    add("--output", metavar="DIR", type=user_path, default=Path(), help="default: here")
    add("--limit", metavar="9h", help=f"default: {manifest.limit:g} s")
    add("--reserve", metavar="10m", help=f"kept back; default: {manifest.reserve:g} s")
    scratch = "for decoded pictures; nothing stays; default: where temporary files go"
    add("--scratch", metavar="DIR", type=user_path, help=scratch)
    add("--workers", metavar="N", type=zero_or_more, help="loader processes; default: cores - 1 on a GPU")
    if argv is None:
        argv = [] if "ipykernel" in sys.modules else sys.argv[1:]  # a notebook's own options are not ours
    return parser.parse_args(argv)
