"""A trial that ends after an epoch, as Ctrl-C would end it."""

import pytest
import torch

from imet_ray.data.training_data import TrainingData
from imet_ray.specs import TrialSpec
from imet_ray.storage.run_directory import TrialDirectory
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics


def train_until(epoch: int, spec: TrialSpec, data: TrainingData, trial: TrialDirectory) -> None:
    """Train, until everything of the epoch is on disk."""

    def stop(metrics: EpochMetrics) -> None:
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(spec, data, trial, device=torch.device("cpu"), report=stop)
