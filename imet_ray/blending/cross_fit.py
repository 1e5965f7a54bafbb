"""All methods under all decoders, fitted on everything and without each fold, and scored picture by picture.

Pictures left without a label get their most probable one, as in a submission, unless the data have such pictures.
Everything goes in blocks of rows, so members may be memory-mapped.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.fit_jobs import Job, Runner, Solution, solve_all
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.cores import usable_cores
from imet_ray.prediction.decode import ThresholdDecoder
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.pooling import averaged

ROWS = 2048  # pictures per block
RESAMPLES = 1000  # of the bootstrap
PARTS = 8  # that threads share, each with a generator of its own: any number of threads gives the same

Progress = Callable[[str], None]
Key = tuple[str, str]  # method, decoder


def silent(text: str) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Gain:
    """How far one is above another: mean and bootstrap 95 % interval over pictures."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class Judged:
    """One method under one decoder: what was fitted, and the score of each picture."""

    method: str
    decoder: str
    whole: Solution  # fitted on all pictures
    by_fold: dict[int, Solution]  # fitted without each fold
    own: np.ndarray  # (N,) float64, of `whole`
    nested: np.ndarray  # (N,) float64, each picture by the fit that never saw its fold

    @property
    def key(self) -> Key:
        return self.method, self.decoder

    @property
    def member(self) -> int | None:
        """The member, if it is a single one."""
        return Job(self.method, self.decoder).member

    @property
    def worth(self) -> float:
        """The mean nested score."""
        return float(self.nested.mean())


@dataclass(frozen=True)
class CrossFit:
    """What was fitted on what."""

    problem: BlendProblem
    fits: FitProblem  # with the widest range of thresholds that was needed
    judged: dict[Key, Judged]

    @property
    def blends(self) -> list[Judged]:
        return [one for one in self.judged.values() if one.member is None]

    @property
    def singles(self) -> list[Judged]:
        return [one for one in self.judged.values() if one.member is not None]


def best_nested(judged: Sequence[Judged]) -> Judged:
    """The first of equals."""
    return max(judged, key=lambda one: one.worth)


def cross_fit(
    problem: BlendProblem,
    fits: FitProblem,
    methods: Sequence[str],
    decoders: Sequence[str],
    runner: Runner,
    progress: Progress,
) -> CrossFit:
    """Fit and score.

    Args:
        methods: of `METHODS`, or "member 3".
    """
    progress(f"averaging as {fits.scale}: {len(methods)} methods under {len(decoders)} decoders")
    jobs = [
        Job(method, decoder, without)
        for decoder in decoders
        for method in methods
        for without in [None, *problem.fold_numbers]
    ]

    def widen(fits: FitProblem, down: bool, up: bool) -> FitProblem | None:
        progress("a threshold went far: counting the cells of a wider range")
        return fits.widened(problem, down, up)

    solved, fits = solve_all(fits, jobs, runner, widen)
    judged = {}
    for decoder in decoders:
        progress(f"scoring {len(methods)} under {decoder}")
        for method in methods:
            whole = solved[Job(method, decoder)]
            by_fold = {fold: solved[Job(method, decoder, fold)] for fold in problem.fold_numbers}
            own = score_pictures(whole, np.arange(len(problem.labels)), problem, fits)
            nested = np.empty(len(problem.labels))
            for fold, solution in by_fold.items():
                rows = np.flatnonzero(problem.folds == fold)
                nested[rows] = score_pictures(solution, rows, problem, fits)
            judged[method, decoder] = Judged(method, decoder, whole, by_fold, own, nested)
    return CrossFit(problem, fits, judged)


def score_pictures(
    solution: Solution, rows: np.ndarray, problem: BlendProblem, fits: FitProblem
) -> np.ndarray:
    """The score of some pictures: (n,) float64.

    Args:
        rows: (n,) rising indices of pictures.
    """
    metric, decoder = metric_named(problem.metric), solution.decoder
    if not isinstance(decoder, ThresholdDecoder) or decoder.limits is not None or fits.threshold is not None:

        def score(start: int) -> np.ndarray:
            part = rows[start : start + ROWS]
            decoded = decoder.decode(blended(solution, problem, fits, part))
            return metric.per_picture(decoded, problem.labels[part])

        with ThreadPoolExecutor(usable_cores()) as pool:
            return np.concatenate(list(pool.map(score, range(0, len(rows), ROWS))))
    cells, weights = fits.deciding(solution.weights)
    shifts = cells.in_reach(cells.shifts_of(weights, decoder.thresholds(problem.groups)))
    hits, chosen = (counts[rows] for counts in cells.counts(weights, shifts))
    if decoder.negatives:
        return metric.of_counts(hits, cells.true[rows], chosen)
    none = np.flatnonzero(chosen == 0)
    for start in range(0, len(none), ROWS):
        part = none[start : start + ROWS]
        top = blended(solution, problem, fits, rows[part]).argmax(axis=1)
        hits[part] = problem.labels[rows[part], top] > 0
    return metric.of_counts(hits, cells.true[rows], np.maximum(chosen, 1))


def blended(solution: Solution, problem: BlendProblem, fits: FitProblem, rows: np.ndarray) -> np.ndarray:
    """Blended probabilities of some pictures; members of weight 0 are not read."""
    used = np.flatnonzero(solution.weights).tolist()
    values = [problem.members[member].probs[rows] for member in used]
    return averaged(values, solution.weights[used], fits.scale)


def bootstrap(differences: np.ndarray, seed: int, *, together: bool = False) -> list[Gain]:
    """Means of (K, N) differences and their 95 % intervals, over the same resampled pictures for all K.

    Args:
        together: intervals that hold for all K at once, so that the best of them may be picked by them (the maximum
            of the studentised deviations, Romano & Wolf 2005).
    """
    k, n = differences.shape

    def resampled(rng: np.random.Generator) -> np.ndarray:
        means = np.empty((RESAMPLES // PARTS, k))
        for i in range(len(means)):
            times = np.bincount(rng.integers(0, n, n, dtype=np.int32), minlength=n).astype(np.float64)
            means[i] = differences @ times / n
        return means

    with ThreadPoolExecutor(usable_cores()) as pool:
        means = np.concatenate(list(pool.map(resampled, np.random.default_rng(seed).spawn(PARTS))))
    centre = differences.mean(axis=1)
    if together:
        spread = np.maximum(means.std(axis=0), 1e-12)
        reach = np.quantile((np.abs(means - centre) / spread).max(axis=1), 0.95) * spread
        low, high = centre - reach, centre + reach
    else:
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return [Gain(*map(float, row)) for row in zip(centre, low, high, strict=True)]
