"""Train one trial: one variant on one fold, from nothing or from where it was interrupted.

Halves the batch where the GPU's memory is too small, and turns the trial's own failures into a result. Knows nothing
of schedulers: whoever calls it passes `report` and may stop it there. The training itself is
`imet_ray.training.trainer`.
"""

import gc
from collections.abc import Callable

import torch

from imet_ray.data.training_data import TrainingData
from imet_ray.errors import TrialError
from imet_ray.specs import TrialSpec
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, another_trial, read_result, read_spec, write_result
from imet_ray.storage.run_directory import TrialDirectory
from imet_ray.training.distributed import ONE_PROCESS, Hardware, Team
from imet_ray.training.trainer import MAX_SPLITS, EpochMetrics, Trainer, batch_splits


def train_trial(
    spec: TrialSpec,
    data: TrainingData,
    trial: TrialDirectory,
    *,
    device: torch.device,
    loader_workers: int = 0,
    report: Callable[[EpochMetrics], None] = lambda metrics: None,
    team: Team = ONE_PROCESS,
) -> TrialResult:
    """Train until the result is there; at once if it is there already.

    Args:
        report: called after each epoch, when everything of that epoch is on disk; for the last epoch, when the
            result is. What it raises ends the training and is passed on.
        team: the processes that train it together; each of them calls this.

    Returns:
        The result, also on disk. Its status is "failed" where the trial failed for its own reasons.

    Raises:
        ImetError: a fault of the set-up: data, disk, settings.
        SupersededError: another process has taken over this trial.
        SplitError: an older writer's last write came between the processes of a team, which must begin again together.
        torch.cuda.OutOfMemoryError: in a team only, which must begin again together; the batch is halved by then.
    """
    result, token = _begin(spec, trial, team) if team.leads else (None, "")
    over = team.broadcast(result is not None)
    if not team.leads:  # after the leader: all of a team go on from one state
        result = _finished(trial)
    if over:
        assert result is not None
        return result
    hardware = Hardware(device, loader_workers, team)
    while True:
        splits = batch_splits(trial)  # before: all of a team that run out of memory write the same
        try:
            return Trainer(spec, data, trial, token, hardware).run(report)
        except TrialError as error:  # all of a team meet it at once
            result = _failed(spec, trial, str(error))
        except torch.cuda.OutOfMemoryError:
            result = _too_large(spec, trial, splits)
            if team.size > 1:  # all begin again together, whichever of them met it
                if result is not None:
                    write_result(trial, result)
                raise
        if result is not None:
            if team.leads:
                trial.check(token)
                write_result(trial, result)
            return result
        gc.collect()  # optimizer and schedule hold each other
        torch.cuda.empty_cache()


def _begin(spec: TrialSpec, trial: TrialDirectory, team: Team) -> tuple[TrialResult | None, str]:
    """Become the writer of the trial's directory; the result and no token, if nothing is left to train."""
    result = _finished(trial)
    if trial.spec.exists() and not read_spec(trial).same_trial(spec):
        raise another_trial(trial)
    if result is not None:
        return result, ""
    token = trial.acquire()
    write_json(trial.spec, spec.model_dump(mode="json"), trial.files)
    return (_finished(trial) if team.size > 1 else None), token  # what an older writer wrote until now


def _too_large(spec: TrialSpec, trial: TrialDirectory, splits: int) -> TrialResult | None:
    """Halve the batch for the next attempt; the failed result, if it was halved as often as it may be."""
    if splits == MAX_SPLITS:
        return _failed(spec, trial, f"out of GPU memory, even with each batch in {splits} parts")
    write_json(trial.splits, 2 * splits, trial.files)
    return None


def _finished(trial: TrialDirectory) -> TrialResult | None:
    """What another node left in the bucket is fetched; the result, if nothing is left to train."""
    trial.fetch_all()
    result = read_result(trial)
    return result if result is not None and result.status != "stopped" else None


def _failed(spec: TrialSpec, trial: TrialDirectory, reason: str) -> TrialResult:
    epochs = len(read_json_lines(trial.metrics))
    return TrialResult(trial_id=spec.trial_id, status="failed", reason=reason, epochs=epochs)
