"""Limits on the number of labels, given or fitted: on the sample, without the fold that is scored, as a decoder is.

They come last: weights and decoder are those of the blend. Fitted ones are used only where their nested gain is beyond
noise.
"""

from dataclasses import dataclass, replace

import numpy as np

from imet_ray.blending.cross_fit import CrossFit, Gain, Judged, best_nested, bootstrap, score_pictures
from imet_ray.blending.fit_jobs import Solution
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.prediction.limits import PICTURE, Limits, Range
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.pooling import averaged

MOST = 12  # labels of a group: no higher limit is tried
LEAST = 2  # likewise of what a group must have
ROUNDS = 2  # through the groups


@dataclass(frozen=True)
class LimitsFound:
    """What limits are worth."""

    limits: str  # as `--limits` takes them
    fitted: bool
    decoder: str
    own: float
    nested: float
    gain: Gain  # nested, over the blend without limits
    used: bool

    def __str__(self) -> str:
        how = "fitted" if self.fitted else "given"
        end = "" if self.used else "; not beyond noise, so not used"
        return (
            f"limits on labels, {how}: {self.limits}, under {self.decoder}: nested {self.nested:.4f}, over none "
            f"{self.gain}{end}"
        )


def with_limits(
    chosen: Judged, found: CrossFit, problem: BlendProblem, options: BlendOptions
) -> tuple[Judged, LimitsFound]:
    """The chosen method under its best decoder with limits, and what they gain; as it is where they are not used.

    Args:
        found: what the method was fitted and judged in.
        problem: the blend's, which has the label groups.
    """
    given = given_limits(options, problem)
    alike = [one for one in found.judged.values() if one.method == chosen.method]
    best = best_nested([_limited(one, found, problem, given) for one in alike])
    [gain] = bootstrap((best.nested - chosen.nested)[None], problem.seed)
    used = given is not None or gain.low > 0
    limits = best.whole.decoder.limits
    said = LimitsFound(
        limits=str(limits) if limits is not None else "none",
        fitted=given is None,
        decoder=best.decoder,
        own=float(best.own.mean()),
        nested=best.worth,
        gain=gain,
        used=used,
    )
    return best if used else chosen, said


def given_limits(options: BlendOptions, problem: BlendProblem) -> Limits | None:
    """The limits that a person gave; None where they are fitted, or there are none.

    Raises:
        ConfigError: for limits that the labels cannot have.
    """
    if options.limits is None or options.limits == "fit":
        return None
    return Limits.of(options.limits, problem.label_groups)


def _limited(one: Judged, found: CrossFit, problem: BlendProblem, given: Limits | None) -> Judged:
    """The same fits with limits, scored anew."""
    judged, fits = found.problem, found.fits

    def limited(solution: Solution, without: int | None) -> Solution:
        limits = given if given is not None else _fitted(solution, found, problem, without)
        return replace(solution, decoder=solution.decoder.limited(limits))

    whole = limited(one.whole, None)
    by_fold = {fold: limited(solution, fold) for fold, solution in one.by_fold.items()}
    nested = np.empty(len(problem.labels))
    for fold, solution in by_fold.items():
        rows = np.flatnonzero(problem.folds == fold)
        nested[rows] = score_pictures(solution, rows, judged, fits)
    own = score_pictures(whole, np.arange(len(problem.labels)), judged, fits)
    return replace(one, whole=whole, by_fold=by_fold, own=own, nested=nested)


def _fitted(solution: Solution, found: CrossFit, problem: BlendProblem, without: int | None) -> Limits | None:
    """The best limits on the sample, less one fold; None where none gains."""
    sample = found.problem.sample
    kept = np.flatnonzero(sample.folds != without)
    used = np.flatnonzero(solution.weights).tolist()
    probs = averaged(
        [sample.probs[member][kept] for member in used], solution.weights[used], found.fits.scale
    )
    names = problem.group_names or (PICTURE,)
    decoded = solution.decoder.decode(probs)
    ranges = fit_ranges(probs, decoded, sample.labels[kept], problem.groups, problem.metric)
    held = {names[group]: limit for group, limit in ranges.items()}
    return Limits.of(held, problem.label_groups) if held else None


def fit_ranges(
    probs: np.ndarray, decoded: np.ndarray, labels: np.ndarray, groups: np.ndarray, metric: str
) -> dict[int, Range]:
    """For each group that gains by one, the limit whose score is best; group by group, the others as they are.

    Args:
        probs: (S, C) float32.
        decoded: (S, C) bool.
        labels: (S, C) uint8.
        groups: (C,) int, the group of each label.
        metric: a key of `METRICS`.
    """
    true = np.count_nonzero(labels, axis=1)
    found: dict[int, Range] = {}
    if not len(labels):
        return found
    parts = {}
    for group in np.unique(groups).tolist():
        columns = groups == group
        parts[group] = _Counts(probs[:, columns], decoded[:, columns], labels[:, columns])
    free = [part.within(Range()) for part in parts.values()]
    hits, chosen = (np.sum(counts, axis=0) for counts in zip(*free, strict=True))
    of = metric_named(metric).of_counts
    best = float(of(hits, true, chosen).mean())
    tried = [Range(least=a, most=b) for a in range(LEAST + 1) for b in (None, *range(max(a, 1), MOST + 1))]
    for _ in range(ROUNDS):
        before = best
        for group, part in parts.items():
            own = part.within(found.get(group, Range()))
            rest = hits - own[0], chosen - own[1]
            for limit in tried:
                more = part.within(limit)
                score = float(of(rest[0] + more[0], true, rest[1] + more[1]).mean())
                if score > best:
                    best, found[group] = score, limit
                    hits, chosen = rest[0] + more[0], rest[1] + more[1]
        if best <= before:
            break
    return {group: limit for group, limit in found.items() if limit != Range()}


class _Counts:
    """The labels of one group in the order in which limits take and give them."""

    def __init__(self, probs: np.ndarray, decoded: np.ndarray, labels: np.ndarray) -> None:
        self.n = np.count_nonzero(decoded, axis=1)
        self.size = decoded.shape[1]
        first = np.lexsort((-probs, ~decoded), axis=1)[:, :MOST]
        hits = np.cumsum(np.take_along_axis(labels, first, axis=1) > 0, axis=1)
        self.hits_of_first = np.pad(hits, ((0, 0), (1, 0)))  # (S, k + 1)
        self.hits = np.count_nonzero(decoded & (labels > 0), axis=1)

    def within(self, limit: Range) -> tuple[np.ndarray, np.ndarray]:
        """Hits and chosen labels of each picture: (S,) int each."""
        most = self.size if limit.most is None else min(limit.most, self.size)
        k = np.clip(self.n, min(limit.least, self.size), most)
        last = self.hits_of_first.shape[1] - 1
        first = np.take_along_axis(self.hits_of_first, np.minimum(k, last)[:, None], axis=1)[:, 0]
        return np.where(k == self.n, self.hits, first), k
