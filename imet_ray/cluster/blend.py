"""The blend's fits as Ray tasks, which share the disputed cells through the object store."""

from collections.abc import Sequence

import ray

from imet_ray.blending.fit_jobs import Problem, Solution, Task, solve
from imet_ray.cluster.tasks import TASK_RETRIES, as_they_end


def solve_on_ray(problem: Problem, tasks: Sequence[Task]) -> list[Solution]:
    """All tasks on the Ray that this process has joined; the same results as in one process."""
    fit = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(solve)
    shared = ray.put(problem)
    found = dict(as_they_end([fit.remote(shared, task) for task in tasks], "blend", "fit"))
    return [found[i] for i in range(len(tasks))]
