"""What Ray runs in its workers. Light to import, so that torch comes in with the collector at rest.

The work itself is in `trial` and `oof`.
"""

from pathlib import Path
from typing import Any

from imet_ray.data import SplitData, TrainingData
from imet_ray.startup import heavy_imports


def train_in_worker(
    config: dict[str, Any],
    data: TrainingData,
    run: Path,
    threads: int,
    loader_workers: int,
    gpus: float,
) -> None:
    """Tune's trainable: `trial.run_trial`."""
    with heavy_imports():
        from imet_ray.cluster.trial import run_trial
    run_trial(config, data, run, threads, loader_workers, gpus)


def train_in_team(
    config: dict[str, Any],
    data: TrainingData,
    run: Path,
    threads: int,
    loader_workers: int,
    gpus: float,
    cpus: float,
) -> None:
    """Tune's trainable where several workers train a trial: `team.run_team`."""
    with heavy_imports():
        from imet_ray.cluster.team import run_team
    run_team(config, data, run, threads, loader_workers, gpus, cpus)


def predict_in_worker(
    kind: str,
    run: Path,
    trial_id: str,
    shared: tuple[SplitData, tuple[str, ...], TrainingData | None],
    threads: int,
    loader_workers: int,
    gpus: float,
) -> bool | str:
    """A Ray task: `oof.predict_one`."""
    with heavy_imports():
        from imet_ray.cluster.oof import predict_one
    return predict_one(kind, run, trial_id, shared, threads, loader_workers, gpus)
