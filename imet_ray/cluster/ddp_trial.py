"""One trial on several workers: the Tune function that starts them with Ray Train, and what each worker runs.

The training is the same `train_trial`. Ray Train places the workers, joins them to a process group, and stops all when
one fails. The trial then continues from its last epoch with as many workers as fit, and with the same batches, however
many workers there are (`_elastic` says when it waits for all). When more fit, it starts again with more.
"""

import os
from dataclasses import dataclass
from typing import Any

import ray.train
from ray import tune
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback
from torch.cuda import OutOfMemoryError

from imet_ray.cluster.session import Slot
from imet_ray.cluster.trial import epoch_report, log_start, prepare_device, report_end
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ImetError
from imet_ray.specs import TrialSpec
from imet_ray.storage.results import TrialResult, read_result
from imet_ray.training.distributed import Team
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics

# Ray's view of the free resources is up to 20 s old. After a loss it may wait this long for resources that are gone,
# twice. Its own 60 s made that 84 s, 20 s make it 44 s (one run each).
START_S = 20
START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
RESIZE_S = 300.0  # between two starts with more workers, each of which costs a part of an epoch


@dataclass(frozen=True)
class Job:
    """What each worker gets."""

    spec: TrialSpec
    phase: str
    data: TrainingData
    slot: Slot


def run_ddp_trial(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Train the trial of `config["spec"]` on as many workers as it says, reporting to Tune after each epoch."""
    spec = TrialSpec.model_validate_json(config["spec"])
    job = Job(spec, config["phase"], data, slot)
    if _elastic(spec, slot):
        os.environ.setdefault(START, str(START_S))
    while True:
        try:
            _trainer(job).fit()
        except WorkerGroupError as error:
            errors = [getattr(one, "_base_exc", one) for one in error.worker_failures.values()]
            preempted = [getattr(one, "health_check_failure", None) for one in error.worker_failures.values()]
            for one in [*preempted, *errors]:  # Tune counts all failures but these
                if isinstance(one, RayActorError) and one.preempted:
                    raise one from None
            fault = next((one for one in errors if isinstance(one, ImetError)), None)
            if fault is not None:
                tune.report({"fatal": str(fault)})
                return
            if _result(job) is None:
                if any(isinstance(one, OutOfMemoryError) for one in errors):
                    continue  # with smaller parts of a batch
                raise
        result = _result(job)
        assert result is not None
        report_end(result)
        return


def _trainer(job: Job) -> TorchTrainer:
    spec, slot = job.spec, job.slot
    return TorchTrainer(
        _train,
        train_loop_config={"job": job},
        # NCCL refuses two workers on one GPU
        torch_config=TorchConfig(backend="nccl" if slot.gpus == 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(1, spec.workers) if _elastic(spec, slot) else spec.workers,
            elastic_resize_monitor_interval_s=RESIZE_S,
            use_gpu=slot.gpus > 0,
            resources_per_worker={"CPU": slot.cpus} | ({"GPU": slot.gpus} if slot.gpus else {}),
        ),
        run_config=RunConfig(
            name=spec.title,
            storage_path=str(slot.run.tune / "ddp"),
            failure_config=FailureConfig(max_failures=0),  # Tune counts the failures
            callbacks=[TuneReportCallback()],
        ),
    )


def _elastic(spec: TrialSpec, slot: Slot) -> bool:
    """True if fewer workers than the trial asks for may train it.

    Not with a fraction of a GPU, which Ray counts as none, nor if batch norm takes its statistics over all workers.
    """
    return slot.gpus in (0, 1) and spec.batch_norm == "local"


def _result(job: Job) -> TrialResult | None:
    """The result that the first worker wrote, perhaps on another node."""
    trial = job.slot.run.trial(job.spec.trial_id)
    trial.fetch(trial.result)
    return read_result(trial)


def _train(config: dict[str, Any]) -> None:
    """Train in one of the workers."""
    job: Job = config["job"]
    context = ray.train.get_context()
    log_start(job.spec, job.phase, f" worker {context.get_world_rank()}")

    def report(metrics: EpochMetrics) -> None:
        ray.train.report(epoch_report(metrics))

    try:
        train_trial(
            job.spec,
            job.data,
            job.slot.run.trial(job.spec.trial_id),
            device=prepare_device(job.slot),
            loader_workers=job.slot.loader_workers,
            report=report,
            team=Team(context.get_world_rank(), context.get_world_size()),
        )
    except ImetError as error:
        raise type(error)(job.slot.describe(error)) from error
