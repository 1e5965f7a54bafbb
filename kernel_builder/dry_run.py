"""Running a kernel here as Kaggle would, and foretelling how long it takes for another number of pictures."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from imet_ray.errors import ConfigError, StoreError
from imet_ray.units import clock
from kernel_builder.runtime.exit_status import CUT, SOMETHING
from kernel_builder.runtime.inputs import all_files, find_test

TIMING = "timing.json"
FEWEST_BATCHES = 10  # that a rate is taken from


@dataclass(frozen=True)
class Timing:
    """What a run of a kernel took; its `--timing` file."""

    pictures: int
    batches: int  # of a checkpoint
    elapsed: float  # seconds of all of it
    decoding: float  # of that, for all pictures
    writing: float  # of that, of the submission, again and again
    left: float  # that there were at most: limit less reserve
    whole: bool  # no checkpoint was left out
    checkpoints: list[tuple[str, float]]  # member, seconds a picture; in the order of prediction

    def verdict(self, images: int) -> tuple[bool, str]:
        """Whether that many pictures fit, and how long they would take."""
        a_picture = self.decoding / self.pictures + self.writing / self.pictures
        fixed = max(0.0, self.elapsed - (a_picture + sum(s for _, s in self.checkpoints)) * self.pictures)
        total = fixed + (a_picture + sum(s for _, s in self.checkpoints)) * images
        text = f"{images:,} pictures would take {clock(total)} on this machine, of {clock(self.left)}"
        if total < self.left:
            return True, f"{text}: fits"
        spent, done = fixed + a_picture * images, 0
        for _, seconds in self.checkpoints:
            spent += seconds * images
            done += spent < self.left
        return False, (
            f"{text}: does NOT fit; about {done} of {len(self.checkpoints)} checkpoints would be predicted, and the "
            f"submission written from these"
        )


def refuse_data(data: Path) -> None:
    """Say that there are no data before anything is built.

    Raises:
        ImetError: naming what is not there.
    """
    if not (data / "sample_submission.csv").is_file():
        raise ConfigError(
            f"--dry-run {data} has no sample_submission.csv: name a competition's data directory"
        )
    find_test(all_files(data))


def dry_run(kernel: Path, datasets: Path, data: Path, out: Path, images: int | None) -> int:
    """Run it with `data` as the competition's; the kernel's exit code, or that of one that the limit cuts off.

    Args:
        out: a folder to make, where the submission stays.
        images: pictures of the run to foretell; those of `data` if None.

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
            f"{timing.pictures:,} pictures are too few to foretell the time of {images:,}: they made {timing.batches} "
            f"batches a checkpoint, {FEWEST_BATCHES} are needed"
        )
    else:
        fits, text = timing.verdict(images)
        print(text)
        return code if fits else code or SOMETHING + CUT
    return code


def read_timing(path: Path) -> Timing:
    """What the kernel wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Timing(**found | {"checkpoints": [tuple(one) for one in found["checkpoints"]]})
