"""Tagging new pictures, as a stage of the command line."""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imet_ray.prediction.tagger import Tagger, check_choice, device_of
from imet_ray.prediction.tagger_files import TaggerFiles, find_ensemble
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.search_space import Resources
from imet_ray.storage.runs import Runs
from imet_ray.tagging.collection import Choice, Outcome, made_by, tag
from imet_ray.tagging.outputs import Asked, Made, Output, output_of
from imet_ray.tagging.pictures import Found, find_pictures
from imet_ray.units import clock, user_path


@dataclass(frozen=True)
class TagRequest:
    """What the command line says, as it was typed."""

    paths: Sequence[str]
    ensemble: str
    runs: Runs
    out: Path | None = None
    choice: Choice = field(default_factory=Choice)
    views: ViewSet | None = None
    prefix: str = ""
    address: str | None = None  # of a Ray to join; None: this process tags


def tag_pictures(request: TagRequest) -> int:
    """Tag what is not tagged yet; 1 if some pictures cannot be.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    check_choice(request.choice.top, request.choice.min_probability)
    files = find_ensemble(request.ensemble, request.runs)
    made = made_by(files, request.views, request.choice)
    output = output_of(Asked(request.out, made, request.prefix))
    pictures = find_pictures(request.paths, sys.stdin.buffer)
    output.check(pictures)
    began, outcome = time.monotonic(), Outcome()
    with output.opened():
        todo = [picture for picture in pictures if not output.has(picture)]
        if todo:
            began, outcome = _tagged(request, files, made, todo, output)
        output.finish()
    _say(pictures, len(pictures) - len(todo), outcome, time.monotonic() - began, output.where)
    return 1 if outcome.problems else 0


def _tagged(
    request: TagRequest, files: TaggerFiles, made: Made, todo: Sequence[Found], output: Output
) -> tuple[float, Outcome]:
    """When the models were there, by the clock, and what came of it."""
    if request.address is None:
        tagger = Tagger(files, device_of(None), request.views)
        return time.monotonic(), tag(tagger, todo, output, made, request.choice)
    from imet_ray.cluster.session import ray_session

    with ray_session(Resources(), address=request.address) as session:
        from imet_ray.cluster.tagging import Tagging, tag_on_ray

        here = Path.cwd()  # not where workers run
        folder = here / user_path(request.ensemble)
        runs = replace(request.runs, root=here / request.runs.root)
        where = str(folder) if folder.is_dir() else request.ensemble
        whole = Tagging(where, runs, request.views, made, request.choice)
        pictures = [replace(one, base=str(here)) for one in todo]
        return time.monotonic(), tag_on_ray(pictures, output, whole, session)


def _say(pictures: Sequence[Found], before: int, outcome: Outcome, seconds: float, where: str) -> None:
    """What was done; on stderr, for stdout may be the table."""
    if not pictures:
        print("no picture was given", file=sys.stderr)
        return
    if before == len(pictures):
        print(f"all {before:,} pictures were tagged before: {where}", file=sys.stderr)
        return
    rate = f", {outcome.tagged / seconds:.0f} a second" if outcome.tagged and seconds > 1 else ""
    were = f"; {before:,} were tagged before" if before else ""
    print(f"{_pictures(outcome.tagged)} tagged in {clock(seconds)}{rate}{were}: {where}", file=sys.stderr)
    if outcome.problems:
        print(f"{_pictures(len(outcome.problems))} could not be tagged:", file=sys.stderr)
        for path, why in outcome.problems.items():
            print(f"  {_on_a_line(path)}: {_on_a_line(why)}", file=sys.stderr)


def _pictures(n: int) -> str:
    return f"{n:,} picture" if n == 1 else f"{n:,} pictures"


def _on_a_line(text: str) -> str:
    """Names of files may have line feeds, and what a terminal obeys."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
