"""Ray Tune's view of the sweep's policy: it is asked for trials, and told how they ended.

Runs in the driver. Lives in a module that can be imported, for Tune pickles its searcher.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.study_storage import data_base_faults
from imet_ray.cluster.variant_study import Assignment
from imet_ray.cluster.worker_failures import Deaths
from imet_ray.errors import ImetError
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.files import disk_error, write_json
from imet_ray.storage.results import TrialResult, read_result, write_result
from imet_ray.storage.run_directory import RunDirectory


class StopOnFault(tune.Stopper):  # type: ignore[misc]  # Ray has no types for mypy
    """Ends the whole sweep at a fault of the set-up, which all trials would meet."""

    def __init__(self) -> None:
        self.fault: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if self.fault is None and "fatal" in result:
            self.fault = result["fatal"]
        return self.fault is not None

    def stop_all(self) -> bool:
        return self.fault is not None


class SweepSearcher(Searcher):  # type: ignore[misc]  # Ray has no types for mypy
    """Ray Tune's view of `Policy`. What it meets itself, such as a full disk, becomes the stopper's fault."""

    def __init__(
        self,
        policy: Policy,
        on_change: Callable[[], None],
        stopper: StopOnFault,
        capacity: Callable[[], int],
        deaths: Deaths,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            capacity: how many trials may be in flight; more than fit would search blindly.
            deaths: why a trial's workers died.
            on_change: called when a trial has ended.
            stopper: once it has a fault, trials that Tune stops are only interrupted.
            save: called when the studies may have changed.
        """
        super().__init__()  # no metric: Tune would refuse the results of failed trials
        self.policy = policy
        self.on_change = on_change
        self.stopper = stopper
        self.capacity, self.deaths = capacity, deaths
        self.save_studies = save
        self.trial_ids: dict[str, str] = {}  # Tune's id -> ours

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config, None to be asked again, FINISHED at the end."""
        assignment: Assignment | str | None = "finished"
        with self._faults():
            full = len(self.policy.in_flight) >= self.capacity()
            assignment = None if full else self.policy.next()
            if isinstance(assignment, Assignment):
                self.save_studies()
        if isinstance(assignment, str):
            return Searcher.FINISHED  # type: ignore[no-any-return]
        if assignment is None:
            return None
        self.trial_ids[trial_id] = assignment.spec.trial_id
        return {
            "phase": assignment.phase,
            "spec": assignment.spec.model_dump_json(),
            "asked": time.time(),  # a slot that waited for it until now is no overhead
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the epoch's score on to Optuna."""
        if "score" in result and "epoch" in result and trial_id in self.trial_ids:
            with self._faults():
                self.policy.report(self.trial_ids[trial_id], result["epoch"], result["score"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make sure that the ended trial has a result, then let the policy see it. May be called twice."""
        ours = self.trial_ids.pop(trial_id, None)
        if ours is None or self.stopper.fault is not None or (result or {}).get("fatal"):
            return
        with self._faults():
            worn_out = self.deaths.reason(trial_id)
            again = error or (result or {}).get("superseded")  # another worker goes on with it
            if worn_out is not None or not again:
                self._record(ours, worn_out)
            self.policy.done(ours)
            self.save_studies()
        self.on_change()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            with data_base_faults():
                yield
        except ImetError as error:
            self.stopper.fault = str(error)
        except OSError as error:
            self.stopper.fault = str(disk_error(self.policy.store.journal, error))

    def _record(self, ours: str, died: str | None) -> None:
        trial = self.policy.store.trial(ours)
        trial.fetch(trial.spec, trial.result, trial.metrics)  # from its node
        have = read_result(trial)
        if died is not None and (have is None or have.status == "stopped"):
            if not trial.spec.exists():  # died before it wrote it
                spec = self.policy.in_flight[ours].spec
                write_json(trial.spec, spec.model_dump(mode="json"), trial.files)
            write_result(trial, TrialResult(trial_id=ours, status="failed", reason=died))
        elif have is None or (have.status == "stopped" and self._trained_on(ours)):
            write_result(trial, stopped_result(self.policy.store, ours))

    def _trained_on(self, trial_id: str) -> bool:
        result = read_result(self.policy.store.trial(trial_id))
        rows = read_json_lines(self.policy.store.trial(trial_id).metrics)
        return result is not None and len(rows) > result.epochs

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its parts; the journal and the store are the state

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the store are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the store are the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the journal and the store are the state."""


def stopped_result(store: RunDirectory, trial_id: str) -> TrialResult:
    """The result of a trial that the scheduler stopped early, from its metrics."""
    rows = read_json_lines(store.trial(trial_id).metrics)
    best = max(rows, key=lambda row: row["score"], default=None)
    return TrialResult(
        trial_id=trial_id,
        status="stopped",
        reason=f"stopped early after {len(rows)} epochs",
        score=best["score"] if best else 0.0,
        threshold=best["threshold"] if best else None,
        expected_score=best["expected_score"] if best else None,
        epoch=best["epoch"] if best else None,
        epochs=len(rows),
        seconds=sum(row["seconds"] + row.get("evaluate_s", 0.0) for row in rows),
        images_per_s=float(np.mean([row["images_per_s"] for row in rows])) if rows else 0.0,
    )
