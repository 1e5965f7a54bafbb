"""Pictures that threads make ready while the models look at others: decoders release the interpreter's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from imet_ray.errors import DataError
from imet_ray.prediction.prepared import Prepared

T = TypeVar("T")


def prefetched(
    work: Callable[[T], Prepared], given: Iterable[T], *, batch: int, ahead: int, threads: int
) -> Iterator[list[tuple[T, Prepared | DataError]]]:
    """What `work` makes of all that is given, in its order, in batches; or why it cannot.

    Args:
        given: of any length; no more of it is taken than is needed soon.
        batch: how many go together.
        ahead: batches that are being made ready meanwhile.
    """

    def tried(one: T) -> Prepared | DataError:
        try:
            return work(one)
        except DataError as error:
            return error

    waiting: deque[tuple[T, Future[Prepared | DataError]]] = deque()
    rest = iter(given)
    pool = ThreadPoolExecutor(max(1, threads))

    def fill(n: int) -> None:
        for _ in range(n - len(waiting)):
            for one in rest:
                waiting.append((one, pool.submit(tried, one)))
                break

    try:
        while True:
            fill(batch * (ahead + 1))
            if not waiting:
                return
            ready = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            yield [(one, future.result()) for one, future in ready]
    finally:
        pool.shutdown(cancel_futures=True)
