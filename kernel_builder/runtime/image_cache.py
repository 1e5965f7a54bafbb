"""Test pictures for all members of one size: decoded once into a nameless file, or, where the disk is small, each time.

A picture that cannot be decoded becomes black here, and its row is noted: it is predicted by the labels' prior.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imet_ray.data.images import read_rgb
from imet_ray.data.loader import Pictures
from imet_ray.data.packed_images import build_pack
from imet_ray.errors import DataError, StoreError
from kernel_builder.runtime.inputs import TestPictures

logger = logging.getLogger(__name__)


class PictureShelf:
    """Decoded pictures by short side."""

    def __init__(self, pictures: TestPictures, scratch: Path, workers: int) -> None:
        """
        Args:
            scratch: a folder with room for the decoded pictures; nothing stays there.
            workers: decoding threads.
        """
        self.pictures, self.scratch, self.workers = pictures, scratch, workers
        self.unreadable: set[int] = set()  # rows
        self.seconds = 0.0  # spent on decoding
        self._packs: dict[int, Pictures] = {}

    def of(self, short_side: int, *, keep: Sequence[int]) -> Pictures:
        """The pictures at this size.

        Args:
            keep: sizes that will be asked for again; others are let go.
        """
        self._packs = {size: pack for size, pack in self._packs.items() if size in keep}
        if short_side not in self._packs:
            began = time.monotonic()
            self._packs[short_side] = self._decoded(short_side)
            self.seconds += time.monotonic() - began
        return self._packs[short_side]

    def _decoded(self, short_side: int) -> Pictures:
        path = self.scratch / f".pictures-{secrets.token_hex(4)}"
        try:
            return build_pack(
                self.pictures.files,
                self.pictures.ids,
                short_side=short_side,
                path=path,
                workers=self.workers,
                progress=False,
                unreadable=self.unreadable,
            )
        except StoreError as error:
            logger.warning("%s; decoding for each checkpoint instead", error)
            return _DecodedEachTime(self.pictures.files, short_side, self._undecodable())
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # the map keeps it: nothing is left, however the process ends
                path.with_name(f"{path.name}.lock").unlink(missing_ok=True)

    def _undecodable(self) -> set[int]:
        def check(row: int) -> None:
            try:
                read_rgb(self.pictures.files[row])
            except DataError:
                self.unreadable.add(row)

        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for _ in pool.map(check, range(len(self.pictures.files))):
                pass
        return self.unreadable


class _DecodedEachTime:
    def __init__(self, files: Sequence[Path], short_side: int, unreadable: set[int]) -> None:
        self.files, self.short_side, self.unreadable = files, short_side, frozenset(unreadable)

    def __getitem__(self, row: int) -> np.ndarray:
        if row in self.unreadable:
            return np.zeros((1, 1, 3), np.uint8)
        return read_rgb(self.files[row], short_side=self.short_side)
