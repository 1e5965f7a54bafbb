"""Decodes uploads, by threads. Pictures that would take too much memory together wait for one another."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from imet_ray.cores import usable_cores
from imet_ray.data.images import Encoded, TooLargeError, announced_size
from imet_ray.errors import DataError
from imet_ray.prediction.prepared import Prepared, Preparer
from imet_ray.serving.limits import Limits, Refused
from imet_ray.serving.uploads import Upload


class Decoder:
    """Makes uploads ready for the models, no more pixels at once than one picture may have."""

    def __init__(self, limits: Limits, prepare: Preparer) -> None:
        self.limits = limits
        self.prepare = prepare
        self.pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self.free = limits.pixels
        self.freed = asyncio.Event()
        self.turn = (
            asyncio.Lock()
        )  # in their order: else small pictures would keep a large one waiting for ever

    async def prepared(self, upload: Upload) -> Prepared:
        """What the models look at.

        Raises:
            Refused: if the picture is too large or cannot be decoded.
        """
        pixels = await asyncio.wrap_future(self.pool.submit(self._pixels, upload))
        async with self.turn:
            while self.free < pixels:
                self.freed.clear()
                await self.freed.wait()
            self.free -= pixels
        work = self.pool.submit(self._decoded, upload)
        loop = asyncio.get_running_loop()
        # by the thread, not by who waits: where that one has left, the picture is in memory yet
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._give_back, pixels))
        return await asyncio.wrap_future(work)

    def _give_back(self, pixels: int) -> None:
        self.free += pixels
        self.freed.set()

    def _pixels(self, upload: Upload) -> int:
        with _refusals():
            height, width = announced_size(Encoded(upload.data, upload.name))
        self.limits.check_pixels(upload.name, height * width)
        return height * width

    def _decoded(self, upload: Upload) -> Prepared:
        with _refusals():
            return self.prepare(upload.data, name=upload.name)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """A picture's fault is that of the request."""
    try:
        yield
    except TooLargeError as error:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
    except DataError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
