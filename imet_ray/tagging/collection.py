"""Tagging a collection: what is not tagged yet goes through the models in batches, and each batch is kept for good."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imet_ray.cores import usable_cores
from imet_ray.errors import DataError
from imet_ray.prediction.prefetch import prefetched
from imet_ray.prediction.prepared import Prepared
from imet_ray.prediction.tagger import AHEAD, PICTURES, Tagger
from imet_ray.prediction.tagger_files import TaggerFiles
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.tagging.outputs import Made, Output
from imet_ray.tagging.pictures import Found
from imet_ray.tagging.rows import DIGITS, Row

NOT_DECIDING: dict[str, bool | dict[str, set[str]]] = {
    "name": True,
    "report": True,
    "prefixes": True,
    "members": {"__all__": {"score", "seconds", "size"}},
}


@dataclass(frozen=True)
class Choice:
    """Which labels a picture gets: those that the ensemble decides on, unless something is asked for."""

    top: int | None = None
    min_probability: float | None = None  # calibrated


@dataclass
class Outcome:
    """What came of it."""

    tagged: int = 0
    problems: dict[str, str] = field(default_factory=dict)  # by picture


def made_by(files: TaggerFiles, views: ViewSet | None, choice: Choice) -> Made:
    """A name for all that decides the labels: the ensemble as it predicts, its labels' names, views and choice."""
    chosen = views or files.ensemble.views
    parts = [
        files.ensemble.model_dump(mode="json", exclude=NOT_DECIDING, exclude_none=True),
        list(files.label_names),
        str(chosen),
        [choice.top, choice.min_probability],
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    how = f"views {chosen or 'of each recipe'}, top {choice.top}, min probability {choice.min_probability}"
    return Made(f"{files.ensemble.name} {digest[:10]}", how)


@dataclass(frozen=True)
class Tags:
    """What is said of some pictures."""

    rows: list[tuple[Found, Row]]
    problems: dict[str, str]  # of those that cannot be read


def tag(tagger: Tagger, pictures: Sequence[Found], output: Output, made: Made, choice: Choice) -> Outcome:
    """Tag pictures, and give each batch to the output.

    Raises:
        StoreError: if the output can take no more.
    """
    outcome = Outcome()
    with tqdm(total=len(pictures), desc="tagging", unit="img", disable=not sys.stderr.isatty()) as bar:
        for tags in _tagged(tagger, pictures, made, choice):
            keep(output, tags, outcome)
            bar.update(len(tags.rows) + len(tags.problems))
    return outcome


def keep(output: Output, tags: Tags, outcome: Outcome) -> None:
    """Give tags to the output, and count them."""
    failed = output.add(tags.rows) if tags.rows else {}
    outcome.tagged += len(tags.rows) - len(failed)
    outcome.problems |= tags.problems | failed


def tags_of(tagger: Tagger, pictures: Sequence[Found], made: Made, choice: Choice) -> Tags:
    """What is said of some pictures, all of them together."""
    found = Tags([], {})
    for tags in _tagged(tagger, pictures, made, choice):
        found.rows.extend(tags.rows)
        found.problems.update(tags.problems)
    return found


def _tagged(tagger: Tagger, pictures: Sequence[Found], made: Made, choice: Choice) -> Iterator[Tags]:
    """Batch by batch; others are read meanwhile."""

    def prepare(found: Found) -> Prepared:
        return tagger.prepare(found.read(), name=found.path)

    for batch in prefetched(prepare, pictures, batch=PICTURES, ahead=AHEAD, threads=usable_cores()):
        problems: dict[str, str] = {}
        ready: list[tuple[Found, Prepared]] = []
        for found, prepared in batch:
            if isinstance(prepared, DataError):
                problems[found.name] = _without(found, str(prepared))
            else:
                ready.append((found, prepared))
        seen = [found for found, _ in ready]
        rows = rows_of(tagger, seen, [prepared for _, prepared in ready], made, choice)
        yield Tags(list(zip(seen, rows, strict=True)), problems)


def rows_of(
    tagger: Tagger, found: Sequence[Found], prepared: Sequence[Prepared], made: Made, choice: Choice
) -> list[Row]:
    """What is said of these pictures."""
    probs = tagger.scores(prepared)
    calibrated = np.round(tagger.calibrated(probs).astype(np.float64), DIGITS)
    top, least = choice.top, choice.min_probability
    chosen = tagger.chosen(probs, top=top, min_probability=least)
    decided_by = tagger.decided_by(top=top, min_probability=least)
    return [
        Row(
            one.name,
            tuple(tagger.labels[c] for c in row),
            tuple(calibrated[i, c].item() for c in row),
            decided_by,
            made.tagged_by,
        )
        for i, (one, row) in enumerate(zip(found, chosen, strict=True))
    ]


def _without(found: Found, text: str) -> str:
    """An error's text without the picture's path, which stands before it anyway."""
    return text.removeprefix(f"{Path(found.base, found.path) if found.is_local else found.path}: ")
