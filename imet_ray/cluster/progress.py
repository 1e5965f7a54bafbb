"""The live table of a sweep: what runs, how far it is, how long it will take.

On a terminal it is a table that is redrawn; elsewhere one line for each trial that ends. It decides nothing.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Self

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.session import Session
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.prediction.metrics import metric_named
from imet_ray.reporting.terminal_table import terminal_table
from imet_ray.specs import TrialSpec, hparams_text
from imet_ray.storage.results import TrialResult, read_result
from imet_ray.units import clock

REDRAW_S = 2.0


@dataclass
class _Running:
    spec: TrialSpec
    phase: str
    started: float
    first: bool  # of its slot: its worker process starts
    last: dict[str, Any] = field(default_factory=dict)  # what its last epoch reported
    training_s: float = 0.0  # since this sweep was started or continued

    @property
    def epoch(self) -> int:
        return int(self.last.get("epoch", 0))

    @property
    def interrupted(self) -> str:
        return f"interrupted after epoch {self.epoch}" if self.epoch else "interrupted in its first epoch"


class SweepProgress(Callback):  # type: ignore[misc]  # Ray has no types for mypy
    """Draws the sweep from Tune's events; a context manager around `Tuner.fit`."""

    def __init__(self, policy: Policy, session: Session, worker_failures: WorkerFailures) -> None:
        self.policy, self.session, self.worker_failures = policy, session, worker_failures
        self.metric = metric_named(policy.space.metric).title
        self.running: dict[str, _Running] = {}  # by Tune's trial id
        self.epoch_s: dict[str, list[float]] = {}  # measured, by variant
        self.ended = 0
        self.drawn = 0.0
        self.held_s = 0.0  # sum over trials, less their training
        self.started = time.time()
        self.free_since = [self.started] * session.slots  # when slots became free
        self.unused = session.slots  # slots that have had no trial yet
        self.starts_s: list[
            float
        ] = []  # of each worker, until it trains: a process starts, and imports torch
        self.console = Console(stderr=True, markup=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; nothing here must survive

    @property
    def overhead_s(self) -> float:
        """Seconds per trial from its slot becoming free to its end, less its training.

        Includes the start of the workers, because their slots are free from the beginning.
        """
        return self.held_s / max(1, self.ended)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its slot."""
        if trial.trial_id not in self.running:  # else its worker was lost, and it has another
            spec = TrialSpec.model_validate_json(trial.config["spec"])
            free = self.free_since.pop(0) if self.free_since else time.time()
            began = max(free, trial.config["asked"])  # before that there was nothing to do
            self.running[trial.trial_id] = _Running(spec, trial.config["phase"], began, self.unused > 0)
            self.unused = max(0, self.unused - 1)
        self.refresh()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch has ended."""
        running = self.running.get(trial.trial_id)
        if running is None or "score" not in result or result["epoch"] <= running.epoch:
            return
        seconds = result["trial_seconds"]
        if running.first and not running.epoch:
            self.starts_s.append(time.time() - seconds - running.started)
        running.last = result
        running.training_s += seconds
        self.epoch_s.setdefault(running.spec.variant.name, []).append(seconds)
        self.refresh()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Redraw now and then, so that long epochs are seen to go on."""
        if time.time() - self.drawn > REDRAW_S:
            self.refresh()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial lost its worker, and waits for another."""
        running = self.running.get(trial.trial_id)
        if running is not None:
            cause = self.worker_failures.cause(trial.trial_id)
            self._print(running, f"{running.interrupted}: {cause}; another goes on")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by early stopping."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial lost its worker too often, or Tune thinks so."""
        running = self.running.get(trial.trial_id)
        if running is not None and self.worker_failures.reason(trial.trial_id) is None:
            self.on_trial_recover(iteration, trials, trial)  # the searcher gives it to another
            del self.running[trial.trial_id]
            self.free_since.append(time.time())
            return
        self._end(trial)

    def refresh(self) -> None:
        """Redraw the table."""
        self.drawn = time.time()
        if self.live.is_started:
            self.live.update(self._view(), refresh=True)

    def _end(self, trial: Any) -> None:
        running = self.running.pop(trial.trial_id, None)
        if running is None:
            return
        now = time.time()
        self.free_since.append(now)
        self.ended += 1
        self.held_s += now - running.started - running.training_s
        result = read_result(self.policy.store.trial(running.spec.trial_id))
        self._print(running, running.interrupted if result is None else self._outcome(result))
        self.refresh()

    def _print(self, running: _Running, what: str) -> None:
        """One line that stays above the table."""
        spec, when = running.spec, clock(time.time() - self.started)
        of, hparams = f"{running.phase} fold {spec.fold}", hparams_text(spec.told_hparams)
        line = f"{when}  {spec.variant.name}  {of}  {what}  {hparams}"
        self.console.print(Text(line), soft_wrap=True, highlight=False)

    def _view(self) -> Group:
        columns = ("variant", "phase", "fold", "epoch", self.metric, "images/s", "left")
        rows: list[list[str]] = []
        idle: set[int] = set()
        space = self.policy.space
        for name, study in self.policy.studies.items():
            running = self._running_of(name)
            state = (
                f"searched {study.ended}/{space.trials_per_variant}, folds {study.complete}/{space.n_folds}"
            )
            if not running:
                idle.add(len(rows))
            rows.append([name, "failed" if study.failed else state, *[""] * 5])
            for trial in running:
                epochs, last = trial.spec.recipe.epochs, trial.last
                figures = ["", "", ""]
                if last:
                    seconds = (epochs - trial.epoch) * last["trial_seconds"]
                    figures = [f"{last['score']:.4f}", f"{last['images_per_s']:.0f}", clock(seconds)]
                hparams, epoch = hparams_text(trial.spec.told_hparams), f"{trial.epoch}/{epochs}"
                rows.append([f"  {hparams}", trial.phase, str(trial.spec.fold), epoch, *figures])
        elapsed, left = time.time() - self.started, self._time_left()
        foot = f"{self.ended} trials ended, {clock(elapsed)} so far"
        if left is not None:
            foot += f", about {clock(left)} left"
        if self.session.dashboard:
            foot += f" · dashboard {self.session.dashboard}"
        table = terminal_table(columns, rows, width=self.console.width, texts=2, dim=idle)
        return Group(table, Text(foot, style="dim"))

    def _time_left(self) -> float | None:
        """Epochs that are left, times the measured seconds per epoch, over the slots."""
        measured = [s for seconds in self.epoch_s.values() for s in seconds]
        if not measured:
            return None
        seconds = 0.0
        for name, study in self.policy.studies.items():
            running = self._running_of(name)
            epochs = (study.left + len(running)) * study.variant.epochs - sum(one.epoch for one in running)
            own = self.epoch_s.get(name, measured)
            seconds += epochs * sum(own) / len(own)
        return max(0.0, seconds) / self.session.slots

    def _running_of(self, variant: str) -> list[_Running]:
        return [one for one in self.running.values() if one.spec.variant.name == variant]

    def _outcome(self, result: TrialResult) -> str:
        if result.status == "failed":
            return f"FAILED: {result.reason}"
        assert result.score is not None
        stopped = f" (stopped after epoch {result.epochs})" if result.status == "stopped" else ""
        return f"{self.metric} {result.score:.4f}{stopped}"
