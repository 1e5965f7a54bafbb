"""What Ray runs in its workers.

Light to import, so that torch is imported with the garbage collector at rest. The work is in `trial` and `ddp_trial`.
"""

from typing import TYPE_CHECKING, Any

from imet_ray.cluster.session import Slot
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.startup import heavy_imports

if TYPE_CHECKING:  # it imports torch
    from imet_ray.prediction.view_sets import ViewSet


def train_in_worker(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Tune's trainable: `trial.run_trial`."""
    with heavy_imports():
        from imet_ray.cluster.trial import run_trial
    run_trial(config, data, slot)


def train_in_group(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Tune's trainable if several workers train a trial: `ddp_trial.run_ddp_trial`."""
    with heavy_imports():
        from imet_ray.cluster.ddp_trial import run_ddp_trial
    run_ddp_trial(config, data, slot)


def predict_in_worker(
    trial_id: str,
    shared: "tuple[SplitData, tuple[str, ...], TrainingData | None, ViewSet | None]",
    slot: Slot,
) -> bool | str:
    """A Ray task: `trial.predict_one`."""
    with heavy_imports():
        from imet_ray.cluster.trial import predict_one
    return predict_one(trial_id, shared, slot)
