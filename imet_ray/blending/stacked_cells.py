"""Level 2 over the cells of all labels together: boosted trees, and a small net. Both are added to the uniform blend.

A cell's features are the members' log-odds, their mean, largest and smallest, how many labels its picture is expected
to have, and its label's log-odds in the training folds. A training cell's log-odds leave its own fold out, as those of
a cell to predict do: else they would tell about its label.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from imet_ray.blending.out_of_fold import OutOfFold, bar
from imet_ray.cores import usable_cores
from imet_ray.errors import ConfigError
from imet_ray.prediction.level2 import FLOOR, ROWS, Level2Model, Net, Packed, Trees, above, cells_above

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
NUMERIC = "2"  # LightGBM's decision: x <= threshold goes left, and nothing is missing

WIDTHS = (16, 16)  # of the net's hidden layers
OF_LABEL = 4  # numbers that it learns of each label
EPOCHS = 8
BATCH = 4096  # cells
RATE = 0.01  # falls to 0 along a cosine
DECAY = 1e-2  # of the weights per step and rate; keeps what is learned of a rare label near 0


def stack_lightgbm(data: OutOfFold) -> list[Level2Model]:
    """One gradient-boosted model over the cells of all labels (LightGBM, Ke et al. 2017).

    Raises:
        ConfigError: if LightGBM is not installed.
    """
    lightgbm = _lightgbm()
    cells = _Cells.of(data)
    with ThreadPoolExecutor(usable_cores()) as pool, bar((data.n_folds + 1) * ROUNDS, "tree") as progress:

        def grow(fit: int) -> Level2Model:
            x, _, y = cells.seen_by(fit)
            texts: list[str] = []
            if len(x):  # else nothing is above the floor: all keep the uniform blend
                start = x[:, len(data.probs)]
                grown = lightgbm.train(
                    {**TREES, "seed": data.seed},
                    lightgbm.Dataset(x, y, init_score=start),
                    ROUNDS,
                    callbacks=[lambda _: progress.update()],
                )
                texts = grown.model_to_string().split("\nTree=")[1:]
            return packed_trees(texts, len(data.probs), cells.of_fit(fit))

        return list(pool.map(grow, range(data.n_folds + 1)))


def packed_trees(texts: Sequence[str], n_members: int, odds: np.ndarray) -> Trees:
    """LightGBM's trees as arrays.

    Args:
        texts: its own description, a part for each tree.
        odds: (C,) float32, the labels' log-odds.
    """
    columns = {
        "split_feature": np.int32,
        "threshold": np.float64,
        "left_child": np.int32,
        "right_child": np.int32,
    }
    found: dict[str, list[str]] = {name: [] for name in (*columns, "leaf_value")}
    splits = []
    for text in texts:
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        splits.append(int(fields["num_leaves"]) - 1)
        assert set(fields.get("decision_type", NUMERIC).split()) <= {NUMERIC}
        for name in found:
            found[name] += fields.get(name, "").split()
    arrays = {name: Packed.of(np.array(found[name], dtype=kind)) for name, kind in columns.items()}
    return Trees(
        n_members=n_members,
        floor=FLOOR,
        label_odds=Packed.of(odds),
        splits=Packed.of(np.array(splits, dtype=np.int32)),
        feature=arrays["split_feature"],
        threshold=arrays["threshold"],
        left=arrays["left_child"],
        right=arrays["right_child"],
        leaves=Packed.of(np.array(found["leaf_value"], dtype=np.float64)),
    )


def stack_net(data: OutOfFold) -> list[Level2Model]:
    """A small net over the features of a cell and a few learned numbers of its label, by cross-entropy."""
    cells = _Cells.of(data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and with it the result, depends on their number
    try:
        with (
            ThreadPoolExecutor(usable_cores()) as pool,
            bar((data.n_folds + 1) * EPOCHS, "epoch") as progress,
        ):
            return list(
                pool.map(lambda fit: _trained(cells, fit, data, progress.update), range(data.n_folds + 1))
            )
    finally:
        torch.set_num_threads(threads)


def _trained(cells: "_Cells", fit: int, data: OutOfFold, tick: Any) -> Level2Model:
    x, label, y = cells.seen_by(fit)
    mean, spread = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    if len(x):
        mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        mean, spread = mean.astype(np.float32), np.maximum(spread, 1e-3).astype(np.float32)
    start = torch.from_numpy(x[:, len(data.probs)].copy())
    x = (x - mean) / spread
    generator = torch.Generator().manual_seed(data.seed)  # the same for each fit
    of_label = torch.zeros(data.labels.shape[1], OF_LABEL)
    of_label.normal_(0, 0.1, generator=generator).requires_grad_()
    layers: list[torch.Tensor] = []
    widths = [x.shape[1] + OF_LABEL, *WIDTHS, 1]
    for n_in, n_out in itertools.pairwise(widths):
        last = n_out == 1  # it begins as the uniform blend
        weights = torch.zeros(n_in, n_out)
        if not last:
            weights.normal_(0, (2 / n_in) ** 0.5, generator=generator)
        layers += [weights.requires_grad_(), torch.zeros(n_out).requires_grad_()]
    features, index, truth = torch.from_numpy(x), torch.from_numpy(label), torch.from_numpy(y)
    optimizer = torch.optim.AdamW([of_label, *layers], lr=RATE, weight_decay=DECAY)
    steps = max(1, EPOCHS * -(-len(x) // BATCH))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for begin in range(0, len(x), BATCH):
            batch = order[begin : begin + BATCH]
            h = torch.cat([features[batch], of_label[index[batch]]], dim=1)
            for i in range(0, len(layers), 2):
                h = (h.relu() if i else h) @ layers[i] + layers[i + 1]
            loss = binary_cross_entropy_with_logits(start[batch] + h[:, 0], truth[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        tick()
    return Net(
        n_members=len(data.probs),
        floor=FLOOR,
        label_odds=Packed.of(cells.of_fit(fit)),
        mean=Packed.of(mean),
        spread=Packed.of(spread),
        of_label=Packed.of(of_label.detach().numpy()),
        layers=tuple(Packed.of(layer.detach().numpy()) for layer in layers),
    )


@dataclass(frozen=True)
class _Cells:
    """The cells above the floor, thinned to about CELLS."""

    features: np.ndarray  # (D, M + 5) float32; the last, the label's log-odds, depends on the fit
    picture: np.ndarray  # (D,)
    label: np.ndarray  # (D,)
    truth: np.ndarray  # (D,) float32
    fold: np.ndarray  # (N,)
    odds: (
        np.ndarray
    )  # (F + 1, F + 1, C) float32: of each label where neither of two folds is seen; the last is none

    @classmethod
    def of(cls, data: OutOfFold) -> "_Cells":
        blocks = [slice(start, start + ROWS) for start in range(0, len(data.labels), ROWS)]
        total = sum(np.count_nonzero(above([p[rows] for p in data.probs], FLOOR)) for rows in blocks)
        share = CELLS / max(1, total)
        rng = np.random.default_rng(data.seed)
        parts = []
        for rows in blocks:
            x, picture, label = cells_above([p[rows] for p in data.probs], FLOOR)
            kept = rng.random(len(x)) < share
            parts.append((x[kept], picture[kept] + rows.start, label[kept]))
        x, picture, label = (np.concatenate(part) for part in zip(*parts, strict=True))
        truth = (data.labels[picture, label] > 0).astype(np.float32)
        return cls(x, picture, label, truth, data.fold, label_odds(data.labels, data.fold))

    def seen_by(self, fit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, labels and truths of the cells that a fit sees."""
        own = self.fold[self.picture]
        chosen = np.flatnonzero(own != fit)
        x, label = self.features[chosen], self.label[chosen]
        x[:, -1] = self.odds[fit, own[chosen], label]
        return x, label, self.truth[chosen]

    def of_fit(self, fit: int) -> np.ndarray:
        """The labels' log-odds for the cells that are predicted: (C,) float32."""
        return np.asarray(self.odds[fit, fit])


def label_odds(labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Log-odds of each label where neither of two folds is seen: (F + 1, F + 1, C) float32, 0 where no fold is left.

    The last index leaves out no fold.
    """
    folds = np.arange(fold.max() + 1)
    true = np.stack([labels[fold == f].sum(axis=0, dtype=np.int64) for f in folds])  # (F, C)
    size = np.bincount(fold)
    out = np.arange(len(folds) + 1)
    seen = (folds != out[:, None, None]) & (folds != out[:, None])  # (F + 1, F + 1, F)
    hits = seen @ true + 0.5  # a label never seen is rare, not impossible
    return np.asarray(np.log(hits / ((seen @ size)[..., None] + 1 - hits)), dtype=np.float32)


def _lightgbm() -> Any:
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: without the system's libgomp
        raise ConfigError(
            f"stacking with LightGBM needs the package lightgbm ({error}): "
            "run `uv sync --extra lightgbm` (or `pip install lightgbm`)"
        ) from error
    return lightgbm
