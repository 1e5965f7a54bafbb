"""One trial inside a Ray worker: training as Tune's function, and the predictions of its checkpoint.

A trial's own failure becomes a result. A fault of the setup is reported as `fatal`, which stops the sweep.
"""

import gc
import os
import traceback
from typing import Any

import cv2
import numpy as np
import torch
from ray import tune
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled

from imet_ray.cluster.session import Slot
from imet_ray.data.loader import loader_died
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.errors import ConfigError, ImetError, telling_line
from imet_ray.prediction.predict import predict_checkpoint
from imet_ray.prediction.view_sets import ViewSet, other_views
from imet_ray.specs import TrialSpec
from imet_ray.storage.files import SupersededError, write_text
from imet_ray.storage.results import TrialResult, read_spec, write_result
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics


def run_trial(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Train the trial of `config["spec"]`, reporting to Tune after each epoch."""
    spec = TrialSpec.model_validate_json(config["spec"])
    trial = slot.run.trial(spec.trial_id)

    def report(metrics: EpochMetrics) -> None:
        tune.report(epoch_report(metrics))
        set_title(spec, config["phase"])

    log_start(spec, config["phase"])
    set_title(spec, config["phase"])
    try:
        device, loaders = prepare_device(slot), slot.loader_workers
        result = train_trial(spec, data, trial, device=device, loader_workers=loaders, report=report)
    except SupersededError:  # by a worker that outlives its driver, or by this trial's next worker
        tune.report({"superseded": True})
        return
    except ImetError as error:
        tune.report({"fatal": slot.describe(error)})
        return
    except Exception as error:  # an error in our own code fails this trial; its traceback is kept
        if isinstance(error, torch.AcceleratorError) or (slot.loader_workers and loader_died(error)):
            # nothing can be trained in this process any more: Ray counts the death and starts another
            os._exit(1)
        kept = trial.root / "error.txt"
        write_text(kept, traceback.format_exc(), trial.files)
        reason = f"{type(error).__name__}: {telling_line(error)} (traceback in {kept})"
        result = TrialResult(trial_id=spec.trial_id, status="failed", reason=reason)
        write_result(trial, result)
    report_end(result)


def predict_one(
    trial_id: str,
    shared: tuple[SplitData, tuple[str, ...], TrainingData | None, ViewSet | None],
    slot: Slot,
) -> bool | str:
    """Predict with one checkpoint; False if the predictions were there, or the text of an error for the user.

    Args:
        shared: the split, its labels, the training data if the held-out fold is predicted, and the views.
    """
    split, label_ids, data, views = shared
    trial = slot.run.trial(trial_id)
    try:
        trial.fetch(trial.spec)
        other = other_views(trial, views)
        path = trial.test_of(other) if data is None else trial.oof_of(other)
        trial.fetch(trial.best, path)
        rows = data.rows(read_spec(trial).fold, held_out=True) if data else np.arange(len(split.ids))
        return predict_checkpoint(
            trial,
            split,
            rows,
            path=path,
            label_ids=label_ids,
            device=prepare_device(slot),
            workers=slot.loader_workers,
            views=views,
        )
    except ImetError as error:
        return slot.describe(error)


def epoch_report(metrics: EpochMetrics) -> dict[str, Any]:
    """What Tune is told after an epoch."""
    return metrics | {"trial_seconds": metrics["seconds"] + metrics["evaluate_s"]}


def report_end(result: TrialResult) -> None:
    """Tell Tune of an end that no epoch has told."""
    if result.status == "failed" or result.epochs == 0:
        tune.report({"failed": result.reason})


def prepare_device(slot: Slot) -> torch.device:
    """Prepare a worker that may have trained another trial before: threads, memory, device.

    Raises:
        ConfigError: if torch cannot see the GPUs that the trial was given.
    """
    torch.set_num_threads(slot.threads)
    cv2.setNumThreads(slot.threads)
    gc.collect()
    if slot.gpus:
        if torch.cuda.device_count() < slot.gpus:
            raise ConfigError(
                f"the trial was given {slot.gpus:g} GPUs and torch sees {torch.cuda.device_count()}: "
                "install a CUDA build of torch, or set gpus_per_trial: 0"
            )
        torch.cuda.empty_cache()
        return torch.device("cuda")
    return torch.device("cpu")


def log_start(spec: TrialSpec, phase: str, worker: str = "") -> None:
    """Name the trial in the worker's log: Ray names an actor once, and Tune gives it many trials.

    Args:
        worker: which of the trial's workers, if there are several.
    """
    print(f"{_title(spec, phase)}{worker}: {spec.hparams}", flush=True)


def set_title(spec: TrialSpec, phase: str) -> None:
    """Show the trial in `ps`, `top` and `nvidia-smi`; Ray resets the title at each of Tune's calls, once per epoch."""
    setproctitle(f"ray::{_title(spec, phase)}")


def _title(spec: TrialSpec, phase: str) -> str:
    return f"{spec.variant.name} fold {spec.fold} {phase} {spec.trial_id}"
