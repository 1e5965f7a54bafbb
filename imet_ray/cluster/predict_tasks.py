"""Predictions as Ray tasks, one a checkpoint: of the held-out folds, and of the test split.

Each is skipped where a file of the same checkpoint, views and pictures lies there already.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import ray

from imet_ray.cluster.session import Session, Slot
from imet_ray.cluster.tasks import TASK_RETRIES, as_they_end
from imet_ray.cluster.trial import worker_device
from imet_ray.cluster.worker import predict_in_worker
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.errors import ImetError, StoreError
from imet_ray.prediction.predict import predict_checkpoint
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory


def predict_held_out(
    trials: Sequence[TrialDirectory], store: RunDirectory, data: TrainingData, session: Session
) -> int:
    """Predict each checkpoint's own held-out fold; how many had to be predicted now."""
    return _predict("oof", trials, store, session, data.split, data.label_ids, data)


def predict_test(
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    split: SplitData,
    label_ids: tuple[str, ...],
    session: Session,
) -> int:
    """Predict the test split with each checkpoint; how many had to be predicted now."""
    return _predict("test", trials, store, session, split, label_ids, None)


def _predict(
    kind: Literal["oof", "test"],
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    session: Session,
    split: SplitData,
    label_ids: tuple[str, ...],
    data: TrainingData | None,
) -> int:
    slot = session.slot(store)
    task = ray.remote(  # GPUs not by .options(): only so does Ray end a worker that held a GPU
        num_cpus=slot.cpus, num_gpus=slot.gpus, max_retries=TASK_RETRIES
    )(predict_in_worker)
    shared = ray.put((split, label_ids, data))
    what = {"oof": "out-of-fold", "test": "test"}[kind]
    refs = [
        task.options(name=f"{what} {read_spec(trial).title}").remote(kind, trial.trial_id, shared, slot)
        for trial in trials
    ]
    predicted = 0
    for _, outcome in as_they_end(refs, what, "checkpoint"):
        if isinstance(outcome, str):
            raise StoreError(outcome)
        predicted += outcome
    return predicted


def predict_one(
    kind: str,
    trial_id: str,
    shared: tuple[SplitData, tuple[str, ...], TrainingData | None],
    slot: Slot,
) -> bool | str:
    """Predict one checkpoint; the text of an error that is the user's to mend."""
    split, label_ids, data = shared
    trial = slot.run.trial(trial_id)
    path = trial.oof if kind == "oof" else trial.test
    try:
        trial.fetch(trial.spec, trial.best, path)
        if data is not None:
            rows = data.rows(read_spec(trial).fold, held_out=True)
        else:
            rows = np.arange(len(split.ids))
        return predict_checkpoint(
            trial,
            split,
            rows,
            path=path,
            label_ids=label_ids,
            device=worker_device(slot),
            workers=slot.loader_workers,
        )
    except ImetError as error:
        return slot.tell(error)
