"""Waiting for Ray tasks: one by one as they end, with a bar, and one line where a worker was lost too often."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from tqdm import tqdm

from imet_ray.errors import StoreError

TASK_RETRIES = 3  # of a task whose worker or node was lost


def as_they_end(refs: Sequence[Any], what: str, unit: str) -> Iterator[tuple[int, Any]]:
    """Place and outcome of each task, in the order in which they end.

    Args:
        refs: of tasks with `max_retries=TASK_RETRIES`.
        what: they do together, for the bar and the error.

    Raises:
        StoreError: if a task's worker was lost again and again.
        RayTaskError: a fault in our own code, whose traceback is what helps.
    """
    place = {ref: i for i, ref in enumerate(refs)}
    waiting = list(refs)
    with tqdm(total=len(waiting), desc=what, unit=unit, disable=not sys.stderr.isatty()) as bar:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            try:
                outcome = ray.get(ready[0])
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                first = str(error).strip().splitlines()[0]
                raise StoreError(
                    f"a worker of the {what} pass was lost {TASK_RETRIES + 1} times ({first}): "
                    "run the same command again"
                ) from error
            yield place[ready[0]], outcome
            bar.update()
