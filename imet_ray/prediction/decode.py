"""From probabilities to label sets: by one threshold, by one per label group, or by the largest expected score.

A decoder's fields are what `ensemble.json` keeps of it. The blend fits weights under a `ThresholdDecoder` exactly, on
all pictures. Under a `SampleDecoder` it takes those weights and fits the decoder on a sample of pictures.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PlainSerializer, PlainValidator

from imet_ray.errors import ConfigError
from imet_ray.prediction.limits import Limits
from imet_ray.prediction.metrics import metric_named
from imet_ray.specs import Frozen

TEMPERATURES = 0.5, 2.0  # searched between
TEMPERATURE_STEPS = 8


class Decoder(Frozen, ABC):
    """How an ensemble decides."""

    name: str  # its key in `DECODERS`
    negatives: bool = False  # a picture may have no label: some of those that it was fitted on have none
    limits: Limits | None = None  # on the number of labels

    @classmethod
    def refusal(cls, *, grouped: bool, margins: bool, metric: str) -> str | None:
        """Why these data cannot have it; None if they can.

        Args:
            grouped: the labels have groups.
            margins: the members' thresholds are subtracted already.
            metric: a key of `METRICS`.
        """
        return None

    @abstractmethod
    def decode(self, probs: np.ndarray) -> np.ndarray:
        """Label sets within the limits, none of them empty without `negatives`: (N, C) float in [0, 1] to (N, C) bool.

        Raises:
            ConfigError: if its parameters do not fit the labels.
        """

    def filled(self, probs: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """The same sets within the limits; where none may be empty, an empty one becomes the most probable label."""
        if self.limits is not None:
            decoded = self.limits.applied(probs, decoded, negatives=self.negatives)
        return decoded if self.negatives else at_least_one(probs, decoded)

    def limited(self, limits: Limits | None) -> Self:
        """The same decoder with limits on the number of labels; None: without."""
        return self.model_copy(update={"limits": limits})

    def described(self) -> str:
        """The name with the parameters that a person wants to know."""
        return self.name

    def __str__(self) -> str:
        return self.described() + (f", limits {self.limits}" if self.limits is not None else "")


class ThresholdDecoder(Decoder):
    """A label is predicted where its probability is above a threshold."""

    @classmethod
    def how_many(cls, n_groups: int) -> int:
        """The number of thresholds that the blend fits."""
        return 1

    @classmethod
    @abstractmethod
    def fitted(cls, thresholds: np.ndarray, groups: np.ndarray) -> Self:
        """The decoder with these thresholds.

        Args:
            thresholds: (`how_many`,) probabilities.
            groups: (C,) int, the group of each label.
        """

    @abstractmethod
    def thresholds(self, groups: np.ndarray) -> np.ndarray:
        """What `fitted` was given: float64."""


class SampleDecoder(Decoder):
    """A decoder that is fitted on the blended probabilities of a sample of pictures."""

    @classmethod
    def refusal(cls, *, grouped: bool, margins: bool, metric: str) -> str | None:
        return "the members' thresholds are subtracted already: it needs probabilities" if margins else None

    @classmethod
    @abstractmethod
    def fit(cls, probs: np.ndarray, labels: np.ndarray, metric: str) -> Self:
        """The decoder whose score is best.

        Args:
            probs: (S, C) float32; S may be 0.
            labels: (S, C) uint8.
            metric: a key of `METRICS`.
        """


class Threshold(ThresholdDecoder):
    """One threshold for all labels."""

    name: Literal["threshold"] = "threshold"
    threshold: float

    @classmethod
    def fitted(cls, thresholds: np.ndarray, groups: np.ndarray) -> Self:
        return cls(threshold=float(thresholds[0]))

    def thresholds(self, groups: np.ndarray) -> np.ndarray:
        return np.array([self.threshold])

    def decode(self, probs: np.ndarray) -> np.ndarray:
        return self.filled(probs, decode_threshold(probs, self.threshold))

    def described(self) -> str:
        return f"{self.name} {self.threshold:.4f}"


class GroupThresholds(ThresholdDecoder):
    """One threshold per label group."""

    name: Literal["group-thresholds"] = "group-thresholds"
    label_thresholds: Annotated[tuple[float, ...], Field(strict=False)]  # (C,), the same within a group

    @classmethod
    def refusal(cls, *, grouped: bool, margins: bool, metric: str) -> str | None:
        needed = "labels.csv needs a column `group` with two groups, or names such as culture::french"
        return None if grouped else needed

    @classmethod
    def how_many(cls, n_groups: int) -> int:
        return n_groups

    @classmethod
    def fitted(cls, thresholds: np.ndarray, groups: np.ndarray) -> Self:
        return cls(label_thresholds=tuple(thresholds[groups].tolist()))

    def thresholds(self, groups: np.ndarray) -> np.ndarray:
        return np.array(self.label_thresholds)[np.unique(groups, return_index=True)[1]]

    def decode(self, probs: np.ndarray) -> np.ndarray:
        if len(self.label_thresholds) != probs.shape[1]:
            raise ConfigError(
                f"the decoder {self.name!r} needs a threshold for each of {probs.shape[1]} labels: blend again"
            )
        limits = np.array(self.label_thresholds, dtype=np.float32)
        return self.filled(probs, np.asarray(probs.astype(np.float32, copy=False) > limits))


class ExpectedScore(SampleDecoder):
    """The label set with the largest expected score under independent labels, at the best temperature."""

    name: Literal["expected-f2"] = "expected-f2"
    temperature: float = 1.0  # logits are divided by it
    metric: str  # a key of `METRICS`

    @classmethod
    def refusal(cls, *, grouped: bool, margins: bool, metric: str) -> str | None:
        if not metric_named(metric).expects:
            return f"the metric {metric!r} does not know its expectation"
        return super().refusal(grouped=grouped, margins=margins, metric=metric)

    @classmethod
    def fit(cls, probs: np.ndarray, labels: np.ndarray, metric: str) -> Self:
        """The temperature is 1, unless another is better."""
        from scipy.optimize import minimize_scalar  # only here: a kernel does not fit

        if not len(labels):
            return cls(metric=metric)
        negatives = not labels.any(axis=1).all()

        def loss(logarithm: float) -> float:
            decoder = cls(temperature=float(np.exp(logarithm)), metric=metric, negatives=negatives)
            return -metric_named(metric).score(decoder.decode(probs), labels)

        found = minimize_scalar(
            loss,
            bounds=tuple(np.log(TEMPERATURES)),
            method="bounded",
            options={"maxiter": TEMPERATURE_STEPS, "xatol": 0.01},
        )
        temperature = float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
        return cls(temperature=temperature, metric=metric, negatives=negatives)

    def decode(self, probs: np.ndarray) -> np.ndarray:
        warmed = with_temperature(probs, self.temperature)
        sets = metric_named(self.metric).decode_expected(warmed, negatives=self.negatives)
        return self.filled(probs, sets)

    def described(self) -> str:
        return f"expected-{self.metric}, temperature {self.temperature:.2f}"


def decode_threshold(probs: np.ndarray, threshold: float) -> np.ndarray:
    """All labels above the threshold: (N, C) bool."""
    # numpy would round the threshold to float16, onto a probability: compare in float32 or better
    wide = probs.astype(np.result_type(probs.dtype, np.float32), copy=False)
    return np.asarray(wide > threshold)


def with_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logits are divided by the temperature (Guo et al. 2017): (N, C), float32 unless it is 1."""
    if temperature == 1.0:
        return probs
    p = np.clip(probs.astype(np.float32), 0, 1)
    power = np.float32(1 / temperature)
    present, absent = p**power, (1 - p) ** power
    return np.asarray(present / (present + absent))


def at_least_one(probs: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The same sets; where one is empty, the most probable label."""
    decoded = decoded.copy()
    empty = np.flatnonzero(~decoded.any(axis=1))
    decoded[empty, probs[empty].argmax(axis=1)] = True
    return decoded


def read_decoder(value: Any) -> Decoder:
    """A decoder from what JSON holds of it.

    Raises:
        ValueError: if its name is unknown or its parameters do not fit.
    """
    if isinstance(value, Decoder):
        return value
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str) or name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}. Known: {', '.join(DECODERS)}")
    kind = DECODERS[name]
    # files of earlier versions hold the parameters of all decoders, and no metric
    known = {"metric": "f2"} | (value if isinstance(value, dict) else {})
    others = {field for one in DECODERS.values() for field in one.model_fields} - kind.model_fields.keys()
    return kind.model_validate({key: known[key] for key in known.keys() - others})


def possible_decoders(
    asked: Sequence[str] | None, *, grouped: bool, margins: bool, metric: str
) -> tuple[str, ...]:
    """Those that are asked for, or all that these data allow; arguments as of `Decoder.refusal`.

    Raises:
        ConfigError: for one that cannot be used, with the reason.
    """
    refusals = {
        name: kind.refusal(grouped=grouped, margins=margins, metric=metric) for name, kind in DECODERS.items()
    }
    for name in asked or ():
        if refusals[name] is not None:
            raise ConfigError(f"the decoder {name!r} cannot be used: {refusals[name]}")
    return tuple(dict.fromkeys(asked if asked is not None else (n for n in refusals if refusals[n] is None)))


# a field of a model: any decoder, as JSON its name and parameters
AnyDecoder = Annotated[
    Decoder, PlainValidator(read_decoder), PlainSerializer(lambda decoder: decoder.model_dump(mode="json"))
]

DECODERS: dict[str, type[Decoder]] = {
    "threshold": Threshold,
    "group-thresholds": GroupThresholds,
    "expected-f2": ExpectedScore,
}
