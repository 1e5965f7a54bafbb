"""The blend's fits with a real Ray: the same as in one process."""

import json

import numpy as np
import pytest
from blends import evaluate

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import Job, Task, solve_here
from imet_ray.blending.methods import METHODS
from imet_ray.blending.problem import FitProblem
from imet_ray.cluster.tasks import solve_on_ray

pytestmark = pytest.mark.slow


@pytest.fixture
def on_ray(shared_ray):
    return solve_on_ray


def problem_of(members, labels, folds) -> FitProblem:
    cells = DisputedCells.build(
        [member.probs for member in members], [0.2] * len(members), labels, half_range=0.02, metric="f2"
    )
    return FitProblem(cells, folds, np.arange(labels.shape[1]) * 0, None, seed=0)


@pytest.mark.filterwarnings("ignore")
def test_fits_are_the_same_on_ray_and_in_one_process_with_cells_enough_for_threads(on_ray, make_members):
    problem = problem_of(*make_members([1.0, 1.5, 2.0], n=450, c=20))
    tasks = [Task(Job(method, "threshold")) for method in METHODS] + [
        Task(Job("greedy", "group-thresholds", 1))
    ]
    assert problem.cells.margins.size > 10_000  # BLAS uses its threads here, and one of them in a worker
    for task, one, two in zip(tasks, solve_here(problem, tasks), on_ray(problem, tasks), strict=True):
        assert one.weights.tolist() == two.weights.tolist(), task.job
        assert one.decoder == two.decoder, task.job
        assert (one.evaluations, one.curve) == (two.evaluations, two.curve)


@pytest.mark.filterwarnings("ignore")
def test_the_report_is_the_same_on_ray_and_in_one_process(on_ray, make_members):
    case = make_members([0.7, 2.0, 2.0], n=90, c=6)
    how = {"seed": 1, "groups": ("a", "b") * 3, "methods": ["greedy"]}
    here, there = (
        json.dumps(evaluate(*case, runner=runner, **how).to_dict()) for runner in (solve_here, on_ray)
    )
    assert here == there


@pytest.mark.filterwarnings("ignore")
def test_a_fault_of_a_fit_comes_through(on_ray, make_members):
    problem = problem_of(*make_members([1.0, 1.0], n=30))
    with pytest.raises(KeyError, match="no such method"):
        on_ray(problem, [Task(Job("no such method", "threshold"))])
