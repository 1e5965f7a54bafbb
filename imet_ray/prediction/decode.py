"""From probabilities to label sets: by one threshold, by one per label group, or by the largest expected score."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import METRICS
from imet_ray.specs import Frozen


class Decoder(Frozen):
    """How an ensemble decides."""

    name: Literal["threshold", "group-thresholds", "expected-f2"]
    threshold: float | None = None
    label_thresholds: Annotated[tuple[float, ...], Field(strict=False)] | None = (
        None  # (C,), the same within a label group
    )
    temperature: float = 1.0  # of expected-f2: logits are divided by it


def decode(probs: np.ndarray, decoder: Decoder) -> np.ndarray:
    """Label sets, none of them empty.

    Args:
        probs: (N, C) float in [0, 1].

    Returns:
        (N, C) bool.

    Raises:
        ConfigError: if a decoder that needs thresholds comes without them.
    """
    if decoder.name == "expected-f2":
        return at_least_one(
            probs, METRICS["f2"].decode_expected(with_temperature(probs, decoder.temperature))
        )
    if decoder.name == "group-thresholds":
        if decoder.label_thresholds is None or len(decoder.label_thresholds) != probs.shape[1]:
            raise ConfigError(
                f"the decoder 'group-thresholds' needs a threshold for each of {probs.shape[1]} labels: blend again"
            )
        limits = np.array(decoder.label_thresholds, dtype=np.float32)
        return at_least_one(probs, np.asarray(probs.astype(np.float32, copy=False) > limits))
    if decoder.threshold is None:
        raise ConfigError("the decoder 'threshold' needs a threshold, got none: set one or use 'expected-f2'")
    return at_least_one(probs, decode_threshold(probs, decoder.threshold))


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
