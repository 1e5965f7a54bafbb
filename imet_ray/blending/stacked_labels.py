"""Level 2 with weights for each label: a logistic regression, and a linear model that is fitted for the metric.

Both begin at the uniform blend of log-odds, and a ridge pulls them back to it: a label with few positives stays near.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch.nn.functional import softplus

from imet_ray.blending.out_of_fold import OutOfFold, bar
from imet_ray.cores import usable_cores
from imet_ray.prediction.level2 import ROWS, Level2Model, Packed, PerLabel, above, log_odds
from imet_ray.prediction.metrics import metric_named

L2 = 30.0  # log loss with 1, 10, 30, 100: 3.991, 3.954, 3.941, 3.934 on OpenClipart (uniform blend: 3.966)
BLOCK = 1 << 26  # numbers in the float32 array of a block of labels: 256 MB
PASSES = 50  # over a label's pictures at most; 4-8 are usual
GAP = 1e-6  # what a fit may leave to gain in its loss
NOISE = 1e-6  # of the loss, relative: float32 knows it no better

REACH = 0.01  # cells to which no member gives more cannot be predicted: they are not looked at
SOFTNESS = 0.7  # of the sigmoid in place of the step, in log-odds
PULL = 3.0  # pictures: what moving a weight by 1 must gain is half of so many pictures' score
STEPS = 60  # of L-BFGS
SAMPLE = 4096  # pictures on which the threshold is found that a fit begins at
THRESHOLDS = 60  # that are tried there


def stack_logistic(data: OutOfFold) -> list[Level2Model]:
    """A logistic regression per label on the members' log-odds (Wolpert 1992; Ting & Witten 1999).

    The ridge pulls towards the uniform blend (weights 1/M, intercept 0). It is weighed against a sum over pictures:
    hundreds of positives outvote it, and a label with under 10 stays near the uniform blend.
    """
    n, c = data.labels.shape
    seen = torch.from_numpy(data.seen).float()
    found = np.empty((len(seen), len(data.probs) + 1, c), dtype=np.float32)
    size = max(1, BLOCK // ((len(data.probs) + 1) * n))

    def fit(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        return np.asarray(fit_logistic(x, y, seen, l2=L2).numpy())

    threads = torch.get_num_threads()
    # a thread per label: torch's own wait for each other, 10 times slower on busy cores
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(usable_cores()) as pool, bar(c, "label") as progress:
            for start in range(0, c, size):
                block = slice(start, min(start + size, c))
                truth = torch.from_numpy(np.array(data.labels[:, block].T, dtype=np.float32, order="C"))
                for column, beta in enumerate(pool.map(fit, _by_label(data.probs, block), truth), start):
                    found[:, :, column] = beta
                    progress.update()
    finally:
        torch.set_num_threads(threads)
    return [PerLabel(weights=Packed.of(weights)) for weights in found]


def fit_logistic(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, *, l2: float) -> torch.Tensor:
    """Minimise sum_i w_i logloss_i + l2 / 2 |beta - uniform|^2 for F sets of weights, by Newton's method.

    A step that raises the loss is halved until it does not. Each of the F fits ends by itself: were they to end
    together, each would depend a little on the others' labels.

    Args:
        x: (M + 1, N) float32, the first row ones.
        y: (N,) float32, 0 or 1.
        weights: (F, N) float32, >= 0.

    Returns:
        (F, M + 1) float64, the intercepts first.
    """
    uniform = torch.full((len(x),), 1 / (len(x) - 1), dtype=torch.float64)
    uniform[0] = 0
    ridge = l2 * torch.eye(len(x), dtype=torch.float64)
    beta = uniform.repeat(len(weights), 1)
    step = torch.zeros_like(beta)
    loss = torch.full((len(beta), 1), torch.inf, dtype=torch.float64)
    done = torch.zeros_like(loss, dtype=torch.bool)
    for _ in range(PASSES):
        tried = beta + step
        eta = tried.float() @ x  # (F, N)
        p = eta.sigmoid()
        now = ((softplus(eta) - y * eta) * weights).sum(1, keepdim=True, dtype=torch.float64)
        now += l2 / 2 * (tried - uniform).square().sum(1, keepdim=True)
        gradient = (((p - y) * weights) @ x.T).double() + l2 * (tried - uniform)
        curvature = p * (1 - p) * weights
        hessian = torch.stack([(x * w) @ x.T for w in curvature]).double() + ridge
        newton = -torch.linalg.solve(hessian, gradient)
        lower = now <= loss * (1 + NOISE)
        beta, loss = torch.where(lower, tried, beta), torch.where(lower, now, loss)
        done |= lower & (-(gradient * newton).sum(1, keepdim=True) < 2 * GAP)
        if done.all():
            break
        step = torch.where(lower, newton, step / 2).masked_fill(done, 0)
    return beta


def _by_label(probs: Sequence[np.ndarray], block: slice) -> torch.Tensor:
    """Ones and the members' log-odds of a block of B labels: (B, M + 1, N) float32."""
    n = len(probs[0])
    features = torch.ones(block.stop - block.start, len(probs) + 1, n)
    for member, p in enumerate(probs, start=1):
        for start in range(0, n, ROWS):
            rows = slice(start, start + ROWS)
            features[:, member, rows] = torch.from_numpy(log_odds(p[rows, block])).T
    return features


def stack_linear(data: OutOfFold) -> list[Level2Model]:
    """Per label a weight for each member and a shift, which together maximise the metric of the label sets.

    The score of a picture needs all its labels, so that all (M + 1) C numbers are fitted together: by L-BFGS, with a
    sigmoid in place of the step from a label that is left out to one that is predicted (Jansche 2005, of F-measures).
    What is predicted is log-odds above those of one threshold, which the uniform blend is best at. As a probability it
    is no calibrated one.
    """
    cells = _Cells.of(data)
    with ThreadPoolExecutor(usable_cores()) as pool, bar(len(data.seen), "fit") as progress:

        def fit(seen: np.ndarray) -> Level2Model:
            weights = fit_linear(cells, seen, metric=data.metric, pull=PULL)
            progress.update()
            return PerLabel(weights=Packed.of(weights.astype(np.float32)))

        return list(pool.map(fit, data.seen))


@dataclass(frozen=True)
class _Cells:
    """The cells that may be predicted, by picture."""

    odds: np.ndarray  # (M, D) float32: the members' log-odds
    picture: np.ndarray  # (D,) int32, rising
    label: np.ndarray  # (D,) int32
    truth: np.ndarray  # (D,) float32
    true: np.ndarray  # (N,) int64: true labels of each picture
    n_labels: int

    @classmethod
    def of(cls, data: OutOfFold) -> "_Cells":
        def part(start: int) -> tuple[np.ndarray, ...]:
            rows = slice(start, start + ROWS)
            values, labels = [p[rows] for p in data.probs], data.labels[rows]
            picture, label = np.nonzero(above(values, REACH))
            odds = np.stack([log_odds(p[picture, label]) for p in values])
            truth = (labels[picture, label] > 0).astype(np.float32)
            return odds, (picture + start).astype(np.int32), label.astype(np.int32), truth

        with ThreadPoolExecutor(usable_cores()) as pool:
            parts = list(pool.map(part, range(0, len(data.labels), ROWS)))
        odds, picture, label, truth = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        true = np.count_nonzero(data.labels, axis=1)
        return cls(odds, picture, label, truth, true, data.labels.shape[1])

    def of_pictures(self, kept: np.ndarray) -> "_Cells":
        """Those of some pictures: (N,) bool."""
        own = kept[self.picture]
        number = np.cumsum(kept) - 1
        picture = number[self.picture[own]].astype(np.int32)
        return _Cells(
            self.odds[:, own], picture, self.label[own], self.truth[own], self.true[kept], self.n_labels
        )


def fit_linear(cells: "_Cells", seen: np.ndarray, *, metric: str, pull: float) -> np.ndarray:
    """The weights of one fit: (M + 1, C) float64, the intercepts first.

    Args:
        seen: (N,) bool, the pictures to fit on.
        pull: the ridge, in pictures.
    """
    part = cells.of_pictures(seen)
    m, c = len(part.odds), part.n_labels
    uniform = np.full((m + 1, c), 1 / m)
    uniform[0] = 0
    threshold = _best_threshold(part, metric)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights = x.reshape(m + 1, c)
        score, gradient = _soft_score(part, weights, threshold, metric)
        away = weights - uniform
        ridge = pull / len(part.true)
        return ridge / 2 * float((away**2).sum()) - score, (ridge * away - gradient).ravel()

    found = minimize(loss, uniform.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return np.asarray(found.x).reshape(m + 1, c)


def _best_threshold(cells: "_Cells", metric: str) -> float:
    """The best one of the uniform blend, in log-odds."""
    kept = np.zeros(len(cells.true), dtype=bool)
    kept[np.random.default_rng(0).permutation(len(kept))[:SAMPLE]] = True
    part = cells.of_pictures(kept)
    mean, judge, n = part.odds.mean(axis=0), metric_named(metric), len(part.true)

    def score(threshold: float) -> float:
        chosen = mean > threshold
        counts = np.bincount(part.picture, chosen, minlength=n)
        hits = np.bincount(part.picture, chosen * part.truth, minlength=n)
        return float(judge.of_counts(hits, part.true, counts).mean())

    return float(max(np.linspace(logit(REACH), 0.0, THRESHOLDS), key=score))


def _soft_score(
    cells: "_Cells", weights: np.ndarray, threshold: float, metric: str
) -> tuple[float, np.ndarray]:
    """The mean score with soft cells, and its gradient: (M + 1, C)."""
    n, c = len(cells.true), cells.n_labels
    narrow = weights.astype(np.float32)
    z = narrow[0][cells.label]
    for weight, odds in zip(narrow[1:], cells.odds, strict=True):
        z += weight[cells.label] * odds
    soft = expit((z - np.float32(threshold)) / np.float32(SOFTNESS))
    chosen = np.bincount(cells.picture, soft, minlength=n)
    hits = np.bincount(cells.picture, soft * cells.truth, minlength=n)
    judge = metric_named(metric)
    of_hit, of_choice = judge.slopes(hits, cells.true, chosen)
    change = of_choice[cells.picture] + of_hit[cells.picture] * cells.truth
    change *= soft * (1 - soft) / SOFTNESS
    gradient = [np.bincount(cells.label, change, minlength=c)]
    gradient += [np.bincount(cells.label, change * odds, minlength=c) for odds in cells.odds]
    return float(judge.of_counts(hits, cells.true, chosen).mean()), np.stack(gradient) / n
