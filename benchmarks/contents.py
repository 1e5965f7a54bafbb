"""The digests of all files of a data directory, cold and warm, against `sha256sum` on as many processes as cores.

    uv run python -m benchmarks.contents [--files 109237] [--bytes 24000] [--rounds 3]

Files of random bytes, of iMet's number, are written into a temporary folder. Cold: their bytes are dropped from the
page cache before (by posix_fadvise, which needs no root), so that the disk is read. Cached: the bytes are in memory,
and nothing is remembered. Warm: our index remembers them, so that each file is only looked at; the peer remembers
nothing and reads again. Rounds alternate, so that a busy machine slows all alike; medians. All digests must be equal.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from imet_ray.cores import usable_cores
from imet_ray.data import contents as module
from imet_ray.data.contents import contents


def write(folder: Path, n_files: int, n_bytes: int) -> list[Path]:
    """Files that are all different, on the disk."""
    folder.mkdir()
    block, files = os.urandom(n_bytes), [folder / f"{i:016x}.png" for i in range(n_files)]
    for i, file in enumerate(files):
        file.write_bytes(i.to_bytes(8, "little") + block[8:])
    os.sync()
    return files


def forget(files: Sequence[Path]) -> None:
    """Drop the files' bytes from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def sha256sum(folder: Path) -> dict[Path, str]:
    """The peer: of each file its digest."""
    command = f"find . -type f -print0 | xargs -0 -P {usable_cores()} -n 256 sha256sum"
    lines = subprocess.check_output(command, shell=True, cwd=folder, text=True).splitlines()
    return {folder / line[66:].removeprefix("./"): line[:64] for line in lines}


def seconds_of(function: Callable[[], dict[Path, str]], wanted: dict[Path, str]) -> float:
    started = time.perf_counter()
    found = function()
    seconds = time.perf_counter() - started
    assert found == wanted
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=109_237)
    parser.add_argument("--bytes", type=int, default=24_000, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at", type=Path, help="a folder of the disk to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.at) as name:
        folder, index = Path(name) / "train", Path(name) / "index.json"
        files = write(folder, args.files, args.bytes)
        time.sleep(module.TICK_NS / 1e9)  # what changed so lately is not remembered
        wanted = contents(files, index)
        seconds: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for what, ours in (
                ("cold", lambda: contents(files)),
                ("cached", lambda: contents(files)),
                ("warm", lambda: contents(files, index)),
            ):
                for who, function in (("ours", ours), ("sha256sum", lambda: sha256sum(folder))):
                    if what == "cold":
                        forget(files)
                    seconds.setdefault(f"{what}, {who}", []).append(seconds_of(function, wanted))
        size = index.stat().st_size
    total = args.files * args.bytes / 1e6
    print(
        f"{args.files:,} files, {total:,.0f} MB; the index has {size / 1e6:.0f} MB; median of {args.rounds} rounds"
    )
    for name, each in seconds.items():
        ours = statistics.median(seconds[f"{name.partition(',')[0]}, ours"])
        taken = statistics.median(each)
        ratio = "" if name.endswith("ours") else f"   ours is {taken / ours:.2f} x"
        print(
            f"{name:<20}{taken:8.2f} s{args.files / taken:12,.0f} files/s{total / taken:10,.0f} MB/s{ratio}"
        )


if __name__ == "__main__":
    main()
