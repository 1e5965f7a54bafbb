"""The sweep: Ray Tune over `Policy`'s trials, with early stopping for those that only search.

Hands out trials, watches them, and returns when every variant is trained on all folds. Tune's own state is a
convenience; continuing never needs it.
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
from imet_ray.cluster.study_storage import Studies, data_base_faults, open_studies
from imet_ray.cluster.tune_searcher import StopOnFault, SweepSearcher
from imet_ray.cluster.worker import train_in_team, train_in_worker
from imet_ray.cluster.worker_failures import WORKER_DEATHS, Deaths, teach_tune, told_by_trial
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ImetError, first_line
from imet_ray.search_space import SearchSpace
from imet_ray.specs import TrialSpec
from imet_ray.storage.run_directory import RunDirectory

# Holds the Tune function of a team, which only waits, on the head: a CPU for it could be the one its workers lack.
ON_HEAD = {"node:__internal_head__": 0.001}


class SetupFaultError(ImetError):
    """A trial met a fault of the set-up: all others would meet it too."""


class BrokenOffError(ImetError):
    """Ray Tune met a fault of its own."""


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep did in this sitting."""

    trials: int  # that ended
    wall_s: float
    overhead_s: float  # a trial: time that a slot was held, less training; the start of the workers included
    start_s: float  # of a worker
    workers: int
    out_of_time: bool


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
        BrokenOffError: Ray Tune met a fault of its own.
        KeyboardInterrupt: the user stopped it; the same command continues.
    """
    with data_base_faults(), open_studies(store, studies_url) as studies:
        return _run(space, store, data, session, deadline, studies)


def _run(
    space: SearchSpace,
    store: RunDirectory,
    data: TrainingData,
    session: Session,
    deadline: float | None,
    studies: Studies,
) -> SweepSummary:
    policy = Policy(
        *(space, store, data.split.digest, data.folds_digest, deadline),
        storage=studies.storage,
        prefix=studies.prefix,
    )
    if policy.next_is_last():
        return SweepSummary(0, 0.0, 0.0, 0.0, 0, False)
    started = time.time()
    # Tune's own state is of no use to us: that it cannot be saved, on a full disk, is said in one line elsewhere
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    teach_tune()
    deaths = Deaths()
    with told_by_trial(), SweepProgress(policy, session, deaths) as progress:
        stopper = StopOnFault()
        tuner = tune.Tuner(
            _trainable(session, data, store),
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(
                    policy, progress.refresh, stopper, session.capacity, deaths, studies.save
                ),
                scheduler=SearchOnlyAsha(space, deaths),
                num_samples=-1,  # as many as the searcher has; it holds back what does not fit
                reuse_actors=session.workers_per_trial == 1,  # a team ends with the actor that began it
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(store.tune),
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
                callbacks=[progress],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (RuntimeError, tune.TuneError) as error:
            text = f"Ray Tune broke off ({first_line(error)}): the same command continues"
            raise BrokenOffError(text) from error
    if stopper.fault is not None:
        raise SetupFaultError(stopper.fault)
    out_of_time = deadline is not None and time.time() > deadline
    if policy.in_flight or (not out_of_time and not policy.next_is_last()):
        raise KeyboardInterrupt
    shutil.rmtree(store.tune, ignore_errors=True)  # of no use any more: all is in the store
    return SweepSummary(
        trials=progress.ended,
        wall_s=time.time() - started,
        overhead_s=progress.overhead_s,
        start_s=progress.start_s,
        workers=max(1, session.slots - progress.unused),
        out_of_time=out_of_time,
    )


def _trainable(session: Session, data: TrainingData, store: RunDirectory) -> Any:
    """What Tune runs for a trial, with what it holds meanwhile."""
    slot, teams = session.slot(store), session.workers_per_trial > 1
    work = tune.with_parameters(train_in_team if teams else train_in_worker, data=data, slot=slot)
    # what Ray's pages call the actors and their calls
    work.__name__ = f"{'teams' if teams else 'trials'} of {store.root.name}"
    return tune.with_resources(work, ON_HEAD if teams else {"cpu": slot.cpus, "gpu": slot.gpus})


class SearchOnlyAsha(FIFOScheduler):  # type: ignore[misc]  # Ray has no types for mypy
    """ASHA (Li et al. 2020) on searching trials, rungs of their own for each variant and fold.

    Promoted trials are never stopped. Rungs are not saved: after a restart they start empty.
    """

    def __init__(self, space: SearchSpace, deaths: Deaths) -> None:
        super().__init__()
        self.asha, self.deaths = space.asha, deaths
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
        if bracket is None or result.get("epoch", epochs) >= epochs:
            return TrialScheduler.CONTINUE  # type: ignore[no-any-return]
        return bracket.on_trial_result(tune_controller, trial, result)  # type: ignore[no-any-return]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget the trial; its rungs keep its scores."""
        self.judged.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget the trial."""
        self.judged.pop(trial.trial_id, None)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forget the trial, and keep what its worker died of: the first to hear of it."""
        self.judged.pop(trial.trial_id, None)
        self.deaths.note(trial)


def _trial_name(trial: Any) -> str:
    return TrialSpec.model_validate_json(trial.config["spec"]).title
