"""What Ray runs in its workers. Light to import, so that torch comes in with the collector at rest.

The work itself is in `trial` and `oof`.
"""

from typing import Any

from imet_ray.cluster.session import Slot
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.startup import heavy_imports


def train_in_worker(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Tune's trainable: `trial.run_trial`."""
    with heavy_imports():
        from imet_ray.cluster.trial import run_trial
    run_trial(config, data, slot)


def train_in_team(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Tune's trainable where several workers train a trial: `team.run_team`."""
    with heavy_imports():
        from imet_ray.cluster.ddp_trial import run_team
    run_team(config, data, slot)


def predict_in_worker(
    kind: str,
    trial_id: str,
    shared: tuple[SplitData, tuple[str, ...], TrainingData | None],
    slot: Slot,
) -> bool | str:
    """A Ray task: `oof.predict_one`."""
    with heavy_imports():
        from imet_ray.cluster.predict_tasks import predict_one
    return predict_one(kind, trial_id, shared, slot)
