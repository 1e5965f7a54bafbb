"""One fit of the blend, wherever it runs: which pictures, which method, which decoder; in, weights and thresholds out.

A `Problem` holds all that fits need and nothing of size N x C, so that it can be sent to other processes once. Jobs are
independent and seeded, so the place where they run changes nothing.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.methods import METHODS, fit, on_simplex, restarts, settled_shifts, uniform
from imet_ray.blending.single_member import best_shifts, score_alone
from imet_ray.prediction.decode import at_least_one, with_temperature
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import Scale, averaged

THRESHOLD, GROUPS, EXPECTED = "threshold", "group-thresholds", "expected-f2"
TEMPERATURES = 0.5, 2.0  # searched between
TEMPERATURE_STEPS = 8
EXPECTED_STEPS = 12  # of Nelder-Mead under expected F2, a member: each decodes the sample
NOISE = 2.0  # standard errors over pictures: about 95 %
NEAR_END = 0.95  # of the reach of the shifts
DIRECT = "nelder-mead"  # the method whose weights are fitted under expected F2 itself


@dataclass(frozen=True)
class Sample:
    """Pictures drawn for expected F2, which has no short cut: all of them, where there are few."""

    rows: np.ndarray  # (S,) rising
    probs: np.ndarray  # (M, S, C) float16 or float32
    labels: np.ndarray  # (S, C) uint8


@dataclass(frozen=True)
class Problem:
    """What is fitted on."""

    cells: DisputedCells
    folds: np.ndarray  # (N,) int64
    sample: Sample | None  # None where expected F2 cannot be had: thresholds are subtracted already
    seed: int
    scale: Scale = "probability"
    min_weight: float = 0.0
    max_members: int | None = None
    alone: tuple[DisputedCells, ...] = ()  # of each member; none where thresholds are subtracted already


@dataclass(frozen=True)
class Job:
    """One fit: on all pictures, or without one fold's."""

    method: str  # of METHODS, or "member 3": that member alone
    decoder: str
    without: int | None = None  # fold

    @property
    def member(self) -> int | None:
        """The member, if it is one alone."""
        return int(self.method.removeprefix("member ")) if self.method.startswith("member ") else None


@dataclass(frozen=True)
class Task:
    """A job with what it starts from."""

    job: Job
    start: "Solution | None" = None  # expected F2: the same fit under the threshold
    restart: int | None = None  # of the method; the best of all if None


@dataclass(frozen=True)
class Solution:
    """What a fit found."""

    weights: np.ndarray  # (M,)
    shifts: np.ndarray  # (1,) or (G,)
    temperature: float
    evaluations: int
    curve: tuple[float, ...] = ()
    score: float = 0.0  # under a threshold, on the cells it was fitted on


Runner = Callable[[Problem, Sequence[Task]], list[Solution]]
# (downwards, upwards) -> the problem's cells with a wider window; None where it cannot go further
Widen = Callable[[bool, bool], DisputedCells | None]


def solve_here(problem: Problem, tasks: Sequence[Task]) -> list[Solution]:
    """All tasks in this process, one thread a core: numpy lets go of the interpreter."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda task: solve(problem, task), tasks))


def solve_all(
    problem: Problem, jobs: Sequence[Job], runner: Runner, widen: Widen
) -> tuple[dict[Job, Solution], DisputedCells]:
    """Do all jobs; if the shift of one comes to an end of the window, all again in a wider one.

    All, for a method that sees further than another would win by that alone. Members alone have cells of their own.

    Returns:
        A solution for each job, and the cells with the widest window that was needed.
    """
    first = [job for job in jobs if job.decoder != EXPECTED]
    missing = {replace(job, decoder=THRESHOLD) for job in jobs if job.decoder == EXPECTED} - set(first)
    first += sorted(missing, key=lambda job: (job.method, job.without is not None, job.without or 0))
    alone = [job for job in first if job.member is not None]
    blends = [job for job in first if job.member is None]
    while True:
        solved = _best_restarts(problem, blends, runner)
        shifts = np.concatenate([[0.0], *(solution.shifts for solution in solved.values())])
        end = NEAR_END * problem.cells.reach
        wider = None
        if problem.cells.reach and (shifts.min() < -end or shifts.max() > end):
            wider = widen(bool(shifts.min() < -end), bool(shifts.max() > end))
        if wider is None:
            break
        problem = replace(problem, cells=wider)
    solved |= _best_restarts(problem, alone, runner)
    rest = [job for job in jobs if job.decoder == EXPECTED]
    tasks = [Task(job, solved[replace(job, decoder=THRESHOLD)]) for job in rest]
    solved |= dict(zip(rest, runner(problem, tasks), strict=True))
    return {job: solved[job] for job in jobs}, problem.cells


def _best_restarts(problem: Problem, jobs: Sequence[Job], runner: Runner) -> dict[Job, Solution]:
    """Each restart of each job is a task of its own; the best one counts, the first of equals."""
    tasks = [Task(job, restart=i) for job in jobs for i in range(restarts(job.method, problem.cells))]
    found: dict[Job, Solution] = {}
    for task, one in zip(tasks, runner(problem, tasks), strict=True):
        before = found.setdefault(task.job, one)
        if before is not one:
            best = one if one.score > before.score else before
            found[task.job] = replace(best, evaluations=before.evaluations + one.evaluations)
    return found


def solve(problem: Problem, task: Task) -> Solution:
    """Do one task."""
    job, sample = task.job, problem.sample
    if task.start is not None:
        assert sample is not None
        return _under_expected_f2(job, task.start, sample, problem)
    by_group = job.decoder == GROUPS
    if job.member is not None:
        return refitted(
            np.eye(problem.cells.n_members)[job.member], job.decoder, problem, without=job.without
        )
    cells = problem.cells
    if job.without is not None:
        cells = cells.pictures(np.flatnonzero(problem.folds != job.without))
    found = fit(
        cells,
        job.method,
        seed=problem.seed,
        restart=task.restart,
        by_group=by_group,
        min_weight=problem.min_weight,
        max_members=problem.max_members,
    )
    solution = Solution(found.weights, found.shifts, 1.0, found.evaluations, found.curve, found.score)
    if problem.alone and found.weights.max() == 1:  # fitted, scored and decoded as that member alone
        best = refitted(found.weights, job.decoder, problem, without=job.without)
        solution = replace(solution, shifts=best.shifts, score=best.score)
    return solution


def refitted(
    weights: np.ndarray, decoder: str, problem: Problem, *, without: int | None = None, every: int = 1
) -> Solution:
    """Weights as they are, with the shifts or the temperature that are best for them.

    Args:
        without: fold that is not fitted on.
        every: so many pictures of the sample are one for the temperature.
    """
    shifts = np.zeros(problem.cells.n_groups if decoder == GROUPS else 1)
    if decoder == EXPECTED:
        assert problem.sample is not None
        kept = np.flatnonzero(problem.folds[problem.sample.rows] != without)[
            ::every
        ]  # all, if nothing is left out
        used = np.flatnonzero(weights)
        probs = np.stack([problem.sample.probs[member][kept] for member in used])
        judge = ExpectedF2(probs, problem.sample.labels[kept], problem.scale)
        return Solution(weights, shifts, judge.best_temperature(weights[used]), judge.evaluations)
    member = int(np.argmax(weights))
    alone = bool(problem.alone) and weights[member] == 1
    cells = problem.alone[member] if alone else problem.cells
    if without is not None:
        cells = cells.pictures(np.flatnonzero(problem.folds != without))
    if alone:
        first = float(problem.cells.thresholds[member])
        shifts = best_shifts(cells, len(shifts), first, problem.scale)
        return Solution(weights, shifts, 1.0, 0, score=score_alone(cells, shifts, first, problem.scale))
    shifts = settled_shifts(cells, weights, shifts)
    return Solution(weights, shifts, 1.0, 0, score=cells.score(weights, shifts))


def _under_expected_f2(job: Job, start: Solution, sample: Sample, problem: Problem) -> Solution:
    """The same weights with the best temperature; for one method weights of its own among the same members, too."""
    kept = problem.folds[sample.rows] != job.without  # all, where nothing is left out
    used = np.flatnonzero(start.weights)  # members of weight 0 are not looked at: 50 of them are much
    probs = np.stack([sample.probs[member][kept] for member in used])
    judge = ExpectedF2(probs, sample.labels[kept], problem.scale)
    weights = start.weights.copy()
    temperature = judge.best_temperature(weights[used])
    if job.method == DIRECT and len(used) > 1 and kept.any():
        weights[used] = judge.best_weights(weights[used], temperature, problem.min_weight)
        temperature = judge.best_temperature(weights[used])
    return replace(
        start, weights=weights, temperature=temperature, evaluations=start.evaluations + judge.evaluations
    )


class ExpectedF2:
    """The score under expected F2 of some pictures, decoded in full each time."""

    def __init__(self, probs: np.ndarray, labels: np.ndarray, scale: Scale) -> None:
        self.probs, self.labels, self.scale = probs, labels, scale
        self.evaluations = 0

    def scores(self, weights: np.ndarray, temperature: float) -> np.ndarray:
        """F2 of each picture."""
        self.evaluations += 1
        mixed = with_temperature(averaged(self.probs, weights, self.scale), temperature)
        return METRICS["f2"].per_picture(
            at_least_one(mixed, METRICS["f2"].decode_expected(mixed)), self.labels
        )

    def best_temperature(self, weights: np.ndarray) -> float:
        """1, unless another is better."""
        if not len(self.labels):  # a fold that has all of the sample is left out
            return 1.0
        mixed = averaged(self.probs, weights, self.scale)

        def loss(logarithm: float) -> float:
            self.evaluations += 1
            warmed = with_temperature(mixed, float(np.exp(logarithm)))
            return -METRICS["f2"].score(
                at_least_one(warmed, METRICS["f2"].decode_expected(warmed)), self.labels
            )

        ends = tuple(np.log(TEMPERATURES))
        found = minimize_scalar(
            loss, bounds=ends, method="bounded", options={"maxiter": TEMPERATURE_STEPS, "xatol": 0.01}
        )
        return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0

    def best_weights(self, start: np.ndarray, temperature: float, min_weight: float) -> np.ndarray:
        """Nelder-Mead from `start`, which stays where nothing is better beyond the noise of these pictures.

        (A sample of 4,096 at iMet's size moved a weight from 0.24 to 0.02 for +0.001, and lost 0.0007 on all pictures.)
        """
        found = minimize(
            lambda raw: -self.scores(on_simplex(raw), temperature).mean(),
            start,
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([start, 0.6 * start + 0.4 * np.eye(len(start))]),
                "maxfev": EXPECTED_STEPS * len(start),
                "xatol": 1e-3,
                "fatol": 1e-6,
            },
        )
        end = on_simplex(found.x)
        end[end < min(min_weight, end.max())] = 0
        ends = [start, uniform(len(start)), end / end.sum()]
        before, *after = (self.scores(weights, temperature) for weights in ends)
        gains = [0.0, *(_sure_gain(scores - before) for scores in after)]
        best: np.ndarray = ends[int(np.argmax(gains))]
        return best


def _sure_gain(differences: np.ndarray) -> float:
    """The mean, if it is beyond its noise; else 0."""
    mean, noise = float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))
    return mean if mean > NOISE * noise else 0.0


def known_methods() -> tuple[str, ...]:
    """The methods that can be asked for."""
    return tuple(METHODS)
