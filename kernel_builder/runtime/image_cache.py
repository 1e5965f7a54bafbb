"""Test pictures for all members of one size: decoded once into a nameless file, or each time if the disk is too small.

A picture that cannot be decoded becomes black here, and its row is noted: it gets the labels' prior.
"""

import logging
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imet_ray.data.images import read_rgb
from imet_ray.data.loader import Pictures
from imet_ray.data.packed_images import build_pack
from imet_ray.errors import DataError, StoreError
from imet_ray.storage.files import disk_error
from kernel_builder.runtime.inputs import TestPictures

logger = logging.getLogger(__name__)


class ImageCache:
    """Decoded pictures by short side."""

    def __init__(self, test: TestPictures, scratch: Path, workers: int) -> None:
        """
        Args:
            scratch: a folder with room for the decoded pictures; nothing stays there.
            workers: decoding threads.
        """
        self.test, self.scratch, self.workers = test, scratch, workers
        self.unreadable: set[int] = set()  # rows
        self.seconds = 0.0  # spent on decoding
        self._packs: dict[int, Pictures] = {}

    def get(self, short_side: int, *, keep: Collection[int]) -> Pictures:
        """The pictures at this size. Those of sizes that are not in `keep` are dropped."""
        self._packs = {size: pack for size, pack in self._packs.items() if size in keep}
        if short_side not in self._packs:
            began = time.monotonic()
            self._packs[short_side] = self._decode(short_side)
            self.seconds += time.monotonic() - began
        return self._packs[short_side]

    def _decode(self, short_side: int) -> Pictures:
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            # the pack's map outlives its name
            with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as folder:
                return build_pack(
                    self.test.files,
                    self.test.ids,
                    short_side=short_side,
                    path=Path(folder) / "pictures",
                    workers=self.workers,
                    unreadable=self.unreadable,
                )
        except (StoreError, OSError) as error:
            told = disk_error(self.scratch, error) if isinstance(error, OSError) else error
            logger.warning("%s; decoding for each checkpoint instead", told)
            return self._decoded_each_time(short_side)

    def _decoded_each_time(self, short_side: int) -> Pictures:
        def check(row: int) -> None:
            try:
                read_rgb(self.test.files[row])
            except DataError:
                self.unreadable.add(row)

        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            list(pool.map(check, range(len(self.test.files))))
        return _DecodedEachTime(self.test.files, short_side, frozenset(self.unreadable))


class _DecodedEachTime:
    """Pictures read from their files when they are asked for."""

    def __init__(self, files: Sequence[Path], short_side: int, unreadable: frozenset[int]) -> None:
        self.files, self.short_side, self.unreadable = files, short_side, unreadable

    def __getitem__(self, row: int) -> np.ndarray:
        """(height, width, 3) uint8."""
        if row in self.unreadable:
            return np.zeros((1, 1, 3), np.uint8)
        return read_rgb(self.files[row], short_side=self.short_side)
