"""A sweep in one process: what the product does, but trials and predictions run here, one after another, without Ray.

The policy, the searcher, the training, the blend, the prediction and the report are the product's own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch

import launch
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.session import Session
from imet_ray.cluster.study_storage import open_studies
from imet_ray.cluster.sweep import SweepSummary
from imet_ray.cluster.trial import predict_one
from imet_ray.cluster.tune_searcher import StopOnFault, SweepSearcher
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.commands import sweep as stage
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.search_space import SearchSpace
from imet_ray.specs import TrialSpec
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory
from imet_ray.training.train_trial import train_trial

HERE = Session(None, 1.0, 0.0, 0, slots=1, capacity=lambda: 1)


def sweep(argv: Sequence[str]) -> int:
    """`launch.py --sweep` with these options."""
    with (
        patch.object(stage, "ray_session", lambda *args, **how: contextlib.nullcontext(HERE)),
        patch.object(stage, "exported", lambda store: contextlib.nullcontext()),
        patch.object(stage, "run_sweep", _run_sweep),
        patch.object(stage, "predict_held_out", _predict_held_out),
        patch.object(stage, "predict_test", _predict_test),
    ):
        return launch.main(["--sweep", *argv])


def _run_sweep(
    space: SearchSpace, store: RunDirectory, data: TrainingData, session: Session, **how: Any
) -> SweepSummary:
    digests = data.split.digest, data.folds_digest
    with open_studies(store, None) as studies:
        policy = Policy(space, store, *digests, studies=studies)
        stopper = StopOnFault()
        searcher = SweepSearcher(policy, lambda: None, stopper, session.capacity, WorkerFailures())
        for number, spec in enumerate(_assigned(searcher)):

            def report(metrics: dict[str, Any], ours: str = str(number)) -> None:
                searcher.on_trial_result(ours, metrics)

            train_trial(spec, data, store.trial(spec.trial_id), device=torch.device("cpu"), report=report)
            searcher.on_trial_complete(str(number), {})
            assert stopper.fault is None, stopper.fault
    return SweepSummary(0, 0.0, 0.0, [], False)


def _assigned(searcher: SweepSearcher) -> Iterator[TrialSpec]:
    number = 0
    while isinstance(found := searcher.suggest(str(number)), dict):
        yield TrialSpec.model_validate_json(found["spec"])
        number += 1


def _predict_held_out(
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    data: TrainingData,
    session: Session,
    views: ViewSet | None = None,
) -> int:
    return _predict(trials, (data.split, data.label_ids, data, views), store, session)


def _predict_test(
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    split: SplitData,
    label_ids: tuple[str, ...],
    session: Session,
    views: ViewSet | None = None,
) -> int:
    return _predict(trials, (split, label_ids, None, views), store, session)


def _predict(trials: Sequence[TrialDirectory], shared: Any, store: RunDirectory, session: Session) -> int:
    slot = session.slot(store)
    done = [predict_one(trial.trial_id, shared, slot) for trial in trials]
    assert not any(isinstance(found, str) for found in done), done
    return sum(map(bool, done))
