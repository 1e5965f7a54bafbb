"""`--tag` that is stopped at moments that are drawn, by signals or by a full disk, and goes on; a script of its own.

Each command is forked from this process, which has imported all and loaded the models. What lies there after it is
kept beside it, for tests to look at.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet  # noqa: F401  # here once, not in each fork
import torch

import imet_ray
import imet_ray.commands.setup
import imet_ray.commands.tag
import imet_ray.prediction.tagger
import launch
from imet_ray.prediction.tagger import Tagger
from imet_ray.storage import files, locks
from imet_ray.tagging import collection, outputs, sidecars, tables

WRITERS = {module.__file__ for module in (files, locks, outputs, tables)}  # and of the sidecars' module:
SIDECARS = {(sidecars.__file__, name) for name in ("write", "_put")}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PAGE = 4096  # bytes: what tmpfs counts in


class Place:
    """A folder in which commands are called, and what was there after each of them."""

    def __init__(self, root: Path, pictures: Path, argv: Sequence[str]) -> None:
        self.root, self.here, self.argv = root, root / "here", argv
        shutil.copytree(pictures, self.here / "pictures")
        self.calls: list[dict[str, Any]] = []

    def call(self, stop: tuple[int, int] | None = None, argv: Sequence[str] = ()) -> dict[str, Any]:
        """Its code (-9: killed), what it printed, and how many lines of what writes were run.

        Args:
            stop: before the line of this number comes this signal.
        """
        return self._ended(self._begun(argv or self.argv, stop), stop)

    def call_two(self) -> None:
        """The same command twice, at the same time."""
        for child in [self._begun(self.argv, None) for _ in range(2)]:
            self._ended(child, None)

    def _begun(self, argv: Sequence[str], stop: tuple[int, int] | None) -> int:
        child = os.fork()
        if not child:
            os.chdir(self.here)
            printed = os.open(self.root / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            os._exit(_watched(argv, stop, self.root / "lines"))
        return child

    def _ended(self, child: int, stop: tuple[int, int] | None) -> dict[str, Any]:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = (self.root / f"{child}.txt").read_text()
        self.calls.append({"code": code, "printed": said, "stop": stop})
        shutil.copytree(self.here, self.root / str(len(self.calls) - 1))
        return self.calls[-1]

    def tell(self) -> dict[str, Any]:
        return {"root": str(self.root), "calls": self.calls}


def _watched(argv: Sequence[str], stop: tuple[int, int] | None, log: Path) -> int:
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        code = frame.f_code
        where = code.co_filename, code.co_name
        if (where[0] not in WRITERS and where not in SIDECARS) or where[1].startswith("<"):
            return None
        if event == "line":
            if stop is not None and lines == stop[0]:
                os.kill(os.getpid(), stop[1])
            lines += 1
        return trace

    sys.settrace(trace)
    found = launch.main(list(argv))
    sys.settrace(None)
    log.write_text(str(lines))
    sys.stderr.flush()
    return found


def argv_of(kind: str, ensemble: str, pictures: str = "pictures") -> list[str]:
    out = kind if kind == "xmp" else f"tags{kind}"
    return ["--tag", pictures, "--with", ensemble, "--out", out, "--min-probability", "0"]


def quiet(kind: str, root: Path, pictures: Path, ensemble: str) -> dict[str, Any]:
    """Nobody disturbs it; a part was tagged before."""
    place = Place(root, pictures, argv_of(kind, ensemble))
    place.call(argv=argv_of(kind, ensemble, "pictures/deep"))
    place.call()
    return place.tell() | {"lines": int((root / "lines").read_text())}


def stopped(
    kind: str, root: Path, pictures: Path, ensemble: str, *, lines: int, rng: random.Random
) -> dict[str, Any]:
    """Again and again, until one comes to its end."""
    place = Place(root, pictures, argv_of(kind, ensemble))
    place.call(argv=argv_of(kind, ensemble, "pictures/deep"))
    code: int = 130
    while code in (-signal.SIGKILL, 130):
        lines += 10  # one that goes on runs more lines, and must end some time
        code = place.call((rng.randrange(lines), rng.choice(SIGNALS)))["code"]
    return place.tell()


def twice(kind: str, root: Path, pictures: Path, ensemble: str) -> dict[str, Any]:
    """Two commands at the same time, and then one."""
    place = Place(root, pictures, argv_of(kind, ensemble))
    place.call(argv=argv_of(kind, ensemble, "pictures/deep"))
    place.call_two()
    place.call()
    return place.tell()


def read_only(kind: str, root: Path, pictures: Path, ensemble: str) -> dict[str, Any]:
    """On a disk on which nothing can be written."""
    disk = root / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    place = Place(root, pictures, argv_of(kind, ensemble))
    place.here = Path(shutil.move(place.here, disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    place.call()
    subprocess.run(["umount", str(disk)], check=True)
    return place.tell()


def full(kind: str, root: Path, pictures: Path, ensemble: str) -> list[dict[str, Any]]:
    """On a disk with 0, 1, 2... pages left, until they are enough; after each, there is room again."""
    found = []
    while not found or found[-1]["calls"][0]["printed"].startswith("error"):
        disk = root / f"disk{len(found)}"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
        place = Place(root / str(len(found)), pictures, argv_of(kind, ensemble))
        place.here = Path(shutil.move(place.here, disk))
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(_free(disk) - PAGE * len(found)))
        place.call()
        ballast.unlink()
        place.call()
        found.append(place.tell())
        subprocess.run(["umount", str(disk)], check=True)
    return found


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_bsize


def main(root: Path, pictures: Path, ensemble: str, seed: int, kills: int, disks: bool) -> dict[str, Any]:
    """All kinds of output.

    Args:
        kills: how many, at least, of each.
        disks: True if they can be mounted here.
    """
    torch.set_num_threads(1)
    collection.PICTURES = 2
    imet_ray.prediction.tagger.PART = 1  # else the last digits depend on how many are left
    tagger = imet_ray.load(ensemble, device="cpu")

    def loaded(*args: object) -> Tagger:
        tagger._process = os.getpid()  # in which it predicts first: none of its threads has begun before
        return tagger

    imet_ray.commands.tag.Tagger = loaded  # type: ignore[misc,assignment]
    story: dict[str, Any] = {}
    for kind in (*tables.TABLES, "xmp"):
        rng = random.Random(f"{seed} {kind}")
        place = root / kind.removeprefix(".")
        whole = quiet(kind, place / "quiet", pictures, ensemble)
        told: list[dict[str, Any]] = []
        while sum(len(one["calls"]) - 2 for one in told) < kills:
            told.append(
                stopped(
                    kind, place / f"stopped{len(told)}", pictures, ensemble, lines=whole["lines"], rng=rng
                )
            )
        on_full = full(kind, place / "full", pictures, ensemble) if disks else None
        story[kind] = {
            "quiet": whole,
            "stopped": told,
            "full": on_full,
            "read-only": read_only(kind, place / "ro", pictures, ensemble) if disks else None,
            "twice": twice(kind, place / "twice", pictures, ensemble),
        }
    return story


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found = main(
        Path(asked["root"]),
        Path(asked["pictures"]),
        asked["ensemble"],
        asked["seed"],
        asked["kills"],
        asked["disks"],
    )
    print(json.dumps(found))
