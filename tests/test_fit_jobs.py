"""Jobs: fits on some pictures, wider ranges of thresholds, temperature; where they run is no matter."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import (
    Job,
    Solution,
    Task,
    solve,
    solve_all,
    solve_here,
)
from imet_ray.blending.methods import METHODS, fit, uniform
from imet_ray.blending.problem import FitProblem
from imet_ray.blending.threshold_range import Sample, single_cells
from imet_ray.prediction.decode import Threshold, at_least_one, with_temperature
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import averaged

F2 = METRICS["f2"]
THRESHOLD, GROUPS, EXPECTED = "threshold", "group-thresholds", "expected-f2"

pytestmark = pytest.mark.usefixtures("quick_lines")


def make_problem(members, labels, folds, *, half_range=0.05, t=None) -> FitProblem:
    values = [member.probs for member in members]
    thresholds = [F2.best_threshold(v, labels)[0] for v in values] if t is None else [t] * len(values)
    groups = np.arange(labels.shape[1]) % 2
    cells = DisputedCells.build(values, thresholds, labels, half_range=half_range, groups=groups, metric="f2")
    sample = Sample(np.arange(len(labels)), np.stack(values), labels, folds)
    return FitProblem(cells, folds, groups, sample, seed=0)


@pytest.fixture(scope="module")
def problem(make_members) -> FitProblem:
    return make_problem(*make_members([1.0, 2.0, 2.0], n=150, c=6))


def plain(solution: Solution):
    return solution.weights.tolist(), solution.decoder


def score_expected(sample: Sample, weights, temperature, scale="probability") -> float:
    mixed = with_temperature(averaged(sample.probs, weights, scale), temperature)
    return F2.score(at_least_one(mixed, F2.decode_expected(mixed)), sample.labels)


@pytest.mark.parametrize("method", METHODS)
def test_a_job_is_the_fit_on_the_pictures_of_the_other_folds(problem, method):
    rows = np.flatnonzero(problem.folds != 2)
    for decoder in (THRESHOLD, GROUPS):
        found = solve(problem, Task(Job(method, decoder, 2)))
        wanted = fit(problem.cells.pictures(rows), method, seed=0, by_group=decoder == GROUPS)
        assert found.weights.tolist() == wanted.weights.tolist()
        thresholds = problem.cells.thresholds_of(wanted.weights, wanted.shifts)
        assert found.decoder.thresholds(problem.groups).tolist() == thresholds.tolist()


def test_limits_of_the_problem_hold_in_each_job(problem):
    for limits in ({"max_members": 1}, {"min_weight": 0.6}):
        weights = solve(replace(problem, **limits), Task(Job("line", THRESHOLD))).weights
        assert np.count_nonzero(weights) == 1


@pytest.mark.parametrize("without", [None, 1])
def test_a_single_member_gets_the_threshold_that_is_exactly_best_for_it(make_members, without):
    members, labels, folds = make_members([1.0, 2.0])
    problem = make_problem(members, labels, folds, half_range=1.0)
    found = solve(problem, Task(Job("member 1", THRESHOLD, without)))
    kept = folds != without
    cells = problem.cells.pictures(np.flatnonzero(kept))
    best = F2.best_threshold(members[1].probs[kept], labels[kept])[1]
    assert found.weights.tolist() == [0, 1]
    shifts = cells.shifts_of(found.weights, found.decoder.thresholds(problem.groups))
    assert cells.score(found.weights, shifts) == pytest.approx(best, abs=1e-12)


def test_jobs_in_one_process_are_each_what_they_are_alone(problem):
    tasks = [Task(Job(method, THRESHOLD, fold)) for method in ("greedy", "line") for fold in (None, 0, 1)]
    for task, found in zip(tasks, solve_here(problem, tasks), strict=True):
        assert plain(found) == plain(solve(problem, task))


def test_all_jobs_are_done_again_in_a_wider_range_until_no_threshold_comes_to_its_end(make_members):
    members, labels, folds = make_members([1.0, 3.0])
    asked: list[tuple[float, list[Job]]] = []

    def within(half_range) -> FitProblem:
        return make_problem(members, labels, folds, half_range=half_range, t=0.5)

    def runner(problem, tasks):
        if tasks:
            asked.append((problem.cells.half_range, [task.job for task in tasks]))
        return solve_here(problem, tasks)

    ends = []

    def widen(fits, down, up):
        ends.append((down, up))
        return within(2 * fits.cells.half_range)

    jobs = [Job(method, THRESHOLD, fold) for method in ("uniform", "greedy") for fold in (None, 0)]
    solved, widest = solve_all(within(0.02), jobs, runner, widen)
    assert list(solved) == jobs
    assert [again for _, again in asked] == [jobs] * len(asked)
    assert [half_range for half_range, _ in asked] == [0.02 * 2**i for i in range(len(asked))]
    assert len(asked) > 3
    assert set(ends) == {(True, False)}  # the first thresholds are far too high
    assert widest.cells.half_range == asked[-1][0]
    for job in jobs:
        assert plain(solved[job]) == plain(solve(within(widest.cells.half_range), Task(job)))
        assert abs(solved[job].decoder.threshold - 0.5) < widest.cells.half_range


def test_a_range_that_cannot_be_wider_ends_the_search(make_members):
    problem = make_problem(*make_members([1.0, 3.0]), half_range=0.02, t=0.5)
    solved, widest = solve_all(problem, [Job("uniform", THRESHOLD)], solve_here, lambda fits, down, up: None)
    assert widest is problem
    assert abs(solved[Job("uniform", THRESHOLD)].decoder.threshold - 0.5) <= 0.02


def test_single_members_are_fitted_once_however_often_the_range_is_widened(make_members):
    members, labels, folds = make_members([1.0, 3.0])
    every = np.zeros((1, 1), np.float16)  # a sample that has the lowest probability: no cell is left out
    singles = tuple(
        single_cells(member.probs, every, labels, groups=np.arange(8) % 2, metric="f2") for member in members
    )
    counted = []

    def runner(problem, tasks):
        counted.extend(task.job for task in tasks)
        return solve_here(problem, tasks)

    def problem(half_range):
        return replace(make_problem(members, labels, folds, half_range=half_range, t=0.6), singles=singles)

    jobs = [Job(method, THRESHOLD) for method in ("greedy", "member 0", "member 1")]
    ranges = iter((0.2, 0.5, 1.0))
    solved, _ = solve_all(problem(0.02), jobs, runner, lambda fits, down, up: problem(next(ranges)))
    assert counted.count(jobs[0]) > 1
    assert counted.count(jobs[1]) == counted.count(jobs[2]) == 1
    for i, member in enumerate(members):
        limit = solved[jobs[1 + i]].decoder.threshold
        best = F2.best_threshold(member.probs, labels)[1]
        assert F2.score(member.probs > np.float32(limit), labels) == pytest.approx(best, abs=1e-9)


def test_expected_f2_starts_from_the_weights_of_the_threshold_even_if_only_it_is_asked_for(problem):
    job = Job("line", EXPECTED, 1)
    solved, _ = solve_all(problem, [job], solve_here, lambda fits, down, up: None)
    assert list(solved) == [job]
    assert solved[job].weights.tolist() == solve(problem, Task(Job("line", THRESHOLD, 1))).weights.tolist()


def test_weights_that_are_fitted_under_expected_f2_are_not_below_those_of_the_threshold(problem):
    start = solve(problem, Task(Job("nelder-mead", THRESHOLD)))
    found = solve(problem, Task(Job("nelder-mead", EXPECTED), start))
    own = score_expected(problem.sample, found.weights, found.decoder.temperature)
    assert found.weights.sum() == pytest.approx(1)
    assert own >= score_expected(problem.sample, start.weights, 1.0)
    assert own >= score_expected(problem.sample, uniform(3), 1.0) - 2e-3  # the temperatures differ
    assert found.evaluations > start.evaluations


def test_the_temperature_is_1_unless_another_is_better(problem):
    for weights in (uniform(3), np.array([1.0, 0, 0])):
        start = Solution(weights, Threshold(threshold=0.5))
        found = solve(problem, Task(Job("uniform", EXPECTED), start)).decoder.temperature
        plain_f2 = score_expected(problem.sample, weights, 1.0)
        assert 0.5 <= found <= 2
        assert found == 1 or score_expected(problem.sample, weights, found) > plain_f2


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_the_temperature_mends_a_member_whose_logits_were_scaled(make_members, scale):
    members, labels, folds = make_members([0.2], n=500, c=20)
    scaled = expit(scale * logit(members[0].probs.astype(np.float64).clip(1e-6, 1 - 1e-3)))
    problem = make_problem([replace(members[0], probs=scaled.astype(np.float32))], labels, folds)
    start = Solution(np.ones(1), Threshold(threshold=0.5))
    found = solve(problem, Task(Job("member 0", EXPECTED), start))
    mended = score_expected(problem.sample, np.ones(1), found.decoder.temperature)
    right = score_expected(replace(problem.sample, probs=members[0].probs[None]), np.ones(1), 1.0)
    assert 0.7 * scale < found.decoder.temperature < 1.4 * scale
    assert mended > score_expected(problem.sample, np.ones(1), 1.0)
    assert mended >= right - 2e-3


@pytest.mark.parametrize("method", ["member 1", "nelder-mead"])
def test_expected_f2_without_a_fold_does_not_look_at_that_folds_labels(make_members, method):
    members, labels, folds = make_members([1.0, 2.0], n=150)
    shuffled = labels.copy()
    shuffled[folds == 1] = labels[folds == 1][::-1]
    start = Solution(np.array([0.0, 1.0]) if method == "member 1" else uniform(2), Threshold(threshold=0.5))
    one, two, other = (
        plain(solve(make_problem(members, truth, folds, t=0.2), Task(Job(method, EXPECTED, fold), start)))
        for truth, fold in ((labels, 1), (shuffled, 1), (shuffled, None))
    )
    assert one == two
    assert other != two
