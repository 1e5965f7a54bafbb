"""One fit of the blend, wherever it runs: which pictures, which method, which decoder; in, weights and decoder out.

Jobs are independent and seeded, so the place where they run changes nothing.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from imet_ray.blending.methods import METHODS, fit, on_simplex, restarts, settled_shifts, uniform
from imet_ray.blending.problem import FitProblem
from imet_ray.prediction.decode import DECODERS, Decoder, SampleDecoder, ThresholdDecoder
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.pooling import Scale, averaged

THRESHOLD = "threshold"  # weights are fitted under it for decoders that have no short cut
SAMPLE_STEPS = 12  # of Nelder-Mead on a sample, per member: each decodes the sample
NOISE = 2.0  # standard errors over pictures: about 95 %
NEAR_END = 0.95  # of the reach of the shifts
SINGLE = "member "  # and its number: the method of a single member


@dataclass(frozen=True)
class Job:
    """One fit: on all pictures, or without one fold's."""

    method: str  # of METHODS, or "member 3": that single member
    decoder: str
    without: int | None = None  # fold

    @property
    def member(self) -> int | None:
        """The member, if it is a single one."""
        return int(self.method.removeprefix(SINGLE)) if self.method.startswith(SINGLE) else None


@dataclass(frozen=True)
class Task:
    """A job with what it starts from."""

    job: Job
    start: "Solution | None" = None  # of a sample decoder: the same fit under the threshold
    restart: int | None = None  # of the method; the best of all if None


@dataclass(frozen=True)
class Solution:
    """What a fit found."""

    weights: np.ndarray  # (M,)
    decoder: Decoder
    evaluations: int = 0
    curve: tuple[float, ...] = ()
    score: float = 0.0  # under thresholds, on the cells it was fitted on


Runner = Callable[[FitProblem, Sequence[Task]], list[Solution]]
# (problem, downwards, upwards) -> the problem with a wider range of thresholds; None where it cannot go further
Widen = Callable[[FitProblem, bool, bool], FitProblem | None]


def solve_here(problem: FitProblem, tasks: Sequence[Task]) -> list[Solution]:
    """All tasks in this process, one thread per core: numpy lets go of the interpreter."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda task: solve(problem, task), tasks))


def solve_all(
    problem: FitProblem, jobs: Sequence[Job], runner: Runner, widen: Widen
) -> tuple[dict[Job, Solution], FitProblem]:
    """Do all jobs; if the threshold of one comes to an end of the range, all again in a wider one.

    All, for a method that sees further than another would win by that alone. Single members have cells of their own.

    Returns:
        A solution for each job, and the problem with the widest range that was needed.
    """
    on_sample = [job for job in jobs if issubclass(DECODERS[job.decoder], SampleDecoder)]
    first = [job for job in jobs if job not in set(on_sample)]
    missing = {replace(job, decoder=THRESHOLD) for job in on_sample} - set(first)
    first += sorted(missing, key=lambda job: (job.method, job.without is not None, job.without or 0))
    blends = [job for job in first if job.member is None]
    while True:
        solved = _best_restarts(problem, blends, runner)
        shifts = np.concatenate([[0.0], *(_shifts(found, problem) for found in solved.values())])
        end = NEAR_END * problem.cells.reach
        down, up = bool(shifts.min() < -end), bool(shifts.max() > end)
        wider = widen(problem, down, up) if end and (down or up) else None
        if wider is None:
            break
        problem = wider
    solved |= _best_restarts(problem, [job for job in first if job.member is not None], runner)
    tasks = [Task(job, solved[replace(job, decoder=THRESHOLD)]) for job in on_sample]
    solved |= dict(zip(on_sample, runner(problem, tasks), strict=True))
    return {job: solved[job] for job in jobs}, problem


def _best_restarts(problem: FitProblem, jobs: Sequence[Job], runner: Runner) -> dict[Job, Solution]:
    """Each restart of each job is a task of its own; the best one counts, the first of equals."""
    tasks = [
        Task(job, restart=i)
        for job in jobs
        for i in range(1 if job.member is not None else restarts(job.method, problem.cells))
    ]
    found: dict[Job, Solution] = {}
    for task, one in zip(tasks, runner(problem, tasks), strict=True):
        before = found.setdefault(task.job, one)
        if before is not one:
            best = one if one.score > before.score else before
            found[task.job] = replace(best, evaluations=before.evaluations + one.evaluations)
    return found


def _shifts(found: Solution, problem: FitProblem) -> np.ndarray:
    """How far the thresholds are from where the search begins."""
    assert isinstance(found.decoder, ThresholdDecoder)
    return problem.cells.shifts_of(found.weights, found.decoder.thresholds(problem.groups))


def solve(problem: FitProblem, task: Task) -> Solution:
    """Do one task."""
    job, kind = task.job, DECODERS[task.job.decoder]
    if issubclass(kind, SampleDecoder):
        assert task.start is not None
        return _on_sample(job, kind, task.start, problem)
    assert issubclass(kind, ThresholdDecoder)
    if job.member is not None:
        single = np.eye(problem.cells.n_members)[job.member]
        return refitted(single, job.decoder, problem, without=job.without)
    cells = problem.cells
    if job.without is not None:
        cells = cells.pictures(np.flatnonzero(problem.folds != job.without))
    found = fit(
        cells,
        job.method,
        seed=problem.seed,
        restart=task.restart,
        by_group=kind.how_many(2) > 1,
        min_weight=problem.min_weight,
        max_members=problem.max_members,
    )
    solution = Solution(
        found.weights,
        kind.fitted(cells.thresholds_of(found.weights, found.shifts), problem.groups),
        found.evaluations,
        found.curve,
        found.score,
    )
    if problem.singles and found.weights.max() == 1:  # fitted, scored and decoded as that single member
        best = refitted(found.weights, job.decoder, problem, without=job.without)
        return replace(solution, decoder=best.decoder, score=best.score)
    return solution


def refitted(
    weights: np.ndarray, decoder: str, problem: FitProblem, *, without: int | None = None, every: int = 1
) -> Solution:
    """Weights as they are, with the decoder that is best for them.

    Args:
        without: fold that is not fitted on.
        every: one in so many pictures of the sample is fitted on.
    """
    kind = DECODERS[decoder]
    if issubclass(kind, SampleDecoder):
        judge = SampleJudge.of(kind, weights, problem, without=without, every=every)
        return Solution(weights, judge.best_decoder(weights[judge.members]))
    assert issubclass(kind, ThresholdDecoder)
    cells, own = problem.deciding(weights, without=without)
    shifts = np.zeros(kind.how_many(cells.n_groups))
    if cells.n_members < len(weights):  # a single member: from where the blend's search begins
        shifts = cells.in_reach(cells.shifts_of(own, problem.cells.thresholds_of(weights, shifts)))
    shifts = settled_shifts(cells, own, shifts)
    thresholds = cells.thresholds_of(own, shifts)
    return Solution(weights, kind.fitted(thresholds, problem.groups), score=cells.score(own, shifts))


def _on_sample(job: Job, kind: type[SampleDecoder], start: Solution, problem: FitProblem) -> Solution:
    """The same weights with the best decoder; for some methods weights of its own among the same members, too."""
    judge = SampleJudge.of(kind, start.weights, problem, without=job.without)
    used, weights = judge.members, start.weights.copy()
    decoder = judge.best_decoder(weights[used])
    own_weights = job.member is None and METHODS[job.method].under_decoder
    if own_weights and len(used) > 1 and len(judge.labels):
        weights[used] = judge.best_weights(weights[used], decoder, problem.min_weight)
        decoder = judge.best_decoder(weights[used])
    return replace(start, weights=weights, decoder=decoder, evaluations=start.evaluations + judge.evaluations)


class SampleJudge:
    """The score under a sample decoder of some pictures, decoded in full each time."""

    def __init__(
        self, kind: type[SampleDecoder], probs: np.ndarray, labels: np.ndarray, *, scale: Scale, metric: str
    ) -> None:
        self.kind, self.probs, self.labels, self.scale, self.metric = kind, probs, labels, scale, metric
        self.members = np.arange(len(probs))
        self.evaluations = 0

    @classmethod
    def of(
        cls,
        kind: type[SampleDecoder],
        weights: np.ndarray,
        problem: FitProblem,
        *,
        without: int | None = None,
        every: int = 1,
    ) -> "SampleJudge":
        """On the problem's sample, of members of weight above 0: 50 of weight 0 are much to look at.

        Args:
            without: fold whose pictures are left out.
            every: one in so many of the rest is kept.
        """
        sample = problem.sample
        assert sample is not None
        kept = np.flatnonzero(sample.folds != without)[::every]  # all, if nothing is left out
        used = np.flatnonzero(weights)
        probs = np.stack([sample.probs[member][kept] for member in used])
        judge = cls(kind, probs, sample.labels[kept], scale=problem.scale, metric=problem.metric)
        judge.members = used
        return judge

    def scores(self, weights: np.ndarray, decoder: Decoder) -> np.ndarray:
        """The score of each picture."""
        self.evaluations += 1
        decoded = decoder.decode(averaged(self.probs, weights, self.scale))
        return metric_named(self.metric).per_picture(decoded, self.labels)

    def best_decoder(self, weights: np.ndarray) -> Decoder:
        return self.kind.fit(averaged(self.probs, weights, self.scale), self.labels, self.metric)

    def best_weights(self, start: np.ndarray, decoder: Decoder, min_weight: float) -> np.ndarray:
        """Nelder-Mead from `start`, which stays where nothing is better beyond the noise of these pictures.

        (A sample of 4,096 at iMet's size moved a weight from 0.24 to 0.02 for +0.001, and lost 0.0007 on all pictures.)
        """
        found = minimize(
            lambda raw: -self.scores(on_simplex(raw), decoder).mean(),
            start,
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([start, 0.6 * start + 0.4 * np.eye(len(start))]),
                "maxfev": SAMPLE_STEPS * len(start),
                "xatol": 1e-3,
                "fatol": 1e-6,
            },
        )
        end = on_simplex(found.x)
        end[end < min(min_weight, end.max())] = 0
        ends = [start, uniform(len(start)), end / end.sum()]
        before, *after = (self.scores(weights, decoder) for weights in ends)
        gains = [0.0, *(_sure_gain(scores - before) for scores in after)]
        best: np.ndarray = ends[int(np.argmax(gains))]
        return best


def _sure_gain(differences: np.ndarray) -> float:
    """The mean, if it is beyond its noise; else 0."""
    mean, noise = float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))
    return mean if mean > NOISE * noise else 0.0
