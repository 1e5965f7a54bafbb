"""Tagging on many machines: some pictures per Ray task, the rows back in the pictures' order.

Each worker loads the ensemble once. Pictures lie where all nodes see them: on a shared disk, or in a bucket.
"""

import functools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from tqdm import tqdm

from imet_ray.cluster.session import Session
from imet_ray.cluster.tasks import RETRIES
from imet_ray.cluster.worker_failures import cause_of
from imet_ray.errors import ImetError, StoreError
from imet_ray.prediction.tagger import Tagger, device_of
from imet_ray.prediction.tagger_files import find_ensemble
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.storage.runs import Runs
from imet_ray.tagging.collection import Choice, Outcome, Tags, keep, tags_of
from imet_ray.tagging.outputs import Made, Output
from imet_ray.tagging.pictures import Found

CHUNK = 256  # pictures of a task
AHEAD = 2  # tasks that wait, for each that runs


@dataclass(frozen=True)
class Tagging:
    """What a worker needs to know."""

    ensemble: str
    runs: Runs
    views: ViewSet | None
    made: Made
    choice: Choice


def tag_on_ray(pictures: Sequence[Found], output: Output, tagging: Tagging, session: Session) -> Outcome:
    """Tag pictures on the Ray that this process has joined; what is said of them is what one process would say.

    Raises:
        StoreError: if a worker is lost again and again, or the output can take no more.
    """
    outcome = Outcome()
    with tqdm(total=len(pictures), desc="tagging", unit="img", disable=not sys.stderr.isatty()) as bar:
        for n, tags in _tagged(pictures, tagging, session):
            keep(output, tags, outcome)
            bar.update(n)
    return outcome


def _tagged(pictures: Sequence[Found], tagging: Tagging, session: Session) -> Iterator[tuple[int, Tags]]:
    """How many pictures, and what is said of them, in their order."""
    task = ray.remote(num_cpus=session.cpus_per_trial, num_gpus=session.gpus_per_trial, max_retries=RETRIES)(
        tag_chunk
    )
    shared = ray.put(tagging)
    waiting: deque[tuple[int, Any]] = deque()
    chunks = (pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK))
    while True:
        while (
            len(waiting) < (1 + AHEAD) * max(1, session.slots) and (chunk := next(chunks, None)) is not None
        ):
            waiting.append((len(chunk), task.remote(shared, list(chunk))))
        if not waiting:
            return
        n, ref = waiting.popleft()
        try:
            found = ray.get(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise StoreError(
                f"a worker that tags was lost {RETRIES + 1} times ({cause_of(str(error))}): run the same command again"
            ) from error
        if isinstance(found, str):
            raise StoreError(found)
        yield n, found


def tag_chunk(tagging: Tagging, pictures: Sequence[Found]) -> Tags | str:
    """A Ray task: what is said of some pictures; or why none can be tagged."""
    try:
        tagger = _tagger(tagging.ensemble, tagging.runs, tagging.views)
        return tags_of(tagger, pictures, tagging.made, tagging.choice)
    except ImetError as error:
        return str(error)


@functools.lru_cache(maxsize=1)
def _tagger(ensemble: str, runs: Runs, views: ViewSet | None) -> Tagger:
    """One for all tasks of a worker."""
    return Tagger(find_ensemble(ensemble, runs), device_of(None), views)
