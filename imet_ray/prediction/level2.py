"""Level 2 as it predicts: from the members' probabilities to the ensemble's, by a model that is kept as plain arrays.

Fitting is `imet_ray.blending.stacking`. A model stands in `ensemble.json` and in a kernel's file, so it needs neither
LightGBM nor a pickle. It sees float16, as predictions are stored, and goes in blocks of pictures.
"""

import base64
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PlainSerializer, PlainValidator, model_validator
from scipy.special import expit

from imet_ray.cores import usable_cores
from imet_ray.specs import Frozen

LOW = 1e-5  # clip of probabilities: one of iMet's 109,237 pictures is 9e-6
HIGH = 1 - 2**-12  # float16 rounds what is above to 1
FLOOR = 0.01  # cells to which no member gives more keep the uniform blend's probability
ROWS = 1024  # pictures per block
CELLS = 1 << 15  # that trees look at together: they stay in the cache

# M arrays (n, C) of some pictures -> (n, C) float32
Block = Callable[[Sequence[np.ndarray]], np.ndarray]


class Packed(Frozen):
    """An array as text."""

    dtype: Literal["float32", "float64", "int32"]
    shape: Annotated[tuple[int, ...], Field(strict=False)]
    base64: str

    @model_validator(mode="after")
    def _whole(self) -> Self:
        expected = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if min(self.shape, default=0) < 0 or len(self._bytes()) != expected:
            raise ValueError(f"an array of shape {self.shape} does not have that many bytes")
        return self

    @classmethod
    def of(cls, array: np.ndarray) -> Self:
        """Pack a float32, float64 or int32 array."""
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        text = base64.b64encode(little.tobytes()).decode()
        return cls.model_validate({"dtype": array.dtype.name, "shape": array.shape, "base64": text})

    def array(self) -> np.ndarray:
        """The array."""
        kind = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(self._bytes(), dtype=kind).reshape(self.shape).astype(self.dtype)

    def _bytes(self) -> bytes:
        return base64.b64decode(self.base64, validate=True)


class Level2Model(Frozen, ABC):
    """A fitted model over members."""

    kind: str  # its key in `KINDS`

    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """How many members and labels it is for: M, C."""

    @abstractmethod
    def ready(self) -> Block:
        """The prediction of a block of pictures, its arrays unpacked once."""

    def predict(self, probs: Sequence[np.ndarray]) -> np.ndarray:
        """The ensemble's probabilities: M arrays (n, C) float16 or float32 to (n, C) float32."""
        block = self.ready()
        out = np.empty(probs[0].shape, dtype=np.float32)

        def fill(start: int) -> None:
            rows = slice(start, start + ROWS)
            out[rows] = block([p[rows].astype(np.float16, copy=False) for p in probs])

        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(fill, range(0, len(out), ROWS)))
        return out


class PerLabel(Level2Model):
    """One weight per member and label on log-odds, and one intercept per label."""

    kind: Literal["per-label"] = "per-label"
    weights: Packed  # (M + 1, C) float32, the intercepts first

    def shape(self) -> tuple[int, int]:
        return self.weights.shape[0] - 1, self.weights.shape[1]

    def ready(self) -> Block:
        intercepts, *weights = self.weights.array()

        def block(probs: Sequence[np.ndarray]) -> np.ndarray:
            total = np.tile(intercepts, (len(probs[0]), 1))
            for weight, p in zip(weights, probs, strict=True):
                total += weight * log_odds(p)
            return np.asarray(expit(total, out=total))

        return block


class CellModel(Level2Model):
    """A model of single cells, added to the uniform blend of log-odds where a member gives more than the floor."""

    n_members: int
    floor: float
    label_odds: Packed  # (C,) float32: log-odds of each label in training

    def shape(self) -> tuple[int, int]:
        return self.n_members, self.label_odds.shape[0]

    @abstractmethod
    def correction(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """What is added to log-odds: of features (D, F) float32 and labels (D,), (D,) float."""

    def ready(self) -> Block:
        correct, odds, m = self.correction(), self.label_odds.array(), self.n_members

        def block(probs: Sequence[np.ndarray]) -> np.ndarray:
            mean = np.zeros(probs[0].shape, dtype=np.float32)
            for p in probs:
                mean += log_odds(p) / np.float32(m)
            x, picture, label = cells_above(probs, self.floor)
            x[:, -1] = odds[label]
            if len(x):
                mean[picture, label] = x[:, m] + correct(x, label)
            return np.asarray(expit(mean, out=mean))

        return block


class Trees(CellModel):
    """Gradient-boosted trees, evaluated by numpy."""

    kind: Literal["trees"] = "trees"
    splits: Packed  # (T,) int32: inner nodes of each tree; it has a leaf more
    feature: Packed  # (S,) int32, of all trees' inner nodes one after the other
    threshold: Packed  # (S,) float64: a cell with more goes right
    left: Packed  # (S,) int32: an inner node of the same tree, or -1 - a leaf of it
    right: Packed  # (S,) int32
    leaves: Packed  # (S + T,) float64

    def correction(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        trees = list(self._trees())

        def correct(x: np.ndarray, label: np.ndarray) -> np.ndarray:
            total = np.zeros(len(x))
            for start in range(0, len(x), CELLS):
                columns = x[start : start + CELLS].T.astype(np.float64, order="C")
                for nodes, leaves in trees:
                    total[start : start + CELLS] += _by_tree(columns, nodes, leaves)
            return total

        return correct

    def _trees(self) -> "list[tuple[list[tuple[int, float, int, int]], list[float]]]":
        """Of each tree its inner nodes (feature, threshold, left, right), and its leaves."""
        nodes = list(
            zip(
                *(a.array().tolist() for a in (self.feature, self.threshold, self.left, self.right)),
                strict=True,
            )
        )
        leaves, found, s, leaf = self.leaves.array().tolist(), [], 0, 0
        for splits in self.splits.array().tolist():
            found.append((nodes[s : s + splits], leaves[leaf : leaf + splits + 1]))
            s, leaf = s + splits, leaf + splits + 1
        return found


def _by_tree(
    columns: np.ndarray, nodes: Sequence[tuple[int, float, int, int]], leaves: Sequence[float]
) -> np.ndarray | float:
    """The leaf's value of each cell, from (F, D) features; from the last node up: children follow their parents."""
    values: list[np.ndarray | float] = [0.0] * len(nodes)

    def value(child: int) -> np.ndarray | float:
        return values[child] if child >= 0 else leaves[-1 - child]

    for i in reversed(range(len(nodes))):
        feature, threshold, left, right = nodes[i]
        values[i] = np.where(columns[feature] <= threshold, value(left), value(right))
    return values[0] if nodes else leaves[0]


class Net(CellModel):
    """A small net, the same for all labels but for a few numbers that it learns of each."""

    kind: Literal["net"] = "net"
    mean: Packed  # (F,) float32, of the features
    spread: Packed  # (F,) float32
    of_label: Packed  # (C, E) float32
    layers: Annotated[tuple[Packed, ...], Field(strict=False)]  # weights (in, out) and biases (out,), in turn

    def correction(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        mean, spread, of_label = (packed.array() for packed in (self.mean, self.spread, self.of_label))
        layers = [packed.array() for packed in self.layers]

        def correct(x: np.ndarray, label: np.ndarray) -> np.ndarray:
            h = np.concatenate([(x - mean) / spread, of_label[label]], axis=1)
            for i in range(0, len(layers), 2):
                h = (np.maximum(h, 0) if i else h) @ layers[i] + layers[i + 1]
            return h[:, 0]

        return correct


def log_odds(probs: np.ndarray) -> np.ndarray:
    """Clipped log-odds of probabilities, which are rounded to float16: float32 of the same shape."""
    return np.asarray(_by_code()[probs.astype(np.float16, copy=False).view(np.uint16)])


@cache
def _by_code() -> np.ndarray:
    """The log-odds of each of the 65,536 float16: a table is several times as fast as logarithms."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    clipped = np.clip(numbers, np.float32(LOW), np.float32(HIGH))
    with np.errstate(invalid="ignore"):  # the codes of NaN, which stay NaN
        return np.asarray(np.log(clipped) - np.log1p(-clipped))


def above(probs: Sequence[np.ndarray], floor: float) -> np.ndarray:
    """Cells to which some member gives more than the floor: (n, C) bool."""
    return np.asarray(np.logical_or.reduce([p > floor for p in probs]))


def cells_above(probs: Sequence[np.ndarray], floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (D, M + 5) float32, pictures (D,) and labels (D,) of the cells above the floor.

    The features: the members' log-odds, their mean, largest and smallest, how many labels the picture is expected to
    have; the last, the label's log-odds, is left to be filled.
    """
    m = len(probs)
    picture, label = np.nonzero(above(probs, floor))
    features = np.empty((len(label), m + 5), dtype=np.float32)
    expected = np.zeros(len(probs[0]), dtype=np.float32)
    for member, p in enumerate(probs):
        features[:, member] = log_odds(p[picture, label])
        expected += p.sum(axis=1, dtype=np.float32) / m
    odds = features[:, :m]
    features[:, m:-1] = np.stack([odds.mean(1), odds.max(1), odds.min(1), expected[picture]], axis=1)
    return features, picture, label


def read_level2(value: Any) -> Level2Model:
    """A model from what JSON holds of it.

    Raises:
        ValueError: if its kind is unknown or its arrays do not fit.
    """
    if isinstance(value, Level2Model):
        return value
    kind = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown level 2 {kind!r}. Known: {', '.join(KINDS)}")
    return KINDS[kind].model_validate(value)


# a field of a model: any level 2, as JSON its kind and arrays
AnyLevel2 = Annotated[
    Level2Model, PlainValidator(read_level2), PlainSerializer(lambda model: model.model_dump(mode="json"))
]


class Level2(Frozen):
    """What an ensemble keeps of the stacker that became it."""

    stacker: str  # a key of `STACKERS` in `imet_ray.blending.stacking`
    members: list[str]  # in the order that the model takes
    model: AnyLevel2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.shape()[0] != len(self.members):
            raise ValueError(f"a model of {self.model.shape()[0]} members, but {len(self.members)} are named")
        return self

    def predict(self, probs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The ensemble's probabilities from all members' by name: (n, C) each, to (n, C) float32."""
        return self.model.predict([probs[name] for name in self.members])


KINDS: dict[str, type[Level2Model]] = {
    "per-label": PerLabel,
    "trees": Trees,
    "net": Net,
}
