"""Work in batches: what comes while one is being worked on waits, and is the next one."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batches(Generic[Item, Answer]):
    """Does work that is cheaper together, in a thread, one batch after the other.

    `ray.serve.batch` would not wait for the batch that runs: every few milliseconds it makes one more of what has come.

    Args:
        work: answers a batch, in its order.
        most: items of a batch.
        wait_s: for more items, before a batch that is not full.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Answer]], *, most: int, wait_s: float) -> None:
        self.work = work
        self.most = most
        self.wait_s = wait_s
        self.waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self.worker: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Answer:
        """The item's answer, or whatever `work` raised for its batch."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, answer))
        if self.worker is None:
            self.worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self.waiting:
            if len(self.waiting) < self.most:
                await asyncio.sleep(self.wait_s)
            batch = [self.waiting.popleft() for _ in range(min(self.most, len(self.waiting)))]
            batch = [one for one in batch if not one[1].done()]  # else who asked has left
            if batch:
                await self._answer(batch)
        self.worker = None

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await asyncio.to_thread(self.work, [item for item, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
