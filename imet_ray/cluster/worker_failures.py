"""Lost workers and nodes: the cause of each loss in one line, and whether the trial gets another worker.

Ray and Tune report each loss in several paragraphs, which stay in Ray's logs.
"""

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray._private.worker
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError

WORKER_FAILURES = 3  # of one trial without an epoch in between, before the trial counts as failed
NODE_FAILURES = 20  # likewise: not the trial's fault, unless the trial is what takes its nodes down
NODE_CAUSES = ("its node", "no answer from")  # beginnings of causes that are the node's
TOLD_BY_TRIAL = (  # beginnings of what Ray's nodes publish, and `WorkerFailures` reports per trial
    "A worker died or was killed",
    "Raylet is terminated",
    "The node with node id",
    "Task was killed due to the node running low on memory",
)


@dataclass
class _Failures:
    """Of one trial."""

    cause: str = ""  # of the last one
    count: int = 0  # without an epoch in between
    epoch: int = 0  # at the last one
    counted_by_tune: int = 0
    given_up: bool = False


class WorkerFailures:
    """The failures of the workers of each trial."""

    def __init__(self) -> None:
        self._trials: dict[str, _Failures] = {}  # by Tune's trial id

    def note(self, trial: Any) -> None:
        """A worker or its node was lost; Tune has written its error, and counts all losses.

        A trial that has trained an epoch since, or that lost its node, gets all its chances again.
        """
        known = self._trials.setdefault(trial.trial_id, _Failures())
        # Tune counts all losses but those of machines that were announced, which Ray's error does not mention
        announced = trial.num_failures <= known.counted_by_tune
        known.counted_by_tune = trial.num_failures
        known.cause = "its node was taken back" if announced else cause_of(_last_error(trial))
        epoch = (trial.last_result or {}).get("epoch", 0)
        advanced = epoch > known.epoch
        known.epoch, known.count = epoch, 1 if advanced else known.count + 1
        if advanced or (known.cause.startswith(NODE_CAUSES) and known.count < NODE_FAILURES):
            trial.max_failures = trial.num_failures + WORKER_FAILURES
        elif trial.num_failures > trial.max_failures:
            known.given_up = True

    def cause(self, trial_id: str) -> str:
        """Of a trial's last failure."""
        return self._trials[trial_id].cause

    def reason(self, trial_id: str) -> str | None:
        """Why a trial has failed for good; None if another worker should go on with it.

        Tune gives up more: a trial of whose loss it hears again while the trial waits for its next worker, and one
        that has trained an epoch since.
        """
        known = self._trials.get(trial_id)
        if known is None or not known.given_up:
            return None
        return f"{known.count} times without an epoch in between: {known.cause}"


def cause_of(error: str) -> str:
    """The cause of a loss, from the text of Ray's error."""
    found = re.search(r"\b(?:ip|IP): ([0-9A-Fa-f.:]+[0-9A-Fa-f])", error)
    where = f" {found[1]}" if found else ""
    on = f" on{where}" if found else ""
    if "low on memory" in error:
        return f"out of memory: Ray ended its worker{on} before the machine ran out"
    if "node has died" in error or "node it was running on is dead" in error:
        return f"its node{where} is lost"
    if "worker process has died" in error:
        return f"its worker{on} died"
    if "is unavailable" in error:
        return "no answer from its worker"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    known = lines and not lines[-1].startswith("actor_id:")  # Ray does not always know more
    return lines[-1][:200] if known else "its worker died"


def quiet_ray(left_out: tuple[str, ...] = ()) -> None:
    """Print one line, not a page, of each message that Ray's nodes publish.

    There is no public way: `log_to_driver=False` does not stop them.

    Args:
        left_out: beginnings of messages that are not printed.
    """
    ray._private.worker.print_to_stdstream = functools.partial(_print_first_line, left_out)


def teach_tune() -> None:
    """Let Tune accept whatever Ray raises for a lost worker.

    Tune knows two kinds of errors, and stops the whole sweep at others, such as the memory monitor's.
    """
    known = RayActorManager._actor_task_failed
    if known.__name__ == "failed":
        return  # in an earlier sweep of this process

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:  # named as Tune names them
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=str(exception))
        known(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed


def _print_first_line(left_out: tuple[str, ...], data: dict[str, Any], ignore_prefix: bool) -> None:
    for message in data["lines"]:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
        if plain and not plain.startswith(left_out):
            print(f"ray: {plain.splitlines()[0][:300]}", file=sys.stderr)


def _last_error(trial: Any) -> str:
    """The newest of the failures that Tune keeps one after another."""
    try:
        return re.split(r"^Failure # \d+.*$", Path(trial.error_file).read_text(), flags=re.M)[-1]
    except (OSError, TypeError):
        return ""
