"""Runs a kernel here as Kaggle would, and predicts how long it takes for another number of pictures."""

import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from imet_ray.errors import ConfigError, StoreError
from imet_ray.units import clock
from kernel_builder.runtime.exit_status import SOMETHING_WRONG, STOPPED
from kernel_builder.runtime.inputs import all_files, find_test

TIMING = "timing.json"
FEWEST_BATCHES = 10  # that a rate is taken from


@dataclass(frozen=True)
class Timing:
    """How long a run of a kernel took; its `--timing` file."""

    pictures: int
    batches: int  # per checkpoint
    elapsed: float  # seconds of the whole run
    decoding: float  # seconds of it spent on decoding all pictures
    writing: float  # seconds of it spent on writing the submission, again and again
    left: float  # seconds that the run could have taken: limit minus reserve
    whole: bool  # every checkpoint was predicted
    checkpoints: list[tuple[str, float]]  # member, seconds per picture; in the order of prediction

    def verdict(self, images: int) -> tuple[bool, str]:
        """Whether so many pictures fit, and how long they would take."""
        rates = [seconds for _, seconds in self.checkpoints]
        shared = (self.decoding + self.writing) / self.pictures  # seconds per picture
        fixed = max(0.0, self.elapsed - (shared + sum(rates)) * self.pictures)
        total = fixed + (shared + sum(rates)) * images
        text = f"{images:,} pictures would take {clock(total)} on this machine, of {clock(self.left)}"
        if total < self.left:
            return True, f"{text}: fits"
        after_each = [fixed + seconds * images for seconds in accumulate(rates, initial=shared)][1:]
        done = sum(seconds < self.left for seconds in after_each)
        return False, (
            f"{text}: does NOT fit; about {done} of {len(rates)} checkpoints would be predicted, and the "
            f"submission written from these"
        )


def refuse_data(data: Path) -> None:
    """Report missing data before anything is built.

    Raises:
        ImetError: naming what is missing.
    """
    if not (data / "sample_submission.csv").is_file():
        raise ConfigError(
            f"--dry-run {data} has no sample_submission.csv: name a competition's data directory"
        )
    find_test(all_files(data))


def dry_run(kernel: Path, datasets: Path, data: Path, out: Path, images: int | None) -> int:
    """Run the kernel with `data` as the competition's.

    Args:
        out: a folder to make, where the submission stays.
        images: the number of pictures to predict the time for; None: that of `data`.

    Returns:
        The kernel's exit code, or that of a kernel stopped by the limit if the time for `images` does not fit.

    Raises:
        StoreError: if the folder cannot be made.
    """
    place = out / "input"
    try:
        place.mkdir(parents=True)
        (place / "weights").symlink_to(datasets.resolve())
        (place / "data").symlink_to(data.resolve())
    except OSError as error:
        raise StoreError(f"{error.filename or place}: {error.strerror or error}") from error
    command = [sys.executable, str(kernel.resolve()), "--input", str(place.resolve()), "--output", "."]
    code = subprocess.run([*command, "--timing", TIMING], cwd=out, check=False).returncode
    if not (out / TIMING).exists():
        return code
    timing = read_timing(out / TIMING)
    images = images or timing.pictures
    if not timing.whole:
        print("checkpoints were left out: how long all of them take is not known")
    elif timing.batches < FEWEST_BATCHES and images != timing.pictures:
        print(
            f"{timing.pictures:,} pictures are too few to predict the time of {images:,}: they made {timing.batches} "
            f"batches per checkpoint, {FEWEST_BATCHES} are needed"
        )
    else:
        fits, text = timing.verdict(images)
        print(text)
        if not fits:
            return code or SOMETHING_WRONG + STOPPED
    return code


def read_timing(path: Path) -> Timing:
    """Read what the kernel wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Timing(**found | {"checkpoints": [tuple(one) for one in found["checkpoints"]]})
