"""What the models say of a picture: the answer of a replica."""

from typing import NamedTuple

import numpy as np


class Tagged(NamedTuple):
    """A picture's labels, and what it took to find them."""

    probs: np.ndarray  # (C,) float32, calibrated
    chosen: list[int]  # its labels by their positions, the most probable first
    seconds: float  # its share of the models' time
    share: float  # of a batch: 1 / its pictures
