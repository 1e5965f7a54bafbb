"""One trial on several workers: the Tune function that starts them with Ray Train, and what each of them runs.

The training is `imet_ray.training.train_trial`'s, as for a trial alone. Ray Train places the workers, joins them to a
process group and takes all down when one fails; the trial then goes on from its last epoch with as many as there is
room for, and with the same batches, however many that are (`_elastic` says when it waits for all). When room for more
has come it begins again with more.
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
from imet_ray.cluster.title import announce
from imet_ray.cluster.trial import end_of, tell_tune, worker_device
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ImetError
from imet_ray.specs import TrialSpec
from imet_ray.storage.results import TrialResult, read_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.distributed import Team
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics

# Ray counts the room for workers in a picture of the cluster that is up to 20 s old. After a loss it may wait for room
# that is gone, for so long and then as often again; its own 60 s made that 84 s, 20 s make it 44 s (one run each)
START_S = 20
START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
RESIZE_S = 300.0  # a team that is smaller than it could be is begun again, which costs a part of an epoch


@dataclass(frozen=True)
class Member:
    """What each worker gets."""

    spec: TrialSpec
    phase: str
    data: TrainingData
    slot: Slot


def run_team(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """Train the trial of `config["spec"]` on as many workers as it says, reporting to Tune after each epoch."""
    spec = TrialSpec.model_validate_json(config["spec"])
    store = slot.run
    member = Member(spec, config["phase"], data, slot)
    elastic = _elastic(spec, slot)
    if elastic:
        os.environ.setdefault(START, str(START_S))
    while True:
        trainer = TorchTrainer(
            _train,
            train_loop_config={"member": member},
            # NCCL refuses two workers on one GPU
            torch_config=TorchConfig(backend="nccl" if slot.gpus == 1 else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(1, spec.workers) if elastic else spec.workers,
                elastic_resize_monitor_interval_s=RESIZE_S,
                use_gpu=slot.gpus > 0,
                resources_per_worker={"CPU": slot.cpus} | ({"GPU": slot.gpus} if slot.gpus else {}),
            ),
            run_config=RunConfig(
                name=spec.title,
                storage_path=str(store.tune / "teams"),
                failure_config=FailureConfig(max_failures=0),  # Tune counts the deaths
                callbacks=[TuneReportCallback()],
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            found = [getattr(one, "_base_exc", one) for one in error.worker_failures.values()]
            taken = [getattr(one, "health_check_failure", None) for one in error.worker_failures.values()]
            for one in [*taken, *found]:  # Tune counts all but these
                if isinstance(one, RayActorError) and one.preempted:
                    raise one from None
            fault = next((one for one in found if isinstance(one, ImetError)), None)
            if fault is not None:
                tune.report({"fatal": str(fault)})
                return
            if _result(store, spec) is None:
                if any(isinstance(one, OutOfMemoryError) for one in found):
                    continue  # with smaller parts
                raise
        result = _result(store, spec)
        assert result is not None
        tell_tune(result)
        return


def _elastic(spec: TrialSpec, slot: Slot) -> bool:
    """True if fewer workers than the trial is meant for may train it.

    Ray counts a fraction of a GPU as none; and statistics over all workers are those of a whole batch only with all.
    """
    return slot.gpus in (0, 1) and spec.batch_norm == "local"


def _result(store: RunDirectory, spec: TrialSpec) -> TrialResult | None:
    """The leader wrote it, perhaps on another node."""
    trial = store.trial(spec.trial_id)
    trial.fetch(trial.result)
    return read_result(trial)


def _train(config: dict[str, Any]) -> None:
    """In a worker."""
    member: Member = config["member"]
    context = ray.train.get_context()
    announce(member.spec, member.phase, f" worker {context.get_world_rank()}")

    def report(metrics: EpochMetrics) -> None:
        ray.train.report(end_of(metrics))

    try:
        train_trial(
            member.spec,
            member.data,
            member.slot.run.trial(member.spec.trial_id),
            device=worker_device(member.slot),
            loader_workers=member.slot.loader_workers,
            report=report,
            team=Team(context.get_world_rank(), context.get_world_size()),
        )
    except ImetError as error:
        raise type(error)(member.slot.tell(error)) from error
