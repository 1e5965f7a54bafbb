"""One trial inside a Ray worker: the adapter between Tune's function interface and `imet_ray.training.train_trial`.

A trial's own failure becomes a result. A fault of the set-up is reported as `fatal`, which stops the sweep.
"""

import gc
import os
import traceback
from typing import Any

import cv2
import torch
from ray import tune

from imet_ray.cluster.session import Slot
from imet_ray.cluster.title import announce, entitle
from imet_ray.data.loader import loader_died
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ConfigError, ImetError
from imet_ray.specs import TrialSpec
from imet_ray.storage.files import SupersededError, write_text
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics


def run_trial(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Train the trial of `config["spec"]`, reporting to Tune after each epoch."""
    spec = TrialSpec.model_validate_json(config["spec"])
    trial = slot.run.trial(spec.trial_id)

    def report(metrics: EpochMetrics) -> None:
        tune.report(end_of(metrics))
        entitle(spec, config["phase"])

    announce(spec, config["phase"])
    entitle(spec, config["phase"])
    try:
        device = worker_device(slot)
        result = train_trial(
            spec,
            data,
            trial,
            device=device,
            loader_workers=slot.loader_workers,
            report=report,
        )
    except SupersededError:  # by a twin that outlives its driver by a moment, or by this one's next worker
        tune.report({"superseded": True})
        return
    except ImetError as error:
        tune.report({"fatal": slot.tell(error)})
        return
    except Exception as error:  # a fault in our own code fails this trial, with its traceback kept
        if isinstance(error, torch.AcceleratorError) or (slot.loader_workers and loader_died(error)):
            # nothing can be trained in this process any more: Ray counts the death and starts another
            os._exit(1)
        kept = trial.root / "error.txt"
        write_text(kept, traceback.format_exc(), trial.files)
        first = (str(error).splitlines() or [""])[0]
        result = TrialResult(
            trial_id=spec.trial_id,
            status="failed",
            reason=f"{type(error).__name__}: {first} (traceback in {kept})",
        )
        write_result(trial, result)
    tell_tune(result)


def end_of(metrics: EpochMetrics) -> dict[str, Any]:
    """What Tune is told of an epoch."""
    return metrics | {"trial_seconds": metrics["seconds"] + metrics["evaluate_s"]}


def tell_tune(result: TrialResult) -> None:
    """What no epoch has told."""
    if result.status == "failed" or result.epochs == 0:
        tune.report({"failed": result.reason})


def worker_device(slot: Slot) -> torch.device:
    """Prepare a worker that may have trained another trial before: threads, memory, device.

    Raises:
        ConfigError: if it was given GPUs that torch cannot see.
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
