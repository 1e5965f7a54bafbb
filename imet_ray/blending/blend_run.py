"""Blending a run: its variants' out-of-fold files in, `ensemble.json` out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imet_ray.blending.budget import Budget, Chosen, choose
from imet_ray.blending.cross_fit import Progress
from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.fit_jobs import Runner, solve_here
from imet_ray.blending.members import Member
from imet_ray.blending.options import check_request
from imet_ray.blending.result import BlendReport
from imet_ray.data.catalog import Catalog
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ConfigError
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, Prefix, cost_of, gather_oof, write_ensemble
from imet_ray.prediction.pooling import Scale, as_probability, on_scale
from imet_ray.search_space import SearchSpace
from imet_ray.storage.results import Standing, read_spec
from imet_ray.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class BlendOptions:
    """What a person may ask of a blend."""

    methods: tuple[str, ...] | None = None  # to compare; all if None
    use: str | None = None  # the method to take, whatever it is worth
    decoders: tuple[str, ...] | None = None
    min_weight: float = 0.0
    max_members: int | None = None
    seconds: float | None = None  # that prediction may take
    images: int | None = None  # test pictures; those of the data if None
    size: int | None = None  # bytes that checkpoints may take
    scale: Scale | None = None  # on which to average; the better one if None
    level2: str | None = None


def check_options(options: BlendOptions) -> None:
    """Refuse what no data could give, before any are read.

    Raises:
        ConfigError: naming the option.
    """
    check_request(
        options.methods,
        options.use,
        options.decoders,
        options.level2,
        options.min_weight,
        options.max_members,
    )


def blend_run(
    store: RunDirectory,
    data: TrainingData,
    catalog: Catalog,
    space: SearchSpace,
    whole: Sequence[Standing],
    name: str,
    *,
    options: BlendOptions,
    outside: Sequence[Member] = (),
    runner: Runner = solve_here,
    progress: Progress = lambda text: None,
) -> BlendReport:
    """Fit the weights of variants that are trained on all folds, and freeze the ensemble.

    Args:
        whole: the variants to blend, each with one trial a fold.
        name: of the ensemble.
        outside: members that another tool predicted.

    Raises:
        ImetError: if out-of-fold predictions are missing, do not cover each picture once, or cannot be used.
    """
    members, digests, trials = [], {}, {}
    for standing in whole:
        progress(f"reading {standing.variant}")
        own = [standing.trials[fold] for fold in sorted(standing.trials)]
        probs, digests[standing.variant] = gather_oof(
            own, data.split.ids, standing.variant, scratch=store.root
        )
        trials[standing.variant] = [trial.trial_id for trial in own]
        seconds, size = cost_of(own)
        ids = data.split.ids
        members.append(Member(standing.variant, probs, ids, False, data.folds_digest, seconds, size))
    members += outside
    report, members, bought = blend_members(
        members,
        data.labels,
        data.folds,
        seed=space.seed,
        groups=catalog.label_groups,
        folds_digest=data.folds_digest,
        options=options,
        images=len(catalog.test.ids),
        remarks=_remarks(whole, space),
        runner=runner,
        progress=progress,
    )
    ensemble = frozen(name, members, report, data.label_ids, trials, digests, bought)
    of_data = {"data_digest": data.split.digest, "folds_digest": data.folds_digest}
    write_ensemble(store.ensemble(name), ensemble.model_copy(update=of_data))
    return report


def frozen(
    name: str,
    members: Sequence[Member],
    report: BlendReport,
    label_ids: Sequence[str],
    trials: Mapping[str, list[str]] | None = None,
    checkpoints: Mapping[str, list[str]] | None = None,
    bought: Chosen | None = None,
) -> Ensemble:
    """What `ensemble.json` holds of a blend.

    Args:
        trials, checkpoints: by member; none of a member that another tool predicted.
    """
    decoder = report.chosen.decoder
    alone = {row.method: row.nested for row in report.rows if row.is_single and row.decoder == decoder}
    own = {  # t_m + s of each member alone
        row.method: float(as_probability(on_scale(np.array(t), report.scale) + row.shifts[0], report.scale))
        for row, t in zip(
            (row for row in report.rows if row.is_single and row.decoder == "threshold"),
            report.thresholds,
            strict=False,
        )
    }
    return Ensemble(
        name=name,
        label_ids=list(label_ids),
        members=[
            EnsembleMember(
                variant=member.name,
                weight=report.weights[i],
                threshold=own[member.name] if member.name in own else report.thresholds[i],
                trials=(trials or {}).get(member.name, []),
                checkpoints=(checkpoints or {}).get(member.name, []),
                score=alone[member.name],
                seconds=member.seconds,
                size=member.size,
            )
            for i, member in enumerate(members)
        ],
        scale=report.scale,
        decoder=report.decoder,
        prefixes=[
            Prefix(members=list(step.members), decoder=step.decoder, score=step.f2)
            for step in report.prefixes
        ],
        report=report.to_dict() | ({"budget": bought.to_dict()} if bought else {}),
    )


def blend_members(
    members: Sequence[Member],
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    seed: int,
    options: BlendOptions,
    images: int = 0,
    groups: Sequence[str] = (),
    folds_digest: str | None = None,
    remarks: Sequence[str] = (),
    runner: Runner = solve_here,
    progress: Progress = lambda text: None,
) -> tuple[BlendReport, list[Member], Chosen | None]:
    """Blend what the budget allows; the report, the members that it allows, and how they were chosen."""
    bought = None
    kept = list(members)
    if options.seconds is not None or options.size is not None:
        count = images if options.images is None else options.images
        budget = Budget(count, options.seconds, options.size, options.max_members)
        if budget.seconds is not None and budget.images < 1:
            raise ConfigError(
                "--seconds needs the number of test pictures, and the data have none: give --images"
            )
        progress("choosing members for the budget")
        bought = choose(members, labels, folds, budget, seed=seed)
        kept = [member for member in members if member.name in bought.names]
        remarks = [*remarks, bought.remark]
    report = evaluate(
        kept,
        labels,
        folds,
        seed=seed,
        groups=groups,
        folds_digest=folds_digest,
        methods=options.methods,
        decoders=options.decoders,
        use=options.use,
        min_weight=options.min_weight,
        max_members=options.max_members,
        scale=options.scale,
        level2=options.level2,
        remarks=remarks,
        runner=runner,
        progress=progress,
    )
    return report, kept, bought


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
