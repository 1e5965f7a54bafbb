"""Pseudo-labels (Lee 2013): labels that training pictures get because predictions are sure of them.

They are targets of training alone: validation, out-of-fold predictions, blend and report keep the labels of the data.

Strict: fold k's training pictures get labels from models of fold k, which never saw the pictures of fold k. So nothing
of fold k's labels reaches the student, and its out-of-fold score is honest. Several models are averaged without
weights: these are fitted on all folds. The models were trained on these very pictures, and repeat what they learnt.

Not strict: out-of-fold predictions of all folds. Those of fold j come from a model that was trained on fold k, and
knows of fold k's labels: the out-of-fold score of the student flatters.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ConfigError, DataError, SettingError, StoreError
from imet_ray.models.checkpoint import load_tagger, read_info
from imet_ray.prediction.ensemble import Ensemble, read_ensemble
from imet_ray.prediction.predict import Inference, predict_rows
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.specs import AddedLabels, TrialSpec, Variant
from imet_ray.storage.added_labels import Added, read_added, write_added
from imet_ray.storage.checked_read import file_digest, read_arrays, read_model
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import EnsembleDirectory, RunDirectory, TrialDirectory


def check_labels(recipe: Variant) -> None:
    """Refuse pseudo-labels that could not be strict, or not be otherwise.

    Raises:
        SettingError: saying what the source may be.
    """
    how = recipe.added
    if how is None:
        return
    if how.kind == "file" and how.strict:
        raise SettingError(
            "labels",
            f"labels.add: nobody can tell which folds the models of {how.source} saw: write strict: false (out-of-fold "
            "scores flatter then), or take the labels from a variant or from RUN/ENSEMBLE",
        )
    if how.kind == "variant" and not how.strict:
        raise SettingError(
            "labels",
            f"labels.add: strict: false takes predictions of all folds, from RUN/ENSEMBLE or a .npz file, got "
            f"{how.source!r}",
        )
    if how.kind == "ensemble" and (how.source.count("/") > 1 or not all(how.source.split("/"))):
        raise SettingError(
            "labels",
            "labels.add: from is a variant of the space, RUN/ENSEMBLE or a .npz file, got "
            + repr(how.source),
        )


def choose(probs: np.ndarray, labels: np.ndarray, rows: np.ndarray, how: AddedLabels) -> Added:
    """The labels that pictures lack and predictions are sure of.

    Args:
        probs: (n, C), of these rows.
        labels: (N, C), of all pictures; above 0 means that a picture has the label.
        rows: (n,) int64, the pictures that are trained on.
    """
    places, columns = np.nonzero((probs > how.above) & (labels[rows] == 0))
    sure = probs[places, columns].astype(np.float32)
    order = np.argsort(-sure, kind="stable")
    if how.at_most is not None:
        order = order[: int(how.at_most * len(rows))]
    return Added(rows[places[order]], columns[order].astype(np.int64), sure[order])


def pseudo_labels(
    spec: TrialSpec, data: TrainingData, trial: TrialDirectory, device: torch.device, *, workers: int = 0
) -> Added:
    """The labels that a trial's training pictures get; those of its directory, if they are chosen already.

    Args:
        workers: that load pictures.

    Raises:
        StoreError: if a checkpoint or predictions are gone or damaged.
    """
    how = spec.recipe.added
    assert how is not None
    trial.fetch(trial.added)
    if not trial.added.exists():
        rows = data.rows(spec.fold, held_out=False)
        if how.strict:
            probs = _of_models(spec, how, data, rows, trial, device, workers)
        else:
            probs = predicted(_kept(trial.run, how), data.split.ids, len(data.label_ids))[rows]
        write_added(trial, choose(probs, data.labels, rows, how))
    return read_added(trial)


def keep_source(run: RunDirectory, how: AddedLabels, data: TrainingData) -> Path | None:
    """Copy what the labels come from into the run, for it may change or move; None: they come from a variant.

    Raises:
        ImetError: if it is not there, or is of other pictures, labels or folds.
    """
    if how.kind == "variant":
        return None
    kept = _kept(run, how)
    run.files.fetch_file(kept)
    if kept.exists():
        return kept
    source = source_at(run, how)
    assert source is not None
    if how.kind == "ensemble":
        _check_ensemble(read_ensemble(_ensemble_at(run, how)), how, data)
    if not how.strict:
        predicted(source, data.split.ids, len(data.label_ids))  # says what is wrong with it
    with run.files.writing(kept) as temporary:
        shutil.copyfile(source, temporary)
    return kept


def source_at(run: RunDirectory, how: AddedLabels) -> Path | None:
    """The file that labels come from; None: they come from a variant.

    Args:
        run: it need not exist, but those beside it are looked at.

    Raises:
        ImetError: if it is not there.
    """
    if how.kind == "variant":
        return None
    if how.kind == "file":
        if not Path(how.source).is_file():
            raise ConfigError(f"labels.add: there is no file {how.source}")
        return Path(how.source)
    place = _ensemble_at(run, how)
    for path in (place.ensemble, place.oof):
        place.files.fetch_file(path)
    read_ensemble(place)
    if not (how.strict or place.oof.exists()):
        raise StoreError(f"{place.oof} is not there: blend again, which writes it")
    return place.ensemble if how.strict else place.oof


def teachers(run: RunDirectory, how: AddedLabels, fold: int | None = None) -> list[TrialDirectory]:
    """The trials of the ensemble that labels come from; of one fold, or of all."""
    found = []
    other = _ensemble_at(run, how).run
    for member in read_model(_kept(run, how), Ensemble).members:
        for trial in map(other.trial, member.trials):
            trial.fetch(trial.spec)
            if fold is None or read_spec(trial).fold == fold:
                found.append(trial)
    return found


def described(variant: Variant, labels: np.ndarray, source: Path | None, ids: Sequence[str]) -> str:
    """What a person is told before training: how many labels there will be, where that can be known.

    Args:
        labels: (N, C), of the data.
        source: of predictions, for those that are not strict.
    """
    how = variant.added
    assert how is not None
    surest = f", the surest {how.at_most:g} per picture" if how.at_most is not None else ""
    text = f"{variant.name}: pseudo-labels from {how.source} above {how.above:g}{surest}"
    if how.strict:
        return f"{text}; each fold's own models choose them"
    assert source is not None
    found = choose(predicted(source, ids, labels.shape[1]), labels, np.arange(len(labels)), how)
    return f"{text}: {found} of {len(ids):,}; not strict, so its out-of-fold score will flatter"


def predicted(path: Path, ids: Sequence[str], n_labels: int) -> np.ndarray:
    """The probabilities of a file, in the order of these pictures: (N, C) of floats.

    Raises:
        StoreError: if it is missing or damaged.
        DataError: if it does not have each picture and label.
    """
    arrays = read_arrays(path)
    if not {"ids", "probs"} <= arrays.keys():
        raise DataError(f"{path} must have ids (n,) and probs (n, C), such as the oof.npz of an ensemble")
    probs = arrays["probs"]
    row_of = {str(picture): row for row, picture in enumerate(arrays["ids"].tolist())}
    missing = [picture for picture in ids if picture not in row_of]
    if missing:
        raise DataError(
            f"{path} has no predictions of {len(missing):,} training pictures, such as {missing[0]}"
        )
    if probs.dtype.kind != "f" or probs.shape != (len(arrays["ids"]), n_labels):
        raise DataError(
            f"{path} must have probs ({len(arrays['ids'])}, {n_labels}) of floats, a column per label, got "
            f"{probs.shape} {probs.dtype}"
        )
    found: np.ndarray = probs[[row_of[picture] for picture in ids]]
    if not (np.isfinite(found).all() and found.min(initial=0) >= 0 and found.max(initial=0) <= 1):
        raise DataError(f"{path} has NaN, or numbers outside 0..1, among its probs")
    return found


def _of_models(
    spec: TrialSpec,
    how: AddedLabels,
    data: TrainingData,
    rows: np.ndarray,
    trial: TrialDirectory,
    device: torch.device,
    workers: int,
) -> np.ndarray:
    """The mean probability of the models of the trial's fold: (n, C) float32."""
    views: ViewSet | None = None
    digests: dict[str, str] = {}
    if how.kind == "variant":
        found = [trial.run.trial(spec.after[how.source])]
    else:
        found = teachers(trial.run, how, spec.fold)
        ensemble = read_model(_kept(trial.run, how), Ensemble)
        views = ensemble.views
        for member in ensemble.members:
            digests |= dict(zip(member.trials, member.checkpoints, strict=True))
    total = np.zeros((len(rows), len(data.label_ids)), np.float32)
    for teacher in found:
        total += _predicted_by(teacher, data, rows, device, workers, views, digests.get(teacher.trial_id))
    return total / np.float32(len(found))


def _predicted_by(
    teacher: TrialDirectory,
    data: TrainingData,
    rows: np.ndarray,
    device: torch.device,
    workers: int,
    views: ViewSet | None,
    digest: str | None,
) -> np.ndarray:
    """Args: digest: of the checkpoint, where it must be that one. Returns (n, C) float16."""
    teacher.fetch(teacher.best)
    if not teacher.best.is_file():
        raise StoreError(
            f"{teacher.best} is gone, from which labels are to come: put it back, or move {teacher.root} away and run "
            "the same command, which trains it again"
        )
    if digest is not None and file_digest(teacher.best) != digest:
        raise StoreError(f"{teacher.best} is not the checkpoint that the ensemble was made of: blend again")
    info = read_info(teacher.best)
    model, _ = load_tagger(teacher.best, device)
    how = Inference.of(info.spec.recipe, device, workers=workers, views=views)
    return predict_rows(model, data.split.pack(info.spec.pack_short_side), rows, how)


def _check_ensemble(ensemble: Ensemble, how: AddedLabels, data: TrainingData) -> None:
    if tuple(ensemble.label_ids) != data.label_ids:
        raise DataError(f"labels.add: {how.source} has other labels than the data")
    if not how.strict:
        return
    if ensemble.folds_digest != data.folds_digest:
        raise DataError(
            f"labels.add: {how.source} was made of other folds, so no model of it is one of fold k here: give its "
            "folds.csv with --folds, or write strict: false"
        )
    if outside := [member.variant for member in ensemble.members if not member.trials]:
        raise DataError(
            f"labels.add: {outside[0]} of {how.source} comes from another tool, and it has no models here: write "
            "strict: false"
        )


def _ensemble_at(run: RunDirectory, how: AddedLabels) -> EnsembleDirectory:
    """The ensemble RUN/ENSEMBLE, of a run beside this one."""
    name, _, ensemble = how.source.partition("/")
    return RunDirectory(run.root.parent / name, run.files).ensemble(ensemble)


def _kept(run: RunDirectory, how: AddedLabels) -> Path:
    return run.label_source(how.source, ".json" if how.strict else ".npz")
