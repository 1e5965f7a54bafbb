"""Deaths of workers and nodes: what befell a trial, in one line, and whether it is worth another worker.

Ray and Tune tell of each in several paragraphs, which stay in Ray's logs.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray._private.worker
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError

WORKER_DEATHS = 3  # of one trial without an epoch in between, before it counts as failed
NODE_LOSSES = 20  # likewise: no fault of the trial, unless it is what takes its nodes down
LOST = ("its node", "nothing is heard")  # beginnings of causes that are the node's
TOLD_BY_TRIAL = (  # beginnings of what Ray's nodes publish, and `Deaths` tells of each trial
    "A worker died or was killed",
    "Raylet is terminated",
    "The node with node id",
    "Task was killed due to the node running low on memory",
)


class Deaths:
    """What the workers of the trials died of."""

    def __init__(self) -> None:
        self.causes: dict[str, str] = {}  # of the last death, by Tune's trial id
        self.counts: dict[str, int] = {}  # of deaths without an epoch in between
        self.worn_out: set[str] = set()  # Tune's ids of trials that have had their chances
        self._epochs: dict[str, int] = {}  # at the last death
        self._failures: dict[str, int] = {}  # as Tune counts, at the last death

    def note(self, trial: Any) -> None:
        """A worker died, or its node; Tune has written its error, and counts all of them.

        A trial that came on since is not worn out, nor one whose node was lost: it gets all its chances again.
        """
        # Tune counts all but machines that were announced to go; of those Ray's error says nothing
        counted = trial.num_failures > self._failures.get(trial.trial_id, 0)
        cause = cause_of(_error(trial)) if counted else "its node was taken back"
        self._failures[trial.trial_id] = trial.num_failures
        epoch = (trial.last_result or {}).get("epoch", 0)
        came_on = epoch > self._epochs.get(trial.trial_id, 0)
        count = 1 if came_on else self.counts.get(trial.trial_id, 0) + 1
        self.counts[trial.trial_id], self.causes[trial.trial_id] = count, cause
        self._epochs[trial.trial_id] = epoch
        if came_on or (cause.startswith(LOST) and count < NODE_LOSSES):
            trial.max_failures = trial.num_failures + WORKER_DEATHS
        elif trial.num_failures > trial.max_failures:
            self.worn_out.add(trial.trial_id)

    def reason(self, trial_id: str) -> str | None:
        """Why a trial that Tune has given up is given up; None if it is not.

        Tune also gives up a trial of whose death it hears again while it waits for its next worker, or one that came on
        since its third death.
        """
        if trial_id not in self.worn_out:
            return None
        return f"{self.counts[trial_id]} times without an epoch in between: {self.causes[trial_id]}"


def cause_of(error: str) -> str:
    """What a worker died of, by the text of Ray's error."""
    found = re.search(r"\b(?:ip|IP): ([0-9A-Fa-f.:]+[0-9A-Fa-f])", error)
    where = f" {found[1]}" if found else ""
    if "low on memory" in error:
        return f"out of memory: Ray ended its worker{' on' * bool(where)}{where} before the machine ran out"
    if "node has died" in error or "node it was running on is dead" in error:
        return f"its node{where} is lost"
    if "worker process has died" in error:
        return f"its worker{' on' * bool(where)}{where} died"
    if "is unavailable" in error:
        return "nothing is heard of its worker"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    told = lines and not lines[-1].startswith("actor_id:")  # Ray does not always know more
    return lines[-1][:200] if told else "its worker died"


def keep_quiet() -> None:
    """Let what Ray's nodes publish be one line on stderr, not a page.

    There is no public way: `log_to_driver=False` leaves it on.
    """
    ray._private.worker.print_to_stdstream = functools.partial(_tell, ())


@contextlib.contextmanager
def told_by_trial() -> Iterator[None]:
    """Leave out what a line of each trial tells."""
    before = ray._private.worker.print_to_stdstream
    ray._private.worker.print_to_stdstream = functools.partial(_tell, TOLD_BY_TRIAL)
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = before


def teach_tune() -> None:
    """Let Tune take whatever Ray raises for a worker's death.

    It knows of two kinds of errors and breaks off the whole sweep at others, such as the memory monitor's.
    """
    known = RayActorManager._actor_task_failed
    if known.__name__ == "failed":
        return  # in an earlier sweep of this process

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:  # named as Tune names them
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=str(exception))
        known(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed


def _tell(left_out: tuple[str, ...], data: dict[str, Any], ignore_prefix: bool) -> None:
    for message in data["lines"]:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
        if plain and not plain.startswith(left_out):
            print(f"ray: {plain.splitlines()[0][:300]}", file=sys.stderr)


def _error(trial: Any) -> str:
    """The newest of the failures that Tune keeps one after another."""
    try:
        return re.split(r"^Failure # \d+.*$", Path(trial.error_file).read_text(), flags=re.M)[-1]
    except (OSError, TypeError):
        return ""
