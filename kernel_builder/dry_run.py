"""Running a kernel here as Kaggle would, and foretelling how long it takes for another number of pictures."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from imet_ray.durations import clock
from imet_ray.errors import ConfigError, StoreError

TIMING = "timing.json"


@dataclass(frozen=True)
class Timing:
    """What a run of a kernel took; its `--timing` file."""

    pictures: int
    elapsed: float  # seconds of all of it
    decoding: float  # of that, for all pictures
    left: float  # that there were at most: limit less reserve
    whole: bool  # no checkpoint was left out
    checkpoints: list[tuple[str, float]]  # member, seconds a picture; in the order of prediction

    def verdict(self, images: int) -> str:
        """How long that many pictures would take, and whether they fit."""
        a_picture = self.decoding / self.pictures + sum(seconds for _, seconds in self.checkpoints)
        fixed = max(0.0, self.elapsed - a_picture * self.pictures)  # start, weights, writing
        total = fixed + a_picture * images
        told = f"{images:,} pictures would take {clock(total)} on this machine, of {clock(self.left)}"
        if total < self.left:
            return f"{told}: fits"
        spent, done = fixed + self.decoding / self.pictures * images, 0
        for _, seconds in self.checkpoints:
            spent += seconds * images
            done += spent < self.left
        return (
            f"{told}: does NOT fit; about {done} of {len(self.checkpoints)} checkpoints would be predicted, and the "
            f"submission written from these"
        )


def dry_run(kernel: Path, datasets: Path, data: Path, out: Path, images: int | None) -> int:
    """Run it with `data` as the competition's; the kernel's exit code.

    Args:
        out: a folder to make, where the submission stays.
        images: pictures of the run to foretell; those of `data` if None.

    Raises:
        ConfigError: if there are no data.
        StoreError: if the folder cannot be made.
    """
    if not (data / "sample_submission.csv").is_file():
        raise ConfigError(
            f"--dry-run {data} has no sample_submission.csv: name a competition's data directory"
        )
    place = out / "input"
    try:
        place.mkdir(parents=True)
        (place / "weights").symlink_to(datasets.resolve())
        (place / "data").symlink_to(data.resolve())
    except OSError as error:
        raise StoreError(f"{error.filename or place}: {error.strerror or error}") from error
    command = [sys.executable, str(kernel.resolve()), "--input", str(place.resolve()), "--output", "."]
    code = subprocess.run([*command, "--timing", TIMING], cwd=out, check=False).returncode
    if (out / TIMING).exists():
        timing = read_timing(out / TIMING)
        if timing.whole:
            print(timing.verdict(timing.pictures if images is None else images))
        else:
            print("checkpoints were left out: how long all of them take is not known")
    return code


def read_timing(path: Path) -> Timing:
    """What the kernel wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Timing(**found | {"checkpoints": [tuple(one) for one in found["checkpoints"]]})
