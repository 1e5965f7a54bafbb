"""The blend's fits as Ray tasks, which share the disputed cells through the object store."""

import sys
from collections.abc import Sequence

import ray
from tqdm import tqdm

from imet_ray.blending.solve import Problem, Solution, Task, solve
from imet_ray.errors import StoreError

TASK_RETRIES = 3  # of a fit whose worker or node was lost


def solve_on_ray(problem: Problem, tasks: Sequence[Task]) -> list[Solution]:
    """All tasks on the Ray that this process has joined; the same results as in one process."""
    fit = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(solve)
    shared = ray.put(problem)
    found = [fit.remote(shared, task) for task in tasks]
    waiting = list(found)
    with tqdm(total=len(found), desc="fits", disable=not sys.stderr.isatty()) as bar:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            bar.update(len(ready))
    try:
        return list(ray.get(found))
    except ray.exceptions.RayTaskError:
        raise  # a fault in our own code: its traceback is what helps
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise StoreError(
            f"a worker of the blend was lost {TASK_RETRIES + 1} times ({first}): run it again"
        ) from error
