"""The order in which members are best predicted when time may run out, and how to decode what is there by then.

Greedy: next comes the member that adds most score per second to those before it (Smith 1956: most worth per second
first). The first one's gain is what it adds to what costs nothing, the most frequent labels for all pictures: by score
per second alone the quickest would be first however poor. Weights are the blend's, renormalised over the prefix. The
decoder is fitted anew for each prefix, on what the blend was fitted on.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from imet_ray.blending.cross_fit import CrossFit, Judged, score_pictures
from imet_ray.blending.fit_jobs import SampleJudge, Solution, refitted
from imet_ray.blending.methods import settled_shifts, weights_of
from imet_ray.cores import usable_cores
from imet_ray.prediction.decode import SampleDecoder
from imet_ray.prediction.ensemble import Prefix
from imet_ray.prediction.metrics import metric_named

MARGINS = 8_000_000  # that the order is found on: 7 members of iMet's size; with more, every second picture or fewer
WHOLE_SAMPLES = 16  # prefixes whose sample decoder sees the whole sample, 4 s each; with more, a part of it
SAME = 16  # labels at most that are given to all pictures


def prefixes(chosen: Judged, found: CrossFit) -> tuple[Prefix, ...]:
    """One for each member of weight above 0; the last one decodes just as the blend does.

    Their scores are own: on all pictures under thresholds, on the sample under sample decoders.
    """
    problem, used = found.problem, chosen.whole
    order = _order(used.weights, found)
    every = -(-len(order) // WHOLE_SAMPLES)

    def prefix(k: int) -> Prefix:
        fitted = used
        if k < len(order):
            weights = weights_of(order[:k], used.weights)
            fitted = refitted(weights, chosen.decoder, found.fits, every=every)
            fitted = replace(fitted, decoder=fitted.decoder.limited(used.decoder.limits))
        names = [problem.names[i] for i in order[:k]]
        return Prefix(members=names, decoder=fitted.decoder, score=_score(fitted, found))

    with ThreadPoolExecutor(usable_cores()) as pool:
        return tuple(pool.map(prefix, range(1, len(order) + 1)))


def _order(weights: np.ndarray, found: CrossFit) -> list[int]:
    """Under the best threshold, whatever the decoder: others would decode the sample for each candidate."""
    problem, cells = found.problem, found.fits.cells
    rest = np.flatnonzero(weights).tolist()
    costs = {i: problem.members[i].seconds or 0.0 for i in rest}
    if not all(costs.values()):
        costs = dict.fromkeys(rest, 1.0)
    rows = np.arange(0, len(problem.labels), -(-max(1, cells.margins.size) // MARGINS))
    if len(rows) < len(problem.labels):
        cells = cells.pictures(rows)
    order: list[int] = []
    before = _for_nothing(problem.labels[rows], cells.metric)

    def settled(member: int) -> float:
        candidate = weights_of([*order, member], weights)
        return cells.score(candidate, settled_shifts(cells, candidate, np.zeros(1)))

    with ThreadPoolExecutor(usable_cores()) as pool:
        while len(rest) > 1:
            scores = list(pool.map(settled, rest))
            gains = [score - before for score in scores]
            # a loss is not the smaller for taking long
            worth = [gain / costs[i] if gain > 0 else gain for i, gain in zip(rest, gains, strict=True)]
            best = int(np.argmax(worth))
            before = scores[best]
            order.append(rest.pop(best))
    return order + rest


def _for_nothing(labels: np.ndarray, metric: str) -> float:
    """The score of the most frequent labels for all pictures, as many as are best; also none."""
    most = np.argsort(-labels.sum(axis=0, dtype=np.int64), kind="stable")[:SAME]
    hits = np.pad(np.cumsum(labels[:, most], axis=1, dtype=np.int64), ((0, 0), (1, 0)))
    true = np.count_nonzero(labels, axis=1)[:, None]
    scores = metric_named(metric).of_counts(hits, true, np.arange(len(most) + 1))
    return float(scores.mean(axis=0).max())


def _score(fitted: Solution, found: CrossFit) -> float:
    if isinstance(fitted.decoder, SampleDecoder):  # all pictures would be decoded once per prefix
        judge = SampleJudge(type(fitted.decoder), fitted.weights, found.fits)
        return float(judge.scores(fitted.weights[judge.members], fitted.decoder).mean())
    rows = np.arange(len(found.problem.labels))
    return float(score_pictures(fitted, rows, found.problem, found.fits).mean())
