"""Ray Tune's view of the sweep's policy: Tune asks it for trials, and tells it how they ended.

Runs in the driver. Lives in an importable module, because Tune pickles its searcher.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.study_storage import database_errors
from imet_ray.cluster.variant_study import Assignment
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.errors import ImetError
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.files import disk_error, write_json
from imet_ray.storage.results import TrialResult, read_result, write_result


class StopOnFault(tune.Stopper):  # type: ignore[misc]  # Ray has no types for mypy
    """Ends the whole sweep at a fault of the setup, which all trials would meet."""

    def __init__(self) -> None:
        self.fault: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if self.fault is None and "fatal" in result:
            self.fault = result["fatal"]
        return self.fault is not None

    def stop_all(self) -> bool:
        return self.fault is not None


class SweepSearcher(Searcher):  # type: ignore[misc]  # Ray has no types for mypy
    """Hands `Policy`'s trials to Tune. Its own errors, such as a full disk, become the stopper's fault."""

    def __init__(
        self,
        policy: Policy,
        on_change: Callable[[], None],
        stopper: StopOnFault,
        capacity: Callable[[], int],
        worker_failures: WorkerFailures,
    ) -> None:
        """
        Args:
            on_change: called when a trial has ended.
            stopper: once it has a fault, trials that Tune stops are only interrupted.
            capacity: how many trials may be in flight; more than fit would be asked for without any scores.
        """
        super().__init__()  # no metric: with one, Tune refuses the reports of failed trials
        self.policy, self.stopper, self.worker_failures = policy, stopper, worker_failures
        self.on_change, self.capacity = on_change, capacity
        self.trial_ids: dict[str, str] = {}  # Tune's id -> ours

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config, None to be asked again, FINISHED at the end."""
        assignment: Assignment | str | None = "finished"
        with self._errors_stop_the_sweep():
            full = len(self.policy.in_flight) >= self.capacity()
            assignment = None if full else self.policy.next()
        if isinstance(assignment, str):
            return Searcher.FINISHED  # type: ignore[no-any-return]
        if assignment is None:
            return None
        self.trial_ids[trial_id] = assignment.spec.trial_id
        return {
            "phase": assignment.phase,
            "spec": assignment.spec.model_dump_json(),
            "asked": time.time(),  # a slot that had nothing to do before is no overhead
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the epoch's score on to Optuna."""
        if "score" in result and "epoch" in result and trial_id in self.trial_ids:
            with self._errors_stop_the_sweep():
                self.policy.report(self.trial_ids[trial_id], result["epoch"], result["score"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make sure that the ended trial has a result, then let the policy see it. May be called twice."""
        ours = self.trial_ids.pop(trial_id, None)
        if ours is None or self.stopper.fault is not None or (result or {}).get("fatal"):
            return
        with self._errors_stop_the_sweep():
            failed = self.worker_failures.reason(trial_id)
            interrupted = error or (result or {}).get("superseded")  # another worker goes on with it
            if failed is not None or not interrupted:
                self._record(ours, failed)
            self.policy.done(ours)
        self.on_change()

    @contextlib.contextmanager
    def _errors_stop_the_sweep(self) -> Iterator[None]:
        try:
            with database_errors():
                yield
        except ImetError as error:
            self.stopper.fault = str(error)
        except OSError as error:
            self.stopper.fault = str(disk_error(self.policy.store.journal, error))

    def _record(self, ours: str, failed: str | None) -> None:
        """Write the result of a trial that ended without writing one itself.

        Args:
            failed: why its workers failed for good; None: it was stopped early.
        """
        trial = self.policy.store.trial(ours)
        trial.fetch(trial.spec, trial.result, trial.metrics)  # from its node
        known = read_result(trial)
        if known is not None and known.status != "stopped":
            return
        if failed is not None:
            if not trial.spec.exists():  # the worker was lost before it wrote it
                spec = self.policy.in_flight[ours].spec
                write_json(trial.spec, spec.model_dump(mode="json"), trial.files)
            write_result(trial, TrialResult(trial_id=ours, status="failed", reason=failed))
            return
        rows = read_json_lines(trial.metrics)
        if known is None or len(rows) > known.epochs:  # promoted, and then stopped again
            write_result(trial, stopped_result(ours, rows))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its parts; the studies and the store are the state

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the studies and the store are the state."""


def stopped_result(trial_id: str, rows: list[dict[str, Any]]) -> TrialResult:
    """The result of a trial that the scheduler stopped early, from its epochs' metrics."""
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
