"""One fit of the blend, wherever it runs: which pictures, which method, which decoder; in, weights and decoder out.

Jobs are independent and seeded, so the place where they run changes nothing.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from imet_ray.blending.methods import METHODS, fit, on_simplex, settled_shifts, uniform
from imet_ray.blending.problem import FitProblem
from imet_ray.cores import usable_cores
from imet_ray.prediction.decode import DECODERS, Decoder, SampleDecoder, ThresholdDecoder
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.pooling import averaged

THRESHOLD = "threshold"  # weights are fitted under it for sample decoders
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


@dataclass(frozen=True)
class Solution:
    """What a fit found."""

    weights: np.ndarray  # (M,)
    decoder: Decoder
    evaluations: int = 0
    curve: tuple[float, ...] = ()


Runner = Callable[[FitProblem, Sequence[Task]], list[Solution]]
# (problem, downwards, upwards) -> the problem with a wider range of thresholds; None where it cannot go further
Widen = Callable[[FitProblem, bool, bool], FitProblem | None]


def solve_here(problem: FitProblem, tasks: Sequence[Task]) -> list[Solution]:
    """All tasks in this process, one thread per core: numpy lets go of the interpreter."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda task: solve(problem, task), tasks))


def solve_all(
    problem: FitProblem, jobs: Sequence[Job], runner: Runner, widen: Widen
) -> tuple[dict[Job, Solution], FitProblem]:
    """Do all jobs; if the threshold of one comes to an end of the range, all again in a wider one.

    All, for a method that sees further than another would win by that alone; single members have cells of their own.

    Returns:
        A solution for each job, and the problem with the widest range that was needed.
    """
    on_sample = [job for job in jobs if issubclass(DECODERS[job.decoder], SampleDecoder)]
    starts = [replace(job, decoder=THRESHOLD) for job in on_sample]
    exact = list(dict.fromkeys([*(job for job in jobs if job not in on_sample), *starts]))
    blends = [Task(job) for job in exact if job.member is None]
    singles = [Task(job) for job in exact if job.member is not None]
    while True:
        solutions = runner(problem, blends)
        shifts = np.concatenate([[0.0], *(_shifts(found, problem) for found in solutions)])
        end = NEAR_END * problem.cells.reach
        down, up = bool(shifts.min() < -end), bool(shifts.max() > end)
        may_widen = end and problem.threshold is None and (down or up)
        wider = widen(problem, down, up) if may_widen else None
        if wider is None:
            break
        problem = wider
    solutions += runner(problem, singles)
    solved = {task.job: found for task, found in zip([*blends, *singles], solutions, strict=True)}
    tasks = [Task(job, solved[start]) for job, start in zip(on_sample, starts, strict=True)]
    solved |= dict(zip(on_sample, runner(problem, tasks), strict=True))
    return {job: solved[job] for job in jobs}, problem


def _shifts(found: Solution, problem: FitProblem) -> np.ndarray:
    """How far the thresholds are from where the search begins."""
    assert isinstance(found.decoder, ThresholdDecoder)
    return problem.cells.shifts_of(found.weights, found.decoder.thresholds(problem.groups))


def solve(problem: FitProblem, task: Task) -> Solution:
    """Do one task."""
    job, kind = task.job, DECODERS[task.job.decoder]
    if job.method in problem.given:
        return refitted(problem.given[job.method], job.decoder, problem, without=job.without)
    if issubclass(kind, SampleDecoder):
        assert task.start is not None
        return _on_sample(job, kind, task.start, problem)
    assert issubclass(kind, ThresholdDecoder)
    if job.member is not None:
        if problem.cells.n_members > 1:
            # a threshold by hand is the blend's; members are compared with it at their best
            problem = replace(problem, threshold=None)
        single = np.eye(problem.cells.n_members)[job.member]
        return refitted(single, job.decoder, problem, without=job.without)
    cells = problem.without(job.without, problem.cells)
    found = fit(
        cells,
        job.method,
        seed=problem.seed,
        by_group=kind.how_many(2) > 1,
        min_weight=problem.min_weight,
        max_members=problem.max_members,
        begin=problem.begin,
    )
    if problem.singles and found.weights.max() == 1:  # fitted, scored and decoded as that single member
        best = refitted(found.weights, job.decoder, problem, without=job.without)
        return replace(best, evaluations=found.evaluations, curve=found.curve)
    decoder = kind.fitted(cells.thresholds_of(found.weights, found.shifts), problem.groups)
    return Solution(found.weights, problem.decided(decoder), found.evaluations, found.curve)


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
        judge = SampleJudge(kind, weights, problem, without=without, every=every)
        return Solution(weights, judge.best_decoder(weights[judge.members]))
    assert issubclass(kind, ThresholdDecoder)
    cells, own = problem.deciding(weights, without=without)
    shifts = np.zeros(kind.how_many(cells.n_groups))
    if cells.n_members < len(weights):  # a single member: from where the blend's search begins
        shifts = cells.in_reach(cells.shifts_of(own, problem.cells.thresholds_of(weights, shifts)))
    shifts = settled_shifts(cells, own, shifts)
    decided = problem.decided(kind.fitted(cells.thresholds_of(own, shifts), problem.groups))
    return Solution(weights, decided)


def _on_sample(job: Job, kind: type[SampleDecoder], start: Solution, problem: FitProblem) -> Solution:
    """The same weights with the best decoder; for some methods weights of its own among the same members, too."""
    judge = SampleJudge(kind, start.weights, problem, without=job.without)
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
        self,
        kind: type[SampleDecoder],
        weights: np.ndarray,
        problem: FitProblem,
        *,
        without: int | None = None,
        every: int = 1,
    ) -> None:
        """On the problem's sample, of the members of weight above 0.

        Args:
            without: fold whose pictures are left out.
            every: one in so many of the rest is kept.
        """
        sample = problem.sample
        kept = np.flatnonzero(sample.folds != without)[::every]  # all, if nothing is left out
        self.kind, self.problem = kind, problem
        self.members = np.flatnonzero(weights)
        self.probs = np.stack([sample.probs[member][kept] for member in self.members])
        self.labels = sample.labels[kept]
        self.evaluations = 0

    def scores(self, weights: np.ndarray, decoder: Decoder) -> np.ndarray:
        """The score of each picture."""
        self.evaluations += 1
        decoded = decoder.decode(averaged(self.probs, weights, self.problem.scale))
        return metric_named(self.problem.metric).per_picture(decoded, self.labels)

    def best_decoder(self, weights: np.ndarray) -> Decoder:
        probs = averaged(self.probs, weights, self.problem.scale)
        return self.problem.decided(self.kind.fit(probs, self.labels, self.problem.metric))

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
