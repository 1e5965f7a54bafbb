"""Calibrated probabilities: what share of pictures with this probability have the label.

A logistic regression on the ensemble's log-odds (Platt 1999): two numbers for all labels, rising, so that the order of
labels stays. Label sets are decided on the probabilities as they were.
"""

from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import expit, logit

from imet_ray.specs import Frozen

LOW = 2.0**-24  # float16's smallest probability above 0
HIGH = 1 - 2.0**-12  # what is above it float16 rounds to 1


class Calibration(Frozen):
    """`expit(slope * log-odds + intercept)`."""

    slope: Annotated[float, Field(gt=0)]
    intercept: float

    def applied(self, probs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities: of any shape, float32."""
        return np.asarray(expit(self.slope * log_odds(probs) + self.intercept), dtype=np.float32)


def log_odds(probs: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, finite also at 0 and 1: float64 of the same shape."""
    return np.asarray(logit(np.clip(probs.astype(np.float64), LOW, HIGH)))
