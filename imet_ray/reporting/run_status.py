"""How far a run is, read only from its directory, while it runs or after.

Needs no Ray and no Optuna, holds no lock, and writes nothing. A trial runs while its epochs keep coming.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from imet_ray.errors import StoreError
from imet_ray.prediction.metrics import metric_named
from imet_ray.specs import TrialSpec, hparams_text
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.experiment import Experiment, driver_of, read_experiment
from imet_ray.storage.results import Standing, TrialResult, read_result, read_spec, standings
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory
from imet_ray.units import ago, clock

State = Literal["runs", "silent", "complete", "stopped", "failed"]
STATES: tuple[State, ...] = ("complete", "stopped", "failed", "runs", "silent")
ENDED = ("complete", "stopped", "failed")
SILENT_S = 120.0  # without an epoch: the trial is silent
SILENT_EPOCHS = 4.0  # the same in its own epochs, where these are long


@dataclass(frozen=True)
class TrialStatus:
    """One trial as its files say."""

    spec: TrialSpec
    state: State
    rows: list[dict[str, Any]]  # of metrics.jsonl, one per epoch
    reason: str
    written_at: float  # when its files were last written: time.time()

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation so far."""
        return float(sum(row["seconds"] + row.get("evaluate_s", 0.0) for row in self.rows))

    @property
    def best(self) -> float | None:
        """The score of its best epoch so far."""
        return max((row["score"] for row in self.rows), default=None)


@dataclass(frozen=True)
class Status:
    """A run at one moment."""

    name: str
    experiment: Experiment
    trials: list[TrialStatus]
    leaderboard: list[Standing]
    out_of_fold: int  # checkpoints predicted
    ensembles: list[str]
    driver: str  # the process that drives it; empty: none is seen from here
    unreadable: list[str]
    now: float

    def count(self, state: State) -> int:
        return sum(trial.state == state for trial in self.trials)

    @property
    def ended(self) -> int:
        """Trials that have a result."""
        return sum(trial.state in ENDED for trial in self.trials)

    @property
    def score(self) -> str:
        """The score's name for people."""
        return metric_named(self.experiment.space.metric).title

    @property
    def variants(self) -> list[str]:
        """The names of the search space's variants."""
        return [variant.name for variant in self.experiment.space.variants]

    @property
    def total(self) -> int:
        """Trials that the whole sweep takes, if none fails."""
        space = self.experiment.space
        searching = space.trials_per_variant * len(space.search_folds)
        return len(space.variants) * (searching + space.after_search)

    @property
    def remaining_s(self) -> float | None:
        """Seconds of training that remain, if as many trials go on at once at their present pace."""
        running = [trial for trial in self.trials if trial.state == "runs"]
        ended = [trial for trial in self.trials if trial.state == "complete" and trial.seconds]
        if not running or not ended:
            return None
        mean = sum(trial.seconds for trial in ended) / len(ended)
        waiting = max(0, self.total - len(self.trials) + self.count("silent"))
        rest = sum(max(0.0, mean - trial.seconds) for trial in running)
        return (waiting * mean + rest) / len(running)

    @property
    def phase(self) -> str:
        """The stage that runs now, or would run next."""
        space = self.experiment.space
        whole = sum(standing.whole for standing in self.leaderboard)
        if self.over:
            return f"blended: {', '.join(self.ensembles)}"
        if whole < len(space.variants):
            return f"search and promotion: {whole} of {len(space.variants)} variants are trained on all folds"
        return f"out-of-fold: {self.out_of_fold} of {whole * space.n_folds} checkpoints predicted"

    @property
    def over(self) -> bool:
        """True if the run is blended and nothing is being trained."""
        return bool(self.ensembles) and not self.running()

    @property
    def driver_text(self) -> str:
        """Who drives the run, and what to do if nobody does."""
        return self.driver or f"none is seen from here{'' if self.over else ': the same command continues'}"

    def counts_text(self) -> str:
        """How many trials are in which state."""
        counts = [f"{self.count(state):,} {state}" for state in STATES if self.count(state)]
        return ", ".join(counts) or "none yet"

    def text(self) -> str:
        """For a terminal."""
        left = (
            f"; training takes about {clock(self.remaining_s)} more" if self.remaining_s is not None else ""
        )
        lines = [
            f"{self.name}: {self.phase}",
            f"driver   {self.driver_text}",
            f"trials   {self.counts_text()}; {self.total} in all{left}",
        ]
        if self.leaderboard:
            width = max(len(name) for name in ("variant", *(one.variant for one in self.leaderboard)))
            lines.append(f"{'variant':<{width}}  folds  {self.score:>6}  hparams")
        for standing in self.leaderboard:
            lines.append(
                f"{standing.variant:<{width}}  {len(standing.score):>2}/{standing.n_folds:<2}  {standing.mean:.4f}  "
                + hparams_text(standing.hparams)
            )
        for trial in self.running():
            lines.append(f"{trial.state:<8} {self.describe(trial)}")
        for trial in self.trials:
            if trial.state == "failed":
                lines.append(f"failed   {trial.spec.variant.name} fold {trial.spec.fold}: {trial.reason}")
        lines += [f"damaged  {what}" for what in self.unreadable]
        return "\n".join(lines)

    def running(self) -> list[TrialStatus]:
        """Trials that run, and silent ones, which should."""
        return [trial for trial in self.trials if trial.state in ("runs", "silent")]

    def describe(self, trial: TrialStatus) -> str:
        """One trial that has not ended, in a line."""
        last = trial.rows[-1] if trial.rows else {}
        best = f", {self.score} {trial.best:.4f}" if trial.best is not None else ""
        host = f" on {last['host']}" if "host" in last else ""
        rate = f", {last['images_per_s']:.0f} images/s" if last else ""
        written = f", last written {ago(self.now - trial.written_at)}"
        epoch = f"epoch {len(trial.rows)} of {trial.spec.recipe.epochs}"
        return f"{trial.spec.variant.name} fold {trial.spec.fold}: {epoch}{best}{rate}{host}{written}"


@dataclass
class Watcher:
    """Looks at a run again and again; a trial that has ended is read once."""

    store: RunDirectory
    ended: dict[str, TrialStatus] = field(default_factory=dict)

    def look(self) -> Status:
        """The run as it is now.

        Raises:
            StoreError: if there is no run, or its experiment is damaged.
        """
        store, now = self.store, time.time()
        elsewhere = store.fetch()
        found, unreadable = self.trials(now)
        experiment = read_experiment(store)
        oofs = [store.trial(trial.spec.trial_id).oof for trial in found]
        leaderboard: list[Standing] = []
        try:
            leaderboard = standings(store, [variant.name for variant in experiment.space.variants])
        except StoreError as error:  # a damaged or altered trial
            unreadable = unreadable or [str(error)]
        return Status(
            name=store.root.name,
            experiment=experiment,
            trials=found,
            leaderboard=leaderboard,
            out_of_fold=sum(oof.exists() or oof in elsewhere for oof in oofs),
            ensembles=sorted(path.parent.name for path in store.root.glob("ensembles/*/ensemble.json")),
            driver=driver_of(store),
            unreadable=unreadable,
            now=now,
        )

    def trials(self, now: float) -> tuple[list[TrialStatus], list[str]]:
        """All trials as they are here now, and those that cannot be read, with the reason."""
        found: list[TrialStatus] = []
        unreadable: list[str] = []
        for trial in self.store.begun_trials():
            known = self.ended.get(trial.trial_id)
            if known is not None and known.state != "stopped":  # a stopped one may be promoted, and go on
                found.append(known)
                continue
            try:
                found.append(status_of(trial, now))
            except (StoreError, ValueError, KeyError, TypeError, OSError) as error:
                unreadable.append(f"{trial.root}: {error}")
                continue
            if found[-1].state in ENDED:
                self.ended[trial.trial_id] = found[-1]
        return found, unreadable


def status_of(trial: TrialDirectory, now: float) -> TrialStatus:
    """One trial as it is now.

    Raises:
        StoreError: if one of its files is damaged.
    """
    spec, result, rows = read_spec(trial), read_result(trial), read_json_lines(trial.metrics)
    rows = [{"score": row.get("f2"), **row} for row in rows]  # earlier versions wrote `f2`
    newest = trial.metrics if rows else trial.spec
    written_at = newest.stat().st_mtime
    state = _state(result, rows, now - written_at)
    return TrialStatus(spec, state, rows, result.reason if result else "", written_at)


def ended_trials(store: RunDirectory) -> list[TrialStatus]:
    """Trials that have a result, by id. A stopped trial that was promoted has none until it is complete."""
    store.fetch()
    found, _ = Watcher(store).trials(time.time())
    return [trial for trial in found if trial.state in ENDED]


def _state(result: TrialResult | None, rows: Sequence[dict[str, Any]], silence: float) -> State:
    if result is not None and not (result.status == "stopped" and len(rows) > result.epochs):
        return result.status
    epoch = rows[-1]["seconds"] + rows[-1].get("evaluate_s", 0.0) if rows else 0.0
    return "runs" if silence < max(SILENT_S, SILENT_EPOCHS * epoch) else "silent"
