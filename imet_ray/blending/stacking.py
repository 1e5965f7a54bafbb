"""Level 2 of the blend: models that learn from the members' out-of-fold predictions how far to trust each.

`stack_logistic` has one weight per member and label, `stack_lightgbm` grows trees over the cells of all labels. Both
start from the uniform blend of logits and return nested probabilities: each fold is predicted by models fitted on the
other folds only. New pictures are not predicted.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch.nn.functional import softplus
from tqdm import tqdm

from imet_ray.cores import usable_cores
from imet_ray.errors import ConfigError

LOW = 1e-5  # clip of probabilities: one of iMet's 109,237 pictures is 9e-6
HIGH = 1 - 2**-12  # float16 rounds what is above to 1
ROWS = 2048  # pictures per block
L2 = 30.0  # log loss with 1, 10, 30, 100: 3.991, 3.954, 3.941, 3.934 on OpenClipart (uniform blend: 3.966)
BLOCK = 1 << 26  # numbers in the float32 array of a block of labels: 256 MB
PASSES = 50  # over a label's pictures at most; 4-8 are usual
GAP = 1e-6  # what a fit may leave to gain in its loss
NOISE = 1e-6  # of the loss, relative: float32 knows it no better

FLOOR = 0.01  # cells to which no member gives more keep the uniform blend's probability
CELLS = 2_000_000  # to train on, else thinned: 100 MB for 7 members
ROUNDS = 200
TREES = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 7,  # log loss 3.917 on OpenClipart, 3.927 with 15, 3.947 with 31; bagging changed nothing
    "min_data_in_leaf": 100,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,  # one thread per fold: LightGBM's own wait, 3 times slower on a busy machine
    "verbosity": -1,
}


def stack_logistic(
    probs: Sequence[np.ndarray], labels: np.ndarray, folds: np.ndarray, seed: int = 0
) -> np.ndarray:
    """A logistic regression per label on the members' logits (Wolpert 1992; Ting & Witten 1999).

    The ridge pulls towards the uniform blend (weights 1/M, intercept 0). It is weighed against a sum over pictures:
    hundreds of positives outvote it, and a label with under 10 stays near the uniform blend.

    Args:
        probs: M arrays (N, C) float16 or float32 in [0, 1], not margins; memory-mapped or not.
        labels: (N, C) uint8.
        folds: (N,) int64, at least two of them.
        seed: not used, for nothing is drawn.

    Returns:
        (N, C) float16, nested over the folds.
    """
    n, c = labels.shape
    _, fold = np.unique(folds, return_inverse=True)
    unseen = torch.from_numpy(fold != np.arange(fold.max() + 1)[:, None]).float()  # (F, N)
    stacked = np.empty((n, c), dtype=np.float16)
    size = max(1, BLOCK // ((len(probs) + 1) * n))

    def predict(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        beta = fit_logistic(x, y, unseen, l2=L2)
        return (beta.float() @ x).gather(0, torch.from_numpy(fold)[None])[0].sigmoid().half().numpy()

    threads = torch.get_num_threads()
    # a thread per label: torch's own wait for each other, 10 times slower on busy cores
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(usable_cores()) as pool, _bar(c, "label") as bar:
            for start in range(0, c, size):
                block = slice(start, min(start + size, c))
                truth = torch.from_numpy(np.array(labels[:, block].T, dtype=np.float32, order="C"))
                for column, found in enumerate(pool.map(predict, _by_label(probs, block), truth), start):
                    stacked[:, column] = found
                    bar.update()
    finally:
        torch.set_num_threads(threads)
    return stacked


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


def stack_lightgbm(
    probs: Sequence[np.ndarray], labels: np.ndarray, folds: np.ndarray, seed: int
) -> np.ndarray:
    """One gradient-boosted model over the cells of all labels (LightGBM, Ke et al. 2017), added to the uniform blend.

    A cell's features are the members' logits, their mean, largest and smallest, how many labels its picture is
    expected to have, and its label's log-odds in the training folds. A training cell's log-odds leave its own fold
    out, as those of a cell to predict do: else they would tell trees about its label.

    Args:
        probs, labels, folds: as of `stack_logistic`; trees can use the log-odds from three folds on.
        seed: of thinning and of LightGBM; the same seed gives the same result.

    Returns:
        (N, C) float16, nested over the folds.

    Raises:
        ConfigError: if LightGBM is not installed.
    """
    lightgbm = _lightgbm()
    m = len(probs)
    _, fold = np.unique(folds, return_inverse=True)
    log_odds = _log_odds(labels, fold)  # (F, F, C)
    blocks = [slice(start, min(start + ROWS, len(labels))) for start in range(0, len(labels), ROWS)]
    cells, image, label = _some_cells(probs, blocks, seed)

    def grow(f: int) -> Any:
        chosen = np.flatnonzero(fold[image] != f)
        if not len(chosen):
            return None  # nothing is above the floor: all keep the uniform blend
        x, i, c = cells[chosen], image[chosen], label[chosen]
        x[:, -1] = log_odds[f, fold[i], c]
        data = lightgbm.Dataset(x, labels[i, c], init_score=x[:, m])
        return lightgbm.train({**TREES, "seed": seed}, data, ROUNDS, callbacks=[lambda _: bar.update()])

    with ThreadPoolExecutor(usable_cores()) as pool, _bar(len(log_odds) * ROUNDS, "tree") as bar:
        models = list(pool.map(grow, range(len(log_odds))))
    stacked = np.empty(labels.shape, dtype=np.float16)
    for rows in blocks:
        stacked[rows] = _uniform(probs, rows)
        x, i, c = _by_cell(probs, rows)
        for f, model in enumerate(models):
            own = fold[i] == f
            if model is not None and own.any():
                x[own, -1] = log_odds[f, f, c[own]]
                stacked[i[own], c[own]] = expit(x[own, m] + model.predict(x[own], raw_score=True))
    return stacked


def _some_cells(probs: Sequence[np.ndarray], blocks: Sequence[slice], seed: int) -> tuple[np.ndarray, ...]:
    """`_by_cell` of all pictures, thinned to about CELLS cells."""
    share = CELLS / max(1, sum(np.count_nonzero(_above(probs, rows)) for rows in blocks))
    rng = np.random.default_rng(seed)
    parts = []
    for rows in blocks:
        part = _by_cell(probs, rows)
        kept = rng.random(len(part[0])) < share
        parts.append([array[kept] for array in part])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: without the system's libgomp
        raise ConfigError(
            f"stacking with LightGBM needs the package lightgbm ({error}): "
            "run `uv sync --extra lightgbm` (or `pip install lightgbm`)"
        ) from error
    return lightgbm


def _bar(total: int, unit: str) -> "tqdm[Any]":
    return tqdm(total=total, desc="stacking", unit=unit, delay=2, disable=None)


def _logits(probs: np.ndarray) -> torch.Tensor:
    """Clipped log-odds, float32, of a copy: what is memory-mapped cannot be written to."""
    return torch.from_numpy(np.array(probs, dtype=np.float32)).clamp_(LOW, HIGH).logit_()


def _by_label(probs: Sequence[np.ndarray], block: slice) -> torch.Tensor:
    """Ones and the members' logits of a block of B labels: (B, M + 1, N) float32."""
    n = len(probs[0])
    features = torch.ones(block.stop - block.start, len(probs) + 1, n)
    for member, p in enumerate(probs, start=1):
        for start in range(0, n, ROWS):
            rows = slice(start, start + ROWS)
            features[:, member, rows] = _logits(p[rows, block]).T
    return features


def _uniform(probs: Sequence[np.ndarray], rows: slice) -> np.ndarray:
    """The uniform blend of logits for a block of pictures: (n, C) float32."""
    total = sum((_logits(p[rows]) for p in probs), torch.zeros(1))
    return (total / len(probs)).sigmoid().numpy()


def _above(probs: Sequence[np.ndarray], rows: slice) -> np.ndarray:
    """Cells of a block of pictures to which some member gives more than the floor: (n, C) bool."""
    return np.asarray(np.logical_or.reduce([p[rows] > FLOOR for p in probs]))


def _by_cell(probs: Sequence[np.ndarray], rows: slice) -> tuple[np.ndarray, ...]:
    """Features (D, M + 5) float32, pictures (D,) and labels (D,) of the cells above the floor in a block of pictures.

    The last feature, the label's log-odds, is left to be filled.
    """
    m = len(probs)
    picture, label = np.nonzero(_above(probs, rows))
    features = np.empty((len(label), m + 5), dtype=np.float32)
    expected = np.zeros(rows.stop - rows.start, dtype=np.float32)
    for member, p in enumerate(probs):
        features[:, member] = _logits(p[rows][picture, label])
        expected += p[rows].sum(axis=1, dtype=np.float32) / m
    logits = features[:, :m]
    features[:, m:-1] = np.stack([logits.mean(1), logits.max(1), logits.min(1), expected[picture]], axis=1)
    return features, picture + rows.start, label


def _log_odds(labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Of each label where neither of two folds is seen: (F, F, C) float64, 0 where no fold is left."""
    numbers = np.arange(fold.max() + 1)
    true = np.stack([labels[fold == f].sum(axis=0, dtype=np.int64) for f in numbers])  # (F, C)
    size = np.bincount(fold)
    seen = (numbers != numbers[:, None, None]) & (numbers != numbers[:, None])  # (F, F, F)
    hits = seen @ true + 0.5  # a label never seen is rare, not impossible
    return np.asarray(np.log(hits / ((seen @ size)[..., None] + 1 - hits)))


# (M arrays (N, C), labels, folds, seed) -> (N, C) nested probabilities
Stack = Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray, int], np.ndarray]

STACKS: dict[str, Stack] = {
    "logistic": stack_logistic,
    "lightgbm": stack_lightgbm,
}
