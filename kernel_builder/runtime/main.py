"""The kernel: finds its weights and pictures, predicts what fits before the limit, and always leaves a submission.

Exit codes: 0 everything was predicted; 1 no submission; 2 a wrong option; else 64 plus, added up: 1 the limit came
before the last checkpoint, 2 checkpoints were left out, 4 pictures could not be read, 8 memory or loader processes
failed and the kernel went on without. On Kaggle, where any code but 0 throws the submission away, a valid one exits
with 0, and the last line says the rest.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from imet_ray.command_line import Parser, exit_code, positive
from imet_ray.durations import duration
from imet_ray.errors import ConfigError, StoreError
from imet_ray.models import build_model
from imet_ray.predict import EVAL_BATCH, compute_dtype, predicted_batches
from imet_ray.store import write_json
from imet_ray.submission import write_submission
from kernel_builder.runtime.inputs import all_files, check_secret, find_test, find_weights, read_weights
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.pictures import PictureShelf
from kernel_builder.runtime.schedule import Deadline, Outcome, Run
from kernel_builder.runtime.tally import Tally

KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # set where Kaggle runs it
INPUTS = ("/kaggle/input", "../input")
CUT, LEFT_OUT, UNREADABLE, FELL_BACK = 1, 2, 4, 8


def main(manifest: dict[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run the kernel; the exit code."""
    known = Manifest.model_validate(manifest)
    options = _parse(argv, known)
    return exit_code(lambda: _readable(options, known), "run it again")


def _readable(options: argparse.Namespace, manifest: Manifest) -> int:
    """A disk's faults in one line, too."""
    try:
        return _run(options, manifest)
    except OSError as error:
        raise StoreError(f"{error.filename or 'input or output'}: {error.strerror or error}") from error


def _run(options: argparse.Namespace, manifest: Manifest) -> int:
    deadline = Deadline(
        duration(options.limit, "--limit") if options.limit else manifest.limit,
        duration(options.reserve, "--reserve") if options.reserve else manifest.reserve,
        time.monotonic,
        spent=_process_seconds(),
    )
    if deadline.left() <= 0:
        raise ConfigError("--limit must be longer than --reserve and the start: give more time")
    files = [path for root in _inputs(options.input) for path in all_files(root)]
    pictures = find_test(files)
    found = find_weights(manifest, files)
    for one in found.values():
        if one.encrypted:
            check_secret(one, manifest.key, files)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shelf = PictureShelf(pictures, options.scratch, cores)
    sizes = [member.pack_short_side for member in manifest.members]
    target = options.output / "submission.csv"
    heard = _Heard()
    print(
        f"{manifest.ensemble}: {manifest.checkpoints} checkpoints of {len(manifest.members)} members, "
        f"{len(pictures.ids):,} pictures, on {device}; started in {deadline.elapsed():.1f} s, "
        f"{deadline.left():,.0f} s left",
        flush=True,
    )

    def batches(member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        model = build_model(
            member.recipe.architecture,
            n_labels=len(manifest.label_ids),
            image_size=member.recipe.image_size,
            dropout=member.recipe.dropout,
            weights="none",
        )
        plain = read_weights(found[weights.trial], manifest.key, files)
        try:
            model.load_state_dict(safetensors.torch.load(plain))
        except Exception as error:  # each fault of such a file has an exception of its own
            raise StoreError(f"{weights.plain.name} does not fit its architecture: {error}") from error
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield from predicted_batches(
            model,
            shelf.of(member.pack_short_side, keep=sizes[manifest.members.index(member) :]),
            np.arange(len(pictures.ids)),
            views=member.recipe.views,
            image_size=member.recipe.image_size,
            batch_size=options.batch_size or max(1, EVAL_BATCH // len(member.recipe.views)),
            device=device,
            autocast=compute_dtype(device, member.recipe.precision),
            workers=options.workers
            if options.workers is not None
            else (cores - 1 if device.type == "cuda" else 0),
        )

    def publish(tally: Tally) -> None:
        write_submission(target, pictures.ids, manifest.label_ids, tally.decoded(shelf.unreadable))

    outcome = Run(manifest, len(pictures.ids), batches, deadline, publish, _say)()
    if options.timing is not None:
        write_json(options.timing, _timing(manifest, outcome, shelf, deadline))
    return _end(manifest, outcome, len(pictures.ids), len(shelf.unreadable), heard.lines, deadline.elapsed())


def _timing(manifest: Manifest, outcome: Outcome, shelf: PictureShelf, deadline: Deadline) -> dict[str, Any]:
    """What each checkpoint took, for whoever foretells a larger run."""
    rates = outcome.picture_seconds
    return {
        "pictures": len(shelf.pictures.ids),
        "elapsed": deadline.elapsed(),
        "decoding": shelf.seconds,
        "left": deadline.end - deadline.start,
        "whole": outcome.checkpoints == manifest.checkpoints,
        "checkpoints": [(m.name, rates.get(m.name, 0.0)) for m in manifest.members for _ in m.weights],
    }


def _end(
    manifest: Manifest, outcome: Outcome, pictures: int, unreadable: int, heard: list[str], seconds: float
) -> int:
    """The last lines, and the exit code."""
    for name, rate in outcome.picture_seconds.items():
        print(f"{name}: {1000 * rate:.2f} ms a picture and checkpoint")
    told = []
    if outcome.stopped:
        told.append(f"stopped by the limit at {outcome.stopped}")
    if outcome.failed:
        dropped = f", members dropped: {', '.join(outcome.dropped)}" if outcome.dropped else ""
        told.append(f"{len(outcome.failed)} checkpoints left out: {'; '.join(outcome.failed)}{dropped}")
    if unreadable:
        told.append(f"{unreadable:,} pictures could not be read and have the most frequent labels")
    told += heard
    if outcome.checkpoints == 0 and not outcome.stopped:
        told.append("nothing but the most frequent labels: no checkpoint could be used")
    code = (
        CUT * bool(outcome.stopped)
        | LEFT_OUT * bool(outcome.failed)
        | UNREADABLE * bool(unreadable)
        | FELL_BACK * bool(heard)
    )
    print(
        f"submission.csv: {outcome.checkpoints} of {manifest.checkpoints} checkpoints, {pictures:,} pictures, "
        f"{seconds:.1f} s" + "".join(f"; {text}" for text in told),
        flush=True,
    )
    return 0 if code == 0 or os.environ.get(KAGGLE) else 64 + code


class _Heard(logging.Handler):
    """Keeps and prints warnings of the prediction."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        for name in ("imet_ray.predict", "kernel_builder.runtime.pictures"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.lines:
            self.lines.append(text)
            _say(text)


def _say(text: str) -> None:
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


def _process_seconds() -> float:
    """Since this process began: importing torch counts."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


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
        default=Path(tempfile.gettempdir()),
        help="for decoded pictures; nothing stays",
    )
    parser.add_argument("--batch-size", metavar="N", type=positive, help="pictures; default: 64 views")
    parser.add_argument("--timing", metavar="FILE", type=Path, help="write what took how long, as JSON")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="loader processes; default: cores - 1 on a GPU"
    )
    if argv is None:
        argv = [] if "ipykernel" in sys.modules else sys.argv[1:]  # a notebook's own options are not ours
    return parser.parse_args(argv)
