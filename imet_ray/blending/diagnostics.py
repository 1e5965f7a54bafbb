"""What else the report says of a blend: members' worth and doubts, how alike they err, the threshold curve."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from imet_ray.blending.cross_fit import CrossFit, Judged, bootstrap, score_pictures
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import Solution, refitted
from imet_ray.blending.methods import weights_of
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.result import Worth
from imet_ray.cores import usable_cores
from imet_ray.prediction.decode import SampleDecoder
from imet_ray.prediction.metrics import metric_named

CURVE = 41  # points of the threshold curve
WHOLE_SAMPLES = 4  # members whose sample decoders see the whole sample; with more, a part of it
FREQUENT = 40  # labels that are tried for each picture, the most frequent ones
PAIRS = 200_000  # cells that correlations are taken from


def worth_of_members(chosen: Judged, found: CrossFit) -> tuple[Worth, ...]:
    """What the chosen blend loses, nested, where one member's weight goes to the others in proportion.

    The decoder is fitted anew: with that of all members every member would seem to be needed.
    """
    problem, fits = found.problem, found.fits
    m = len(problem.members)
    if m == 1:
        return ()
    every = -(-m // WHOLE_SAMPLES) if isinstance(chosen.whole.decoder, SampleDecoder) else 1

    def scored(member: int | None) -> np.ndarray:
        """The nested score of each picture without a member, or with all, fitted alike."""
        scores = chosen.nested.copy()
        for fold, fitted in chosen.by_fold.items():
            weights = fitted.weights
            if member is not None and weights[member] > 0:
                weights = weights_of([i for i in range(m) if i != member], weights)
            elif every == 1:
                continue  # as it was fitted
            rows = np.flatnonzero(problem.folds == fold)
            again = refitted(weights, chosen.decoder, fits, without=fold, every=every)
            again = replace(again, decoder=again.decoder.limited(fitted.decoder.limits))
            scores[rows] = score_pictures(again, rows, problem, fits)
        return scores

    with ThreadPoolExecutor(usable_cores()) as pool:
        nested = np.stack(list(pool.map(scored, (None, *range(m)))))
    gains = bootstrap(nested[0] - nested[1:], problem.seed)
    return tuple(
        Worth(name, score, gain)
        for name, score, gain in zip(problem.names, nested[1:].mean(axis=1).tolist(), gains, strict=True)
    )


def doubts(found: CrossFit, worth: Sequence[Worth]) -> list[str]:
    """Members that are no better than no model, and those that the blend is better without: a line each."""
    problem, lines = found.problem, []
    best, k = _frequent_labels(problem)
    for i, member in enumerate(problem.members):
        score = max(one.worth for one in found.singles if one.member == i)
        if score <= best and not problem.margins:
            known = "" if member.trials else ": is each row that of its id, each column that of its label?"
            lines.append(
                f"{member.name} is no better than no model: it scores {score:.4f} by itself, and the same {k} most "
                f"frequent labels for each picture {best:.4f}{known}"
            )
    lines += [
        f"{one.name} makes the blend worse beyond noise ({one.gain}): try it without"
        for one in worth
        if one.gain.high < 0
    ]
    return lines


def _frequent_labels(problem: BlendProblem) -> tuple[float, int]:
    """The score of the k most frequent labels for each picture, and the best k: what takes no model."""
    frequent = np.argsort(-problem.labels.sum(axis=0), kind="stable")
    decoded, scores = np.zeros(problem.sample.labels.shape, dtype=bool), []
    for label in frequent[:FREQUENT]:
        decoded[:, label] = True
        scores.append(metric_named(problem.metric).score(decoded, problem.sample.labels))
    return max(scores), int(np.argmax(scores)) + 1


def error_correlation(problem: BlendProblem) -> tuple[tuple[float, ...], ...]:
    """Of the members' errors p - y, over cells of the sample where some member sees a chance."""
    m, sample = len(problem.members), problem.sample
    flat = sample.probs.reshape(m, -1)
    cells = np.flatnonzero((flat > flat.dtype.type(0.05)).any(axis=0))
    cells = cells[:: max(1, len(cells) // PAIRS)]
    errors = flat[:, cells].astype(np.float64) - sample.labels.reshape(-1)[cells]
    varied = len(cells) > 1 and errors.std(axis=1).all()
    found = np.atleast_2d(np.corrcoef(errors)) if varied else np.eye(m)
    return tuple(map(tuple, found.tolist()))


def threshold_curve(cells: DisputedCells, used: Solution) -> tuple[tuple[float, float], ...]:
    """The score of the chosen weights by the threshold of the blended probability; nothing where it cannot move."""
    if not cells.reach:
        return ()
    shifts = np.linspace(-cells.reach, cells.reach, CURVE)
    return tuple(
        (float(limit), cells.score(used.weights, np.array([shift])))
        for limit, shift in zip(cells.thresholds_of(used.weights, shifts), shifts, strict=True)
    )
