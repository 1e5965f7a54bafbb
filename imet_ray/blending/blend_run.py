"""Blending a run: its variants' out-of-fold files in, `ensemble.json` out."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from imet_ray.blending.budget import Chosen, choose
from imet_ray.blending.cross_fit import Progress, silent
from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.fit_jobs import THRESHOLD, Runner
from imet_ray.blending.members import Member
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.result import BlendReport
from imet_ray.data.catalog import Catalog
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import (
    Ensemble,
    EnsembleMember,
    cost_of,
    gather_oof,
    read_ensemble,
    write_ensemble,
)
from imet_ray.prediction.pooling import averaged
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.search_space import SearchSpace
from imet_ray.storage.files import write_arrays
from imet_ray.storage.results import Standing, read_spec
from imet_ray.storage.run_directory import EnsembleDirectory, RunDirectory
from imet_ray.training.kept_weights import KEEPS


@dataclass(frozen=True)
class RunToBlend:
    """What of a run is blended."""

    store: RunDirectory
    data: TrainingData
    catalog: Catalog
    space: SearchSpace
    whole: Sequence[Standing]  # the variants, each with one trial per fold
    external: Sequence[Member] = ()  # members that another tool predicted
    left_out: Sequence[str] = ()  # variants that lack folds, as `storage.results.left_out` says it
    views: ViewSet | None = None  # that variants are predicted in; None: each recipe's own


def blend_run(
    run: RunToBlend,
    name: str,
    options: BlendOptions,
    *,
    runner: Runner,
    progress: Progress = silent,
) -> BlendReport:
    """Fit the weights of variants that are trained on all folds, and freeze the ensemble.

    Its own out-of-fold predictions are written beside it, as another blend's `--member` reads them.

    Args:
        name: of the ensemble.

    Raises:
        ImetError: if out-of-fold predictions are missing, do not cover each picture once, or cannot be used; or if an
            ensemble of that name has members that this one lacks.
    """
    data, members, place = run.data, [], run.store.ensemble(name)
    names = [*(standing.variant for standing in run.whole), *(member.name for member in run.external)]
    options.weights_of(names)
    refuse_smaller(place, names, options, left_out=run.left_out)
    for standing in run.whole:
        progress(f"reading {standing.variant}")
        members.append(_member(run, standing))
    problem = BlendProblem(
        [*members, *run.external],
        data.labels,
        data.folds,
        run.space.metric,
        seed=run.space.seed,
        label_groups=run.catalog.label_groups,
        folds_digest=data.folds_digest,
        images=len(run.catalog.test.ids),
        remarks=_remarks(run),
    )
    problem, bought = within_budget(problem, options, progress)
    refuse_smaller(place, problem.names, options)
    report = evaluate(problem, options, runner=runner, progress=progress)
    ensemble = frozen(name, problem.members, report, data.label_ids, bought)
    of_data = {"data_digest": data.split.digest, "folds_digest": data.folds_digest, "views": run.views}
    write_ensemble(place, ensemble.model_copy(update=of_data))
    progress("writing its out-of-fold predictions")
    blended = averaged(problem.values, np.array(report.weights), report.scale).astype(np.float16)
    ids, folds = np.array(data.split.ids), np.array(data.folds_digest)
    write_arrays(place.oof, place.files, ids=ids, probs=blended, folds_digest=folds)
    return report


def refuse_smaller(
    place: EnsembleDirectory, names: Sequence[str], options: BlendOptions, *, left_out: Sequence[str] = ()
) -> None:
    """Keep an ensemble that has a member, of weight above 0, that the new one of its name would lack.

    Args:
        names: of the members that are to be blended.
        left_out: why some are not, for the error.

    Raises:
        ConfigError: unless `options.replace`.
    """
    if options.replace or not place.ensemble.exists():
        return
    with contextlib.suppress(StoreError):  # a damaged one predicts nothing
        earlier = read_ensemble(place).needed
        lost = [member.variant for member in earlier if member.variant not in names]
        if lost:
            why = f"; left out: {', '.join(left_out)}" if left_out else ""
            raise ConfigError(
                f"the ensemble {place.root.name} has {', '.join(lost)}, which the new one would lack{why}: say "
                "--replace, or keep it by another name for the new one (blend.py --out NAME)"
            )


def _member(run: RunToBlend, standing: Standing) -> Member:
    """A variant with its out-of-fold predictions."""
    trials = [standing.trials[fold] for fold in sorted(standing.trials)]
    ids = run.data.split.ids
    probs, digests = gather_oof(trials, ids, standing.variant, run.views)
    seconds, size = cost_of(trials, run.views)
    return Member(
        standing.variant,
        probs,
        ids,
        folds_digest=run.data.folds_digest,
        seconds=seconds,
        size=size,
        trials=tuple(trial.trial_id for trial in trials),
        checkpoints=tuple(digests),
    )


def frozen(
    name: str,
    members: Sequence[Member],
    report: BlendReport,
    label_ids: Sequence[str],
    bought: Chosen | None = None,
) -> Ensemble:
    """What `ensemble.json` holds of a blend."""
    singles = [row for row in report.rows if row.is_single]
    scores = {row.method: row.nested for row in singles if row.decoder == report.chosen.decoder}
    own = {row.method: row.thresholds[0] for row in singles if row.decoder == THRESHOLD}
    return Ensemble(
        name=name,
        label_ids=list(label_ids),
        members=[
            EnsembleMember(
                variant=member.name,
                weight=report.weights[i],
                threshold=own.get(member.name, report.thresholds[i]),
                trials=list(member.trials),
                checkpoints=list(member.checkpoints),
                score=scores[member.name],
                seconds=member.seconds,
                size=member.size,
            )
            for i, member in enumerate(members)
        ],
        scale=report.scale,
        decoder=report.decoder,
        prefixes=list(report.prefixes),
        level2=report.model,
        calibration=report.calibration.calibration if report.calibration is not None else None,
        report=report.to_dict() | ({"budget": asdict(bought)} if bought else {}),
    )


def within_budget(
    problem: BlendProblem, options: BlendOptions, progress: Progress
) -> tuple[BlendProblem, Chosen | None]:
    """The problem with the members that the budget allows, and how they were chosen."""
    if options.seconds is None and options.size is None:
        return problem, None
    progress("choosing members for the budget")
    bought = choose(problem, options)
    kept = [member for member in problem.members if member.name in bought.names]
    return replace(problem, members=kept, remarks=[*problem.remarks, bought.remark]), bought


def _remarks(run: RunToBlend) -> list[str]:
    """Which variants are not in it, and what the nested estimate cannot see, for it was decided while training."""
    whole, space = run.whole, run.space
    found = [f"left out: {', '.join(run.left_out)}"] if run.left_out else []
    if run.views is not None:
        found.append(f"variants are predicted with the views {run.views}")
    untold = [member.name for member in run.external if member.folds_digest is None]
    if untold:
        found.append(
            f"taken on trust: {', '.join(untold)} predicted each picture without having learnt from its fold; "
            "otherwise the scores flatter"
        )
    if space.trials_per_variant > 1 and any(standing.hparams for standing in whole):
        found.append("a little optimistic: the hparams were picked on the search fold, which is scored, too")
    specs = [read_spec(trial) for standing in whole for trial in standing.trials.values()]
    if any(spec.soup_of is not None and spec.soup_of.how == "greedy" for spec in specs):
        found.append(
            "optimistic: soup_of picked what it mixed on the folds that are scored (how: uniform does not)"
        )
    recipes = [spec.recipe for spec in specs if spec.soup_of is None]
    variants = {spec.variant.name: spec.variant for spec in specs}
    found += [
        f"optimistic: {name} learnt labels from models that had seen the fold that is scored (labels.add.strict: true "
        "does not)"
        for name, variant in sorted(variants.items())
        if variant.added is not None and not variant.added.strict
    ]
    for keep in sorted({recipe.keep for recipe in recipes if KEEPS[recipe.keep].picks(recipe)}):
        found.append(
            f"optimistic: keep: {keep} picked epochs on the folds that are scored (keep: last does not)"
        )
    return found
