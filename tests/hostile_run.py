"""A small run of two variants, blended, whose names would be markup if a page did not escape them."""

from pathlib import Path

import numpy as np
from bare_spec import bare_spec
from blends import evaluate
from PIL import Image

from imet_ray.blending.members import Member
from imet_ray.data.catalog import Catalog, Split
from imet_ray.prediction.decode import Threshold
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, gather_oof
from imet_ray.prediction.predict import Predictions, write_predictions
from imet_ray.specs import Variant
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import TrialResult, standings, write_result
from imet_ray.storage.run_directory import RunDirectory

N_FOLDS = 3
HOSTILE = "<script>alert('x')</script> & \"y\""


def trained(store: RunDirectory, variant: str, fold: int) -> str:
    """A complete trial with its learning curve; its id."""
    spec = bare_spec(Variant(name=variant, architecture="resnet18"), fold, N_FOLDS)
    trial = store.trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))
    write_json_lines(trial.metrics, [{"epoch": e, "score": 0.1 * e + 0.01 * fold} for e in (1, 2, 3)])
    result = TrialResult(
        trial_id=spec.trial_id, status="complete", score=0.3 + 0.01 * fold, expected_score=0.3
    )
    write_result(trial, result)
    return spec.trial_id


def pictures_at(folder: Path) -> Catalog:
    """15 training and 13 test pictures; names that would be markup if they were not escaped."""
    rng = np.random.default_rng(0)
    files = tuple(folder / f"{i}.png" for i in range(13))
    train = tuple(folder / f"p{i}.png" for i in range(15))
    for file in (*files, *train):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(file)
    return Catalog(
        root=folder,
        label_ids=("0", "1", "2", "3"),
        label_names=tuple(f"{name} {HOSTILE}" for name in ("fire", "water", "earth", "air")),
        train=Split(tuple(f"p{i}" for i in range(15)), train),
        labels=rng.integers(0, 2, (15, 4), np.uint8),
        test=Split(tuple(f.stem for f in files), files),
        test_labels=rng.integers(0, 2, (13, 4), np.uint8),
        test_labelled=np.ones(13, bool),
        label_groups=("", "b", "b", "<i>&'c'"),
        digest="data",
        test_digest="test",
    )


def train_all(store: RunDirectory, catalog: Catalog) -> None:
    """Two variants, trained and predicted on all folds."""
    rng = np.random.default_rng(1)
    for variant in ("one", "two"):
        for fold in range(N_FOLDS):
            trial = trained(store, variant, fold)
            own = np.array(catalog.train.ids[fold::N_FOLDS])
            probs = rng.random((len(own), 4)).astype(np.float16)
            write_predictions(
                store.trial(trial).oof, Predictions(own, probs, trial, ("centre",), "pictures", 1.0)
            )


def blended(store: RunDirectory) -> Ensemble:
    """Both variants, without what a blend finds."""
    members = []
    for standing in standings(store, ["one", "two"]):
        ids = [standing.trials[fold].trial_id for fold in range(N_FOLDS)]
        settings = {"variant": standing.variant, "weight": 0.5, "threshold": 0.2, "score": 0.4}
        members.append(EnsembleMember(**settings, trials=ids, checkpoints=ids))
    return Ensemble(
        name=f"blend {HOSTILE}",
        data_digest="data",
        folds_digest="folds",
        label_ids=["0", "1", "2", "3"],
        members=members,
        decoder=Threshold(threshold=0.6),
        report={"text": f"nested F2 0.4321 {HOSTILE}", "nested": 0.4321},
    )


def with_findings(ensemble: Ensemble, store: RunDirectory, catalog: Catalog) -> Ensemble:
    """The same ensemble with all that a blend finds today."""
    members = []
    for member in ensemble.members:
        probs, _ = gather_oof([store.trial(t) for t in member.trials], catalog.train.ids, member.variant)
        members.append(Member(member.variant, probs, catalog.train.ids))
    folds = np.arange(15) % N_FOLDS
    groups = catalog.label_groups
    found = evaluate(members, catalog.labels, folds, seed=0, groups=groups, methods=["greedy"]).to_dict()
    step = {"seconds": 10.0, "score": 0.5, "members": ["one", f"two {HOSTILE}"]}
    said = {"verdict": f"it is worth it {HOSTILE}\nnested F2", "remarks": [f"optimistic {HOSTILE}"]}
    budget = {"budget": {"curve": [step], "limit_s": 20.0}}
    return ensemble.model_copy(update={"report": found | said | budget})
