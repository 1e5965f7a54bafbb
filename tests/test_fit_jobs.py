"""Jobs: fits on some pictures, the widening of windows, temperature, and that the place where they run is no matter."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from imet_ray.blending import methods as fit_module
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import (
    EXPECTED,
    GROUPS,
    THRESHOLD,
    Job,
    Problem,
    Sample,
    Solution,
    Task,
    solve,
    solve_all,
    solve_here,
)
from imet_ray.blending.methods import METHODS, fit, uniform
from imet_ray.blending.single_member import cells_alone
from imet_ray.prediction.decode import at_least_one, with_temperature
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import averaged

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")


def make_problem(members, labels, folds, *, window=0.05, t=None) -> Problem:
    values = [member.probs for member in members]
    thresholds = [F2.best_threshold(v, labels)[0] for v in values] if t is None else [t] * len(values)
    cells = DisputedCells.build(
        values, thresholds, labels, window=window, groups=np.arange(labels.shape[1]) % 2
    )
    return Problem(cells, folds, Sample(np.arange(len(labels)), np.stack(values), labels), seed=0)


@pytest.fixture(scope="module")
def problem(make_members) -> Problem:
    return make_problem(*make_members([1.0, 2.0, 2.0], n=150, c=6))


def plain(solution: Solution):
    return solution.weights.tolist(), solution.shifts.tolist(), solution.temperature


def score_expected(sample: Sample, weights, temperature, scale="probability") -> float:
    mixed = with_temperature(averaged(sample.probs, weights, scale), temperature)
    return F2.score(at_least_one(mixed, F2.decode_expected(mixed)), sample.labels)


def test_restarts_run_as_tasks_of_their_own_and_the_best_of_them_is_the_fit(problem, monkeypatch):
    monkeypatch.setattr(fit_module, "LINE_STARTS", 3)
    seen = []

    def runner(problem: Problem, tasks) -> list[Solution]:
        seen.extend(tasks)
        return solve_here(problem, tasks)

    jobs = [Job(method, THRESHOLD) for method in METHODS]
    solved, _ = solve_all(problem, jobs, runner, lambda down, up: None)
    count = {method: sum(task.job.method == method for task in seen) for method in METHODS}
    assert (count["nelder-mead"], count["powell"], count["line"], count["greedy"]) == (2, 2, 3, 1)
    assert len(set(seen)) == len(seen)
    for job in jobs:
        wanted = fit(problem.cells, job.method, seed=0)
        assert solved[job].weights.tolist() == wanted.weights.tolist()
        assert (solved[job].score, solved[job].evaluations) == (wanted.score, wanted.evaluations)


@pytest.mark.parametrize("method", METHODS)
def test_a_job_is_the_fit_on_the_pictures_of_the_other_folds(problem, method):
    rows = np.flatnonzero(problem.folds != 2)
    for decoder in (THRESHOLD, GROUPS):
        found = solve(problem, Task(Job(method, decoder, 2)))
        wanted = fit(problem.cells.pictures(rows), method, seed=0, by_group=decoder == GROUPS)
        assert found.weights.tolist() == wanted.weights.tolist()
        assert found.shifts.tolist() == wanted.shifts.tolist()


def test_limits_of_the_problem_hold_in_each_job(problem):
    for limits in ({"max_members": 1}, {"min_weight": 0.6}):
        weights = solve(replace(problem, **limits), Task(Job("line", THRESHOLD))).weights
        assert np.count_nonzero(weights) == 1


@pytest.mark.parametrize("without", [None, 1])
def test_a_member_alone_gets_the_threshold_that_is_exactly_best_for_it(make_members, without):
    members, labels, folds = make_members([1.0, 2.0])
    problem = make_problem(members, labels, folds, window=1.0)
    found = solve(problem, Task(Job("member 1", THRESHOLD, without)))
    kept = folds != without
    cells = problem.cells.pictures(np.flatnonzero(kept))
    best = F2.best_threshold(members[1].probs[kept], labels[kept])[1]
    assert found.weights.tolist() == [0, 1]
    assert cells.score(found.weights, found.shifts) == pytest.approx(best, abs=1e-12)


def test_jobs_in_one_process_are_each_what_they_are_alone(problem):
    tasks = [Task(Job(method, THRESHOLD, fold)) for method in ("greedy", "line") for fold in (None, 0, 1)]
    for task, found in zip(tasks, solve_here(problem, tasks), strict=True):
        assert plain(found) == plain(solve(problem, task))


def test_all_jobs_are_done_again_in_a_wider_window_until_no_shift_comes_to_its_end(make_members):
    members, labels, folds = make_members([1.0, 3.0])
    asked: list[tuple[float, list[Job]]] = []

    def within(window) -> Problem:
        return make_problem(members, labels, folds, window=window, t=0.5)

    def runner(problem, tasks):
        if tasks:
            asked.append((problem.cells.window, [task.job for task in tasks]))
        return solve_here(problem, tasks)

    ends = []

    def widen(down, up):
        ends.append((down, up))
        return within(2 * asked[-1][0]).cells

    jobs = [Job(method, THRESHOLD, fold) for method in ("uniform", "greedy") for fold in (None, 0)]
    solved, cells = solve_all(within(0.02), jobs, runner, widen)
    assert list(solved) == jobs
    assert [again for _, again in asked] == [jobs] * len(asked)
    assert [window for window, _ in asked] == [0.02 * 2**i for i in range(len(asked))]
    assert len(asked) > 3
    assert set(ends) == {(True, False)}  # the first thresholds are far too high
    assert cells.window == asked[-1][0]
    for job in jobs:
        assert plain(solved[job]) == plain(solve(within(cells.window), Task(job)))
        assert abs(solved[job].shifts[0]) < cells.window


def test_a_window_that_cannot_be_wider_ends_the_search(make_members):
    problem = make_problem(*make_members([1.0, 3.0]), window=0.02, t=0.5)
    solved, cells = solve_all(problem, [Job("uniform", THRESHOLD)], solve_here, lambda down, up: None)
    assert cells is problem.cells
    assert abs(solved[Job("uniform", THRESHOLD)].shifts[0]) <= 0.02


def test_members_alone_are_fitted_once_however_often_the_window_is_widened(make_members):
    members, labels, folds = make_members([1.0, 3.0])
    alone = tuple(cells_alone(member.probs, 0.0, labels, np.arange(8) % 2) for member in members)
    counted = []

    def runner(problem, tasks):
        counted.extend(task.job for task in tasks)
        return solve_here(problem, tasks)

    def problem(window):
        return replace(make_problem(members, labels, folds, window=window, t=0.5), alone=alone)

    jobs = [Job(method, THRESHOLD) for method in ("greedy", "member 0", "member 1")]
    windows = iter((0.2, 0.5, 1.0))
    solved, cells = solve_all(problem(0.02), jobs, runner, lambda down, up: problem(next(windows)).cells)
    assert counted.count(jobs[0]) > 1
    assert counted.count(jobs[1]) == counted.count(jobs[2]) == 1
    for i, member in enumerate(members):
        limit = cells.thresholds[i] + solved[jobs[1 + i]].shifts[0]
        best = F2.best_threshold(member.probs, labels)[1]
        assert F2.score(member.probs > np.float32(limit), labels) == pytest.approx(best, abs=1e-9)


def test_expected_f2_starts_from_the_weights_of_the_threshold_even_if_only_it_is_asked_for(problem):
    job = Job("line", EXPECTED, 1)
    solved, _ = solve_all(problem, [job], solve_here, lambda down, up: None)
    assert list(solved) == [job]
    assert solved[job].weights.tolist() == solve(problem, Task(Job("line", THRESHOLD, 1))).weights.tolist()


def test_weights_that_are_fitted_under_expected_f2_are_not_below_those_of_the_threshold(problem):
    start = solve(problem, Task(Job("nelder-mead", THRESHOLD)))
    found = solve(problem, Task(Job("nelder-mead", EXPECTED), start))
    own = score_expected(problem.sample, found.weights, found.temperature)
    assert found.weights.sum() == pytest.approx(1)
    assert own >= score_expected(problem.sample, start.weights, 1.0)
    assert own >= score_expected(problem.sample, uniform(3), 1.0) - 2e-3  # the temperatures differ
    assert found.evaluations > start.evaluations


def test_the_temperature_is_1_unless_another_is_better(problem):
    for weights in (uniform(3), np.array([1.0, 0, 0])):
        start = Solution(weights, np.zeros(1), 1.0, 0)
        found = solve(problem, Task(Job("uniform", EXPECTED), start)).temperature
        plain_f2 = score_expected(problem.sample, weights, 1.0)
        assert 0.5 <= found <= 2
        assert found == 1 or score_expected(problem.sample, weights, found) > plain_f2


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_the_temperature_mends_a_member_whose_logits_were_scaled(make_members, scale):
    members, labels, folds = make_members([0.2], n=500, c=12)
    scaled = expit(scale * logit(members[0].probs.astype(np.float64).clip(1e-6, 1 - 1e-3)))
    problem = make_problem([replace(members[0], probs=scaled.astype(np.float32))], labels, folds)
    start = Solution(np.ones(1), np.zeros(1), 1.0, 0)
    found = solve(problem, Task(Job("member 0", EXPECTED), start))
    mended = score_expected(problem.sample, np.ones(1), found.temperature)
    right = score_expected(Sample(problem.sample.rows, members[0].probs[None], labels), np.ones(1), 1.0)
    assert 0.7 * scale < found.temperature < 1.4 * scale
    assert mended > score_expected(problem.sample, np.ones(1), 1.0)
    assert mended >= right - 2e-3


@pytest.mark.parametrize("method", ["member 1", "nelder-mead"])
def test_expected_f2_without_a_fold_does_not_look_at_that_folds_labels(make_members, method):
    members, labels, folds = make_members([1.0, 2.0], n=150)
    shuffled = labels.copy()
    shuffled[folds == 1] = labels[folds == 1][::-1]
    start = Solution(np.array([0.0, 1.0]) if method == "member 1" else uniform(2), np.zeros(1), 1.0, 0)
    one, two, other = (
        plain(solve(make_problem(members, truth, folds, t=0.2), Task(Job(method, EXPECTED, fold), start)))
        for truth, fold in ((labels, 1), (shuffled, 1), (shuffled, None))
    )
    assert one == two
    assert other != two
