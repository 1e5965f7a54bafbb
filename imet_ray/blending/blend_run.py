"""Blending a run: its variants' out-of-fold files in, `ensemble.json` out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

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
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, cost_of, gather_oof, write_ensemble
from imet_ray.search_space import SearchSpace
from imet_ray.storage.results import Standing, read_spec
from imet_ray.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class RunToBlend:
    """What of a run is blended."""

    store: RunDirectory
    data: TrainingData
    catalog: Catalog
    space: SearchSpace
    whole: Sequence[Standing]  # the variants, each with one trial per fold
    external: Sequence[Member] = ()  # members that another tool predicted


def blend_run(
    run: RunToBlend,
    name: str,
    options: BlendOptions,
    *,
    runner: Runner,
    progress: Progress = silent,
) -> BlendReport:
    """Fit the weights of variants that are trained on all folds, and freeze the ensemble.

    Args:
        name: of the ensemble.

    Raises:
        ImetError: if out-of-fold predictions are missing, do not cover each picture once, or cannot be used.
    """
    data, members = run.data, []
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
        remarks=_remarks(run.whole, run.space),
    )
    report, kept, bought = blend_members(problem, options, runner=runner, progress=progress)
    ensemble = frozen(name, kept, report, data.label_ids, bought)
    of_data = {"data_digest": data.split.digest, "folds_digest": data.folds_digest}
    write_ensemble(run.store.ensemble(name), ensemble.model_copy(update=of_data))
    return report


def _member(run: RunToBlend, standing: Standing) -> Member:
    """A variant with its out-of-fold predictions."""
    trials = [standing.trials[fold] for fold in sorted(standing.trials)]
    ids = run.data.split.ids
    probs, digests = gather_oof(trials, ids, standing.variant)
    seconds, size = cost_of(trials)
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
    scores = {row.method: row.nested for row in singles if row.decoder == report.decoder.name}
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
        report=report.to_dict() | ({"budget": asdict(bought)} if bought else {}),
    )


def blend_members(
    problem: BlendProblem, options: BlendOptions, *, runner: Runner, progress: Progress
) -> tuple[BlendReport, list[Member], Chosen | None]:
    """Blend what the budget allows; the report, the members that it allows, and how they were chosen."""
    bought = None
    if options.seconds is not None or options.size is not None:
        progress("choosing members for the budget")
        bought = choose(problem, options)
        kept = [member for member in problem.members if member.name in bought.names]
        problem = replace(problem, members=kept, remarks=[*problem.remarks, bought.remark])
    report = evaluate(problem, options, runner=runner, progress=progress)
    return report, list(problem.members), bought


def _remarks(whole: Sequence[Standing], space: SearchSpace) -> list[str]:
    """What the nested estimate cannot see, for it was decided while training."""
    found = []
    if space.trials_per_variant > 1 and any(standing.hparams for standing in whole):
        found.append("a little optimistic: the hparams were picked on the search fold, which is scored, too")
    recipes = [read_spec(trial).recipe for standing in whole for trial in standing.trials.values()]
    if any(recipe.keep == "best" and recipe.epochs > 1 for recipe in recipes):
        found.append(
            "optimistic: keep: best picked epochs on the folds that are scored (keep: last does not)"
        )
    return found
