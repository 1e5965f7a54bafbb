"""Train one trial: one variant on one fold, from nothing or from where it was interrupted.

Halves the batch where the GPU's memory is too small, and turns the trial's own failures into a result. Knows nothing
of schedulers: whoever calls it passes `report` and may stop it there. The training itself is `imet_ray.sitting`.
"""

import gc
from collections.abc import Callable

import torch

from imet_ray.data import TrainingData
from imet_ray.errors import TrialError
from imet_ray.results import TrialResult, read_result, write_result
from imet_ray.sitting import EpochMetrics, Sitting
from imet_ray.specs import TrialSpec
from imet_ray.store import TrialStore, read_json_lines, write_json

MAX_SPLITS = 4  # a batch is halved at most twice when the GPU's memory is too small


def train_trial(
    spec: TrialSpec,
    data: TrainingData,
    trial: TrialStore,
    *,
    device: torch.device,
    gpus: int = 1,
    loader_workers: int = 0,
    report: Callable[[EpochMetrics], None] = lambda metrics: None,
) -> TrialResult:
    """Train until the result is there; at once if it is there already.

    Args:
        gpus: where there are several, each batch is split over the first of them.
        report: called after each epoch, when everything of that epoch is on disk; for the last epoch, when the
            result is. What it raises ends the training and is passed on.

    Returns:
        The result, also on disk. Its status is "failed" where the trial failed for its own reasons.

    Raises:
        ImetError: a fault of the set-up: data, disk, settings.
        SupersededError: another process has taken over this trial.
    """
    result = read_result(trial)
    if result is not None and result.status != "stopped":
        return result
    token = trial.acquire()
    write_json(trial.spec, spec.model_dump(mode="json"))
    splits = 1
    while True:
        try:
            return Sitting(spec, data, trial, token, device, gpus, loader_workers, splits).run(report)
        except torch.cuda.OutOfMemoryError:
            reason = f"out of GPU memory, even with each batch in {splits} parts"
        except TrialError as error:
            reason, splits = str(error), MAX_SPLITS
        if splits == MAX_SPLITS:
            result = TrialResult(
                trial_id=spec.trial_id,
                status="failed",
                reason=reason,
                epochs=len(read_json_lines(trial.metrics)),
            )
            trial.check(token)
            write_result(trial, result)
            return result
        splits *= 2
        gc.collect()  # optimizer and schedule hold each other
        torch.cuda.empty_cache()
