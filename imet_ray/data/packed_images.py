"""Packed pictures: a split decoded once into one memory-mapped uint8 file that all trials of a node share.

The file has the pixels of all pictures, one after the other, then the index (ids and sizes), then a footer with
the index's length and sha256. It is built under a private name and renamed when it is whole. The footer shows
whether a copy was cut off. Augmentation is `imet_ray.data.augmentation`; where a pack lies is decided in
`imet_ray.storage.run_directory`.
"""

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import platform
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from imet_ray.data.images import image_size, read_picture, scaled_size
from imet_ray.errors import DataError, StoreError
from imet_ray.storage.files import writing
from imet_ray.storage.locks import locked

logger = logging.getLogger(__name__)

FOOTER = struct.Struct("<QQ32s8s")  # bytes of pixels, bytes of index, sha256 of the index, magic
MAGIC = b"IMETPAK1"
MAX_PROBLEMS = 20  # named in one report; the rest is counted
CHUNK = 16  # pictures per task: enough to make the pool's overhead vanish
MB = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where else a pack may come from, and what the files must be that it is made of."""

    copy: Callable[[Path], bool]  # puts in place what another node has packed; False if none has
    check: Callable[[], None]  # called when all files are decoded; raises DataError if they have changed


HERE = Origin(lambda path: False, lambda: None)  # nowhere else, and whatever they are


@dataclass(frozen=True, eq=False)
class Pack:
    """Decoded pictures by row. It is cheap to pickle: the other process opens the file by its path."""

    path: Path
    ids: tuple[str, ...]
    short_side: int  # pixels; smaller pictures keep their size
    shapes: np.ndarray = field(repr=False)  # (N, 2) int64, height and width
    _offsets: np.ndarray = field(repr=False)  # (N + 1,) int64, bytes
    _pixels: np.ndarray = field(repr=False)  # (bytes,) uint8, read-only map

    @classmethod
    def open(cls, path: Path) -> "Pack":
        """Map a whole pack.

        Raises:
            StoreError: if it is missing, cut off or altered.
        """
        try:
            with path.open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                file.seek(max(0, total - FOOTER.size))
                footer = file.read(FOOTER.size)
                if len(footer) < FOOTER.size or not footer.endswith(MAGIC):
                    raise _damaged(path, "it was cut off, or is no pack")
                n_pixels, n_index, digest, _ = FOOTER.unpack(footer)
                if total != n_pixels + n_index + FOOTER.size:
                    raise _damaged(path, f"it has {total} bytes, not what its footer says")
                file.seek(n_pixels)
                index = file.read(n_index)
                if hashlib.sha256(index).digest() != digest:
                    raise _damaged(path, "its index was altered")
                pixels = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise StoreError(f"{path} is missing") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        table = json.loads(index)
        shapes = np.array(table["shapes"], np.int64).reshape(-1, 2)
        return cls(
            path=path,
            ids=tuple(table["ids"]),
            short_side=table["short_side"],
            shapes=shapes,
            _offsets=_offsets(shapes),
            _pixels=np.frombuffer(pixels, np.uint8, count=n_pixels),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> np.ndarray:
        """One picture: (H, W, 3) uint8 RGB, a read-only view of the file."""
        height, width = self.shapes[row]
        start = self._offsets[:-1][row]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Callable[[Path], "Pack"], tuple[Path]]:
        return Pack.open, (self.path,)


def build_pack(
    files: Sequence[Path],
    ids: Sequence[str],
    *,
    short_side: int,
    path: Path,
    workers: int,
    unreadable: set[int] | None = None,
    origin: Origin = HERE,
) -> Pack:
    """Open the pack at `path`. If it is not there or not whole, decode the files into it first.

    If several processes ask for one pack, the first makes it and the others wait.

    Args:
        files: the pictures.
        ids: their ids, in the same order.
        short_side: pixels; larger pictures are scaled down to it, smaller ones kept.
        workers: decoding threads.
        unreadable: takes the rows that cannot be decoded, which become black. Without it they are refused.
        origin: where else the pack may come from, and what the files must be.

    Raises:
        DataError: naming all files that cannot be decoded, if they are refused.
        StoreError: if the disk is too small or cannot be written.
    """
    assert len(files) == len(ids)
    if (found := _existing(path, ids, short_side)) is not None:
        return found
    with one_process(path) as locked:
        if (found := _existing(path, ids, short_side)) is not None:  # made while we waited
            return found
        if path.exists():
            logger.warning("%s is damaged or holds other pictures: packing again", path)
        if locked:
            for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of builders that were killed
                leftover.unlink(missing_ok=True)
        if origin.copy(path) and (found := _existing(path, ids, short_side)) is not None:
            return found
        shapes = _target_shapes(files, short_side, workers, unreadable)
        table = {"short_side": short_side, "ids": list(ids), "shapes": shapes.tolist()}
        index = json.dumps(table, separators=(",", ":")).encode()
        n_pixels = int(_offsets(shapes)[-1])
        footer = FOOTER.pack(n_pixels, len(index), hashlib.sha256(index).digest(), MAGIC)
        with writing(path) as temporary, temporary.open("xb") as file:
            _reserve(file.fileno(), n_pixels + len(index) + len(footer), path)
            _decode(files, shapes, file.fileno(), short_side, workers, unreadable)
            _write(file.fileno(), memoryview(index + footer), n_pixels)
            origin.check()
    return Pack.open(path)


def _existing(path: Path, ids: Sequence[str], short_side: int) -> Pack | None:
    """The pack that is there, if it is whole and has these pictures in this size."""
    try:
        pack = Pack.open(path)
    except StoreError:
        return None
    return pack if pack.ids == tuple(ids) and pack.short_side == short_side else None


@contextlib.contextmanager
def one_process(path: Path) -> Iterator[bool]:
    """Wait until no other process makes `path`. The lock ends with its process, however it ends.

    Yields False where the file system knows no locks: then two may do the same work, and both results are whole.
    """
    lock, who = path.with_name(f"{path.name}.lock"), f"{os.getpid()} on {platform.node()}"
    with locked(lock, who=who, waiting=f"waiting for another process that makes {path}") as held:
        yield held


def _target_shapes(
    files: Sequence[Path], short_side: int, workers: int, unreadable: set[int] | None
) -> np.ndarray:
    """Sizes after scaling, from the headers: (N, 2) int64, height and width; 1 x 1 where there is none."""

    def scaled(row: int) -> tuple[int, int]:
        return scaled_size(*image_size(files[row]), short_side)

    sizes = _for_each(scaled, len(files), workers, "sizes", unreadable)
    return np.array([size or (1, 1) for size in sizes], np.int64).reshape(-1, 2)


def _decode(
    files: Sequence[Path],
    shapes: np.ndarray,
    descriptor: int,
    short_side: int,
    workers: int,
    unreadable: set[int] | None,
) -> None:
    """Write all pixels in their places.

    By threads: the decoders release the interpreter's lock. 280 PNG/s on one core, 532 with two threads, 500
    with two processes (300 px photographs, PIL).
    """
    offsets = _offsets(shapes)

    def decode(row: int) -> float:
        if unreadable is not None and row in unreadable:
            return 0.0
        expected = (*shapes[row].tolist(), 3)
        image, missing = read_picture(files[row], short_side=short_side)
        if image.shape != expected:
            raise DataError(f"{files[row]}: its header says {expected}, its pixels {image.shape}")
        _write(descriptor, np.ascontiguousarray(image).data.cast("B"), int(offsets[row]))
        return missing

    missing = _for_each(decode, len(files), workers, "decoding", unreadable)
    if cut := [f"{file.name} ({share:.1%})" for file, share in zip(files, missing, strict=True) if share]:
        named = ", ".join(cut[:MAX_PROBLEMS]) + (", ..." if len(cut) > MAX_PROBLEMS else "")
        logger.warning("%d of %d pictures lack some pixels at their end: %s", len(cut), len(files), named)


def _for_each(
    work: Callable[[int], T], n: int, workers: int, what: str, unreadable: set[int] | None
) -> list[T | None]:
    """`work` of rows 0..n-1 by threads, in order; None where it raises a DataError.

    Args:
        unreadable: takes these rows. Without it they are refused.

    Raises:
        DataError: all that `work` raised, in one report.
    """

    def chunk(start: int) -> tuple[list[T | None], dict[int, str]]:
        done: list[T | None] = []
        problems = {}
        for row in range(start, min(start + CHUNK, n)):
            try:
                done.append(work(row))
            except DataError as error:
                done.append(None)
                problems[row] = str(error)
        return done, problems

    results: list[T | None] = []
    problems: dict[int, str] = {}
    pool = ThreadPoolExecutor(max(1, workers))
    bar = tqdm(total=n, desc=what, unit="img", disable=None, leave=False)
    try:
        for done, bad in pool.map(chunk, range(0, n, CHUNK)):
            results += done
            problems |= bad
            bar.update(len(done))
    finally:
        pool.shutdown(cancel_futures=True)  # before the caller closes the file they write to
        bar.close()
    if unreadable is not None:
        unreadable.update(problems)
    elif problems:
        shown = list(problems.values())[:MAX_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise DataError(
            f"{len(problems)} of {n} images cannot be decoded; --check-data names all that is wrong:\n  "
            + "\n  ".join(shown)
        )
    return results


def _reserve(descriptor: int, n_bytes: int, path: Path) -> None:
    """Reserve the disk space now: if the disk is too small, say so before an hour of decoding."""
    free = shutil.disk_usage(path.parent).free
    full = f"the pack {path} needs {n_bytes / MB:,.0f} MB and {free / MB:,.0f} MB are free: "
    way_out = "free some space, or move the cache with --cache or IMET_RAY_CACHE"
    if free < n_bytes:
        raise StoreError(full + way_out)
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(full + way_out) from error
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of it at `offset`. Not through a memory map: there a full disk is a bus error."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _offsets(shapes: np.ndarray) -> np.ndarray:
    """Where each picture begins, and the end: (N + 1,) int64, bytes."""
    return np.concatenate(([0], np.cumsum(shapes.prod(axis=1) * 3))).astype(np.int64)


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged: {why}: delete it and run the same command")
