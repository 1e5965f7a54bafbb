"""Batches: what comes while one is worked on is the next one."""

import asyncio
import threading

import pytest

from imet_ray.serving.batches import Batches


class Work:
    """Doubles numbers, when it may; sees its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        assert self.go.acquire(timeout=20)
        if 13 in numbers:
            raise ValueError("13")
        return [2 * one for one in numbers]


def run(scenario):
    """A scenario with batches of four at most; the batches that were made."""
    work = Work()

    async def main():
        await asyncio.wait_for(scenario(Batches(work, most=4, wait_s=0.0), work), 20)

    asyncio.run(main())
    return work.batches


async def begun(work: Work, count: int) -> None:
    while len(work.batches) < count:
        await asyncio.sleep(0)


def test_what_comes_while_a_batch_runs_is_the_next_one_and_each_gets_its_own_answer():
    async def scenario(batches, work):
        first = asyncio.ensure_future(batches.ask(0))
        await begun(work, 1)
        others = []
        for i in range(1, 8):
            others.append(asyncio.ensure_future(batches.ask(i)))
            await asyncio.sleep(0.001)  # one by one, as requests come
        work.go.release(3)
        assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10, 12, 14]

    assert run(scenario) == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_batch_that_fails_is_an_error_for_its_own_items_alone():
    async def scenario(batches, work):
        work.go.release(9)
        asked = [asyncio.ensure_future(batches.ask(i)) for i in (1, 2, 3, 13, 5)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(one) for one in found] == ["13", "13", "13", "13", "10"]
        assert await batches.ask(7) == 14

    run(scenario)


def test_who_leaves_takes_no_place_and_no_one_elses_answer():
    async def scenario(batches, work):
        first = asyncio.ensure_future(batches.ask(0))
        await begun(work, 1)
        others = [asyncio.ensure_future(batches.ask(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        first.cancel()
        others[1].cancel()
        work.go.release(2)
        assert await others[0] == 2
        assert await others[2] == 6
        with pytest.raises(asyncio.CancelledError):
            await others[1]

    assert run(scenario) == [[0], [1, 3]]
