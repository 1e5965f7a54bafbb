"""What a run does as Ray tasks: the predictions, one task per checkpoint, and the fits of a blend."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from tqdm import tqdm

from imet_ray.blending.fit_jobs import Solution, Task, solve
from imet_ray.blending.problem import FitProblem
from imet_ray.cluster.session import Session
from imet_ray.cluster.worker import predict_in_worker
from imet_ray.cluster.worker_failures import cause_of
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.errors import StoreError
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory

RETRIES = 3  # of a task whose worker or node was lost


def predict_held_out(
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    data: TrainingData,
    session: Session,
    views: ViewSet | None = None,
) -> int:
    """Predict the held-out fold of each checkpoint; how many were not there yet.

    Args:
        views: None: each recipe's own.
    """
    return _predict(trials, store, session, (data.split, data.label_ids, data, views))


def predict_test(
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    split: SplitData,
    label_ids: tuple[str, ...],
    session: Session,
    views: ViewSet | None = None,
) -> int:
    """Predict the test split with each checkpoint; how many were not there yet."""
    return _predict(trials, store, session, (split, label_ids, None, views))


def _predict(
    trials: Sequence[TrialDirectory],
    store: RunDirectory,
    session: Session,
    pictures: tuple[SplitData, tuple[str, ...], TrainingData | None, ViewSet | None],
) -> int:
    slot = session.slot(store)
    # GPUs not by .options(): Ray would not end a worker that held a GPU
    remote = ray.remote(num_cpus=slot.cpus, num_gpus=slot.gpus, max_retries=RETRIES)
    task, shared = remote(predict_in_worker), ray.put(pictures)
    what = "test" if pictures[2] is None else "out-of-fold"
    refs = [
        task.options(name=f"{what} {read_spec(trial).title}").remote(trial.trial_id, shared, slot)
        for trial in trials
    ]
    predicted = 0
    for _, outcome in _as_they_end(refs, what, "checkpoint"):
        if isinstance(outcome, str):
            raise StoreError(outcome)
        predicted += outcome
    return predicted


def solve_on_ray(problem: FitProblem, tasks: Sequence[Task]) -> list[Solution]:
    """Solve all fits on the Ray that this process has joined; the results are those of one process."""
    fit = ray.remote(num_cpus=1, max_retries=RETRIES)(solve)
    shared = ray.put(problem)
    found = dict(_as_they_end([fit.remote(shared, task) for task in tasks], "blend", "fit"))
    return [found[i] for i in range(len(tasks))]


def _as_they_end(refs: Sequence[Any], what: str, unit: str) -> Iterator[tuple[int, Any]]:
    """Place and outcome of each task, in the order in which they end, with a progress bar.

    Raises:
        StoreError: if a task's worker was lost again and again.
        RayTaskError: if our own code raised; its traceback is what helps.
    """
    place = {ref: i for i, ref in enumerate(refs)}
    waiting = list(refs)
    with tqdm(total=len(waiting), desc=what, unit=unit, disable=not sys.stderr.isatty()) as bar:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            try:
                outcome = ray.get(ready[0])
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                raise StoreError(
                    f"a worker of the {what} pass was lost {RETRIES + 1} times ({cause_of(str(error))}): "
                    "run the same command again"
                ) from error
            yield place[ready[0]], outcome
            bar.update()
