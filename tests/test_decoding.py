"""Decoding of what is sent: at once only as many pixels as one picture may have."""

import asyncio
import threading

import pytest
from served import png, served

from imet_ray.serving.decoding import Decoder
from imet_ray.serving.limits import Limits, Refused
from imet_ray.serving.uploads import Upload


def uploads(*sides: int) -> list[Upload]:
    return [Upload(f"{side}.png", png(size=(side, side))) for side in sides]


class Watched:
    """A preparer that sees how many pixels are decoded at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now, self.most = 0, 0

    def __call__(self, data, *, name):
        pixels = int(name.partition(".")[0]) ** 2
        with self.lock:
            self.now += pixels
            self.most = max(self.most, self.now)
        found = served().prepare(data, name=name)
        with self.lock:
            self.now -= pixels
        return found


def test_no_more_pixels_are_decoded_at_once_than_a_picture_may_have():
    watched = Watched()
    decoder = Decoder(Limits(pixels=10_000), watched)

    async def decode():
        return await asyncio.gather(*map(decoder.prepared, uploads(*[100, 60, 80, 90] * 6)))

    with decoder.pool:
        assert len(asyncio.run(decode())) == 24
    assert 8100 <= watched.most <= 10_000


def test_small_pictures_are_decoded_side_by_side():
    both = threading.Barrier(2, timeout=20)

    def prepare(data, *, name):
        both.wait()
        return served().prepare(data, name=name)

    decoder = Decoder(Limits(pixels=10_000), prepare)

    async def decode():
        return await asyncio.gather(*map(decoder.prepared, uploads(50, 50)))

    with decoder.pool:
        assert len(asyncio.run(decode())) == 2


def test_refused_and_abandoned_pictures_leave_the_room_free():
    decoder = Decoder(Limits(pixels=10_000), served().prepare)
    broken = Upload("broken.png", png(size=(90, 90))[:60])

    async def decode():
        for _ in range(3):
            with pytest.raises(Refused, match="broken"):
                await decoder.prepared(broken)
            task = asyncio.ensure_future(decoder.prepared(uploads(90)[0]))
            await asyncio.sleep(0)
            task.cancel()
        return await decoder.prepared(uploads(100)[0])

    with decoder.pool:
        assert asyncio.run(asyncio.wait_for(decode(), 20)).seen
