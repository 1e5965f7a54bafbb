"""Blending a run: its variants' out-of-fold files in, `ensemble.json` out."""

from collections.abc import Sequence

from imet_ray.blending.evaluate import BlendReport, Member, evaluate
from imet_ray.data import TrainingData
from imet_ray.ensemble import Ensemble, EnsembleMember, gather_oof, write_ensemble
from imet_ray.results import Standing, read_spec
from imet_ray.store import Store


def blend_run(
    store: Store, data: TrainingData, whole: Sequence[Standing], name: str, *, seed: int
) -> BlendReport:
    """Fit the weights of variants that are trained on all folds, and freeze the ensemble.

    Args:
        whole: the variants to blend, each with one trial a fold.
        name: of the ensemble.
        seed: of the bootstrap.

    Raises:
        ImetError: if out-of-fold predictions are missing, do not cover each picture once, or cannot be used.
    """
    members, digests, trials = [], [], []
    for standing in whole:
        own = [standing.trials[fold] for fold in sorted(standing.trials)]
        probs, checkpoints = gather_oof(own, data.split.ids, standing.variant)
        members.append(Member(standing.variant, probs, data.split.ids))
        digests.append(checkpoints)
        trials.append([trial.trial_id for trial in own])
    report = evaluate(members, data.labels, data.folds, seed=seed, remarks=_remarks(whole))
    ensemble = Ensemble(
        name=name,
        data_digest=data.split.digest,
        folds_digest=data.folds_digest,
        label_ids=list(data.label_ids),
        members=[
            EnsembleMember(
                variant=member.name,
                weight=report.weights[i],
                threshold=report.thresholds[i],
                trials=trials[i],
                checkpoints=digests[i],
                f2=report.members[member.name]["threshold"],
            )
            for i, member in enumerate(members)
        ],
        decoder=report.decoder,
        report=report.to_dict(),
    )
    write_ensemble(store.ensemble(name), ensemble)
    return report


def _remarks(whole: Sequence[Standing]) -> list[str]:
    """What the nested estimate cannot see, for it was decided while training."""
    found = []
    if any(standing.hparams for standing in whole):
        found.append("a little optimistic: the hparams were picked on the search fold, which is scored, too")
    recipes = [read_spec(trial).recipe for standing in whole for trial in standing.trials.values()]
    if any(recipe.keep == "best" and recipe.epochs > 1 for recipe in recipes):
        found.append(
            "optimistic: keep: best picked epochs on the folds that are scored (keep: last does not)"
        )
    return found
