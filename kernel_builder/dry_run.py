"""Runs a kernel here as Kaggle would, and predicts how long it takes for another number of pictures."""

import subprocess
import sys
from itertools import accumulate
from pathlib import Path

from imet_ray.data.competition_files import sample_in
from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.checked_read import read_model
from imet_ray.units import clock
from kernel_builder.runtime.exit_status import SOMETHING_WRONG, STOPPED, Timing
from kernel_builder.runtime.inputs import all_files, find_test

TIMING = "timing.json"
FEWEST_BATCHES = 10  # that a rate is taken from


def verdict(timing: Timing, images: int) -> tuple[bool, str]:
    """Whether so many pictures fit, and how long they would take."""
    rates = [seconds for _, seconds in timing.checkpoints]
    shared = (timing.decoding + timing.writing) / timing.pictures  # seconds per picture
    fixed = max(0.0, timing.elapsed - (shared + sum(rates)) * timing.pictures)
    total = fixed + (shared + sum(rates)) * images
    text = f"{images:,} pictures would take {clock(total)} on this machine, of {clock(timing.left)}"
    if total < timing.left:
        return True, f"{text}: fits"
    after_each = [fixed + seconds * images for seconds in accumulate(rates, initial=shared)][1:]
    done = sum(seconds < timing.left for seconds in after_each)
    return False, (
        f"{text}: does NOT fit; about {done} of {len(rates)} checkpoints would be predicted, and the "
        f"submission written from these"
    )


def refuse_data(data: Path) -> None:
    """Report missing data before anything is built.

    Raises:
        ImetError: naming what is missing.
    """
    if not data.is_dir() or sample_in(data) is None:
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
    timing = read_model(out / TIMING, Timing)
    images = images or timing.pictures
    if not timing.whole:
        print("checkpoints were left out: how long all of them take is not known")
    elif timing.batches < FEWEST_BATCHES and images != timing.pictures:
        print(
            f"{timing.pictures:,} pictures are too few to predict the time of {images:,}: they made {timing.batches} "
            f"batches per checkpoint, {FEWEST_BATCHES} are needed"
        )
    else:
        fits, text = verdict(timing, images)
        print(text)
        if not fits:
            return code or SOMETHING_WRONG + STOPPED
    return code
