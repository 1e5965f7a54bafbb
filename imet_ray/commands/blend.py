"""The stages of the blend's command line: a run's variants, or the 2019 solution's files, to a frozen ensemble.

What they return is printed by the caller; progress goes to a terminal's stderr.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imet_ray.blending.blend_run import RunToBlend, blend_run, frozen, refuse_smaller
from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.external_members import parse_member, read_member
from imet_ray.blending.fit_jobs import Runner
from imet_ray.blending.imet2019_files import (
    METRIC,
    read_2019,
    read_weights_2019,
    score_with_a_label_each,
    write_2019,
)
from imet_ray.blending.level1_2019 import is_level1, read_train_member, write_level1
from imet_ray.blending.members import Member
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.command_line import pasted
from imet_ray.commands.setup import Run, data_option, reopen
from imet_ray.errors import ConfigError, unknown_name
from imet_ray.prediction.ensemble import blend_oof, read_ensemble, write_ensemble
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.reporting.error_analysis import label_findings
from imet_ray.reporting.report_page import SHOWN_MISTAKES, write_findings, write_report
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.results import Standing, left_out, standings
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs
from imet_ray.units import as_typed, user_path

RUN_2019 = "2019"  # the run directory of ensembles of that solution's files


@dataclass(frozen=True)
class BlendRequest:
    """Which run is blended, and into what."""

    name: str | None  # of the run; the newest if None
    runs: Runs
    cache: Cache
    data: str | None  # where the run's data lie now; where they lay if None
    source: Path | None  # openclipart's unpacked packages
    members: Sequence[str] | None  # variants to blend; all that are trained on all folds if None
    external: Sequence[str]  # `NAME=FILE` of other tools' predictions
    out: str  # the ensemble's name
    in_full: bool  # with what else the page tells of labels and pictures
    write_2019: Path | None = None  # a folder for the members as the 2019 solution's files
    views: ViewSet | None = None  # that variants are predicted in; None: each recipe's own
    starts: Sequence[str] = ()  # earlier ensembles, or files of the 2019 solution's: their weights


@dataclass(frozen=True)
class Request2019:
    """Which level-1 files of the 2019 solution are blended, and into what."""

    name: str  # of the ensemble
    files: Sequence[Path]
    folds: Path
    labels: Path
    runs: Runs
    starts: Sequence[str] = ()  # as of `BlendRequest`


def blend(request: BlendRequest, options: BlendOptions, *, runner: Runner) -> dict[str, Any]:
    """Blend a run, write its ensemble and page; the findings, as `ensemble.json` keeps them.

    Raises:
        ImetError: one line for what cannot be blended.
    """
    run = reopen(request.runs, request.name, request.cache, at=request.data, source=request.source)
    variants = [variant.name for variant in run.experiment.space.variants]
    whole, lacking = _whole(run, variants, request.members)
    if not whole and not request.external:
        raise ConfigError(
            f"no variant in {run.store.root} is trained on all folds: sweep first, or give --member NAME=FILE"
        )
    if request.write_2019 is not None and request.external:
        raise ConfigError("--write-2019 writes a run's own variants: leave --member out")
    given = [_external(run, *parse_member(text)) for text in request.external]
    out, place = request.out, run.store.ensemble(request.out)
    with only_driver(run.store):
        replaced = place.ensemble.exists()
        options = with_starts(options, request.starts, run.store)
        space = run.experiment.space
        to_blend = RunToBlend(
            run.store, run.data, run.catalog, space, whole, given, lacking, views=request.views
        )
        blend_run(to_blend, out, options, runner=runner, progress=show)
        show("drawing the report")
        found = standings(run.store, variants)
        ensemble = read_ensemble(place)
        oof = blend_oof(ensemble, run.store, run.data.split.ids, {m.name: m.probs for m in given})
        write_report(place, ensemble, run.store, run.catalog, found, None, oof=oof)
        if request.write_2019 is not None:
            show("writing level-1 files")
            labels, folds = run.data.labels, run.data.folds
            write_level1(request.write_2019, ensemble, run.store, labels, folds, space.metric)
        metric = metric_named(run.experiment.space.metric)
        findings = {}
        if request.in_full:
            findings = label_findings(oof, run.catalog, ensemble.decoder, metric, SHOWN_MISTAKES)
        show("")
    _say_replaced(out, replaced)
    print(f"ensemble {as_typed(place.ensemble)}, report {as_typed(place.report)}", file=sys.stderr)
    tests = [word for member in given for word in ("--member", f"{member.name}=TEST.npz")]
    where = [*run.store.options, *data_option(run)]
    command = pasted("python", "launch.py", "--predict", out, *where, *tests)
    print(f"next     {command}", file=sys.stderr)
    return ensemble.report | findings


def _external(run: Run, name: str, path: Path) -> Member:
    """Another tool's member, or a model of the 2019 solution."""
    ids, n_labels = run.data.split.ids, len(run.data.label_ids)
    if is_level1(path):
        return read_train_member(name, path, ids, n_labels, run.data.folds)
    return read_member(name, path, ids, n_labels)


def _whole(
    run: Run, variants: Sequence[str], members: Sequence[str] | None
) -> tuple[list[Standing], list[str]]:
    """The variants that are trained on all folds, and which are not. Of named members all must be."""
    found = standings(run.store, variants)
    whole = {standing.variant: standing for standing in found if standing.whole}
    if members is None:
        return list(whole.values()), left_out(found, variants)
    for member in members:
        if member in variants and member not in whole:
            raise ConfigError(
                f"--members takes variants that are trained on all folds, got {left_out(found, [member])[0]}: sweep "
                "again, or leave it out"
            )
        if member not in whole:
            raise unknown_name("member", member, whole, listed_as="Trained on all folds")
    return [whole[member] for member in members], []


def blend_2019(request: Request2019, options: BlendOptions, *, runner: Runner) -> dict[str, Any]:
    """Blend the 2019 solution's level-1 files; its own description of the ensemble is written beside ours.

    Raises:
        ImetError: one line for what cannot be blended.
    """
    found = read_2019(request.files, request.folds, request.labels)
    store = request.runs.run(RUN_2019)
    place = store.ensemble(request.name)
    problem = BlendProblem(
        found.members,
        found.labels,
        found.folds,
        METRIC,
        remarks=["optimistic: each fold's threshold was picked on that fold before it was subtracted"],
    )
    with only_driver(store):
        refuse_smaller(place, problem.names, options)
        options = with_starts(options, request.starts, store)
        report = evaluate(problem, options, runner=runner, progress=show)
        ours = score_with_a_label_each(found, report.weights)
        beside = (
            f"own F2 {report.chosen.own:.4f} is by the 2019 solution's rule, which gives a picture no label where no "
            f"sum is above 0, and its file is named by that; with the most probable label instead it is {ours:.4f}"
        )
        report = replace(report, remarks=(*report.remarks, beside))
        replaced = place.ensemble.exists()
        write_ensemble(place, frozen(request.name, found.members, report, found.label_ids))
        theirs = write_2019(place, report.chosen.own, found, report.weights)
        write_findings(place, request.name, report.to_dict())
    show("")
    _say_replaced(request.name, replaced)
    print(
        f"ensemble {as_typed(place.ensemble)}, {as_typed(theirs)}, report {as_typed(place.report)}",
        file=sys.stderr,
    )
    return report.to_dict()


def with_starts(options: BlendOptions, names: Sequence[str], store: RunDirectory) -> BlendOptions:
    """The options with the weights of earlier blends.

    Args:
        names: of ensembles of the run, or files NAME_val_0.6397.yml of the 2019 solution.

    Raises:
        ImetError: for one that is missing or damaged.
    """
    if not names:
        return options
    found: dict[str, dict[str, float]] = {}
    for name in names:
        if name.endswith((".yml", ".yaml")):
            found[Path(name).name] = read_weights_2019(user_path(name))
        else:
            members = read_ensemble(store.ensemble(name)).members
            found[name] = {member.variant: member.weight for member in members}
    return replace(options, starts=found)


def _say_replaced(name: str, replaced: bool) -> None:
    if replaced:
        print(f"the earlier ensemble {name} was replaced, and what it predicted is gone", file=sys.stderr)


def show(text: str) -> None:
    """What is being done, on one line of a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
