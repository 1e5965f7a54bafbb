"""The sweep: Ray Tune over `Policy`'s trials, with early stopping for those that search.

Returns when every variant is trained on all folds. Continuing a sweep never needs Tune's own state.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.progress import SweepProgress
from imet_ray.cluster.session import Session
from imet_ray.cluster.study_storage import database_errors, open_studies
from imet_ray.cluster.tune_searcher import StopOnFault, SweepSearcher
from imet_ray.cluster.worker import train_in_group, train_in_worker
from imet_ray.cluster.worker_failures import (
    TOLD_BY_TRIAL,
    WORKER_FAILURES,
    WorkerFailures,
    quiet_ray,
    teach_tune,
)
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ImetError, telling_line
from imet_ray.search_space import SearchSpace
from imet_ray.specs import TrialSpec
from imet_ray.storage.run_directory import RunDirectory

# Holds on the head the Tune function that waits for several workers: a CPU for it could be the one that they lack.
ON_HEAD = {"node:__internal_head__": 0.001}


class SetupFaultError(ImetError):
    """A trial met a fault of the setup: all others would meet it too."""


class TuneError(ImetError):
    """Ray Tune failed itself."""


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep did since it was started or continued."""

    trials: int  # that ended
    wall_s: float
    overhead_s: float  # per trial, with the start of the workers: time that its slot was held, less training
    starts_s: list[float]  # of each worker
    out_of_time: bool
    in_vain: tuple[str, ...] = ()  # a line for each variant that cannot begin, because another one failed


def run_sweep(
    space: SearchSpace,
    store: RunDirectory,
    data: TrainingData,
    session: Session,
    *,
    deadline: float | None = None,
    studies_url: str | None = None,
) -> SweepSummary:
    """Train what is left of the experiment.

    Args:
        deadline: in `time.time()`'s seconds; no new trial starts after it.
        studies_url: of an Optuna storage; None: the run's own journal.

    Raises:
        SetupFaultError: a trial met a fault that all would meet; one line says which.
        TuneError: Ray Tune failed itself.
        KeyboardInterrupt: the user stopped it; the same command continues.
    """
    with database_errors(), open_studies(store, studies_url) as studies:
        policy = Policy(space, store, data.split.digest, data.folds_digest, deadline, studies=studies)
        if policy.next_is_last():
            return SweepSummary(0, 0.0, 0.0, [], False, policy.in_vain)
        return _run(policy, _trainable(session, data, store), session)


def _run(policy: Policy, trainable: Any, session: Session) -> SweepSummary:
    started = time.time()
    # Tune's own state is of no use to us; a full disk, on which it cannot be saved, is reported elsewhere in one line
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    teach_tune()
    quiet_ray(TOLD_BY_TRIAL)
    failures, stopper = WorkerFailures(), StopOnFault()
    with SweepProgress(policy, session, failures) as progress:
        searcher = SweepSearcher(policy, progress.refresh, stopper, session.capacity, failures)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=SearchOnlyAsha(policy.space, failures),
                num_samples=-1,  # as many as the searcher has; it limits itself to what fits
                reuse_actors=session.workers_per_trial == 1,  # the workers of a group end with its actor
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(policy.store.tune),
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=WORKER_FAILURES),
                callbacks=[progress],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (RuntimeError, tune.TuneError) as error:
            raise TuneError(f"Ray Tune failed ({telling_line(error)}): the same command continues") from error
    quiet_ray()
    if stopper.fault is not None:
        raise SetupFaultError(stopper.fault)
    out_of_time = policy.deadline is not None and time.time() > policy.deadline
    if policy.in_flight or (not out_of_time and not policy.next_is_last()):
        raise KeyboardInterrupt
    shutil.rmtree(policy.store.tune, ignore_errors=True)  # of no use any more: the run directory has all
    return SweepSummary(
        trials=progress.ended,
        wall_s=time.time() - started,
        overhead_s=progress.overhead_s,
        starts_s=progress.starts_s,
        out_of_time=out_of_time,
        in_vain=policy.in_vain,
    )


def _trainable(session: Session, data: TrainingData, store: RunDirectory) -> Any:
    """The function that Tune runs for a trial, with the resources that it holds."""
    slot, several = session.slot(store), session.workers_per_trial > 1
    work = tune.with_parameters(train_in_group if several else train_in_worker, data=data, slot=slot)
    work.__name__ = f"trials of {store.root.name}"  # what Ray's pages call the actors and their calls
    return tune.with_resources(work, ON_HEAD if several else {"cpu": slot.cpus, "gpu": slot.gpus})


class SearchOnlyAsha(FIFOScheduler):  # type: ignore[misc]  # Ray has no types for mypy
    """ASHA (Li et al. 2020) on searching trials, with separate rungs for each variant and fold.

    Promoted trials are never stopped. Rungs are not saved: after a restart they start empty.
    """

    def __init__(self, space: SearchSpace, worker_failures: WorkerFailures) -> None:
        super().__init__()
        self.asha, self.worker_failures = space.asha, worker_failures
        self.brackets: dict[tuple[str, int], AsyncHyperBandScheduler] = {}
        self.judged: dict[str, AsyncHyperBandScheduler] = {}  # by Tune's trial id

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a searching trial under the scheduler of its variant and fold."""
        if self.asha is None or trial.config["phase"] != "search":
            return
        spec = TrialSpec.model_validate_json(trial.config["spec"])
        key = spec.variant.name, spec.fold
        if key not in self.brackets:
            epochs = spec.variant.epochs
            self.brackets[key] = AsyncHyperBandScheduler(
                time_attr="epoch",
                metric="score",
                mode="max",
                max_t=10**6,  # the last epoch is never stopped: the trial ends by itself
                grace_period=min(self.asha.grace_epochs, epochs),
                reduction_factor=self.asha.factor,
            )
        self.judged[trial.trial_id] = self.brackets[key]
        self.brackets[key].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a searching trial that is behind its rung; let everything else go on."""
        bracket = self.judged.get(trial.trial_id)
        epochs = TrialSpec.model_validate_json(trial.config["spec"]).recipe.epochs
        if bracket is None or result.get("ended") or result.get("epoch", epochs) >= epochs:
            return TrialScheduler.CONTINUE  # type: ignore[no-any-return]
        return bracket.on_trial_result(tune_controller, trial, result)  # type: ignore[no-any-return]

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note why the trial lost its worker: Tune tells its scheduler first."""
        self.worker_failures.note(trial)


def _trial_name(trial: Any) -> str:
    return TrialSpec.model_validate_json(trial.config["spec"]).title
