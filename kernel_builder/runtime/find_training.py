"""What a kernel that trains finds under the input folder: the run's data, and how far the trial was trained before."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from imet_ray.data.competition_files import picture_folder
from imet_ray.data.folds import folds_digest
from imet_ray.data.formats import read_catalog
from imet_ray.data.training_data import TrainingData, training_split
from imet_ray.errors import DataError, StoreError
from imet_ray.specs import TrialSpec
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import Cache, TrialDirectory

COPIED = ("spec", "splits", "best", "metrics", "last", "oof", "result")  # files of a trial, in this order


def find_data(files: Sequence[Path], spec: TrialSpec, folds: Sequence[int], cache: Cache) -> TrainingData:
    """The training pictures whose digest is the trial's.

    Raises:
        DataError: if they are not there, or are others.
    """
    roots = [file.parent for file in files if file.name == "train.csv"]
    roots = sorted(
        (root for root in roots if picture_folder(root, "train").is_dir()), key=lambda r: len(r.parts)
    )
    if not roots:
        raise DataError(
            "no train.csv with a folder of pictures under the input folder: attach the competition's data to the kernel"
        )
    for root in roots:
        catalog = read_catalog(root, cache, negatives=True)
        if catalog.digest == spec.data_digest:
            given = np.array(folds, np.int64)
            digest = folds_digest(catalog.train.ids, given)
            assert digest == spec.folds_digest
            split = training_split(catalog, cache)
            return TrainingData(split, catalog.label_ids, catalog.labels, given, digest)
    raise DataError(
        f"the training pictures or labels of {', '.join(map(str, roots))} are others than the run's: attach the "
        "same data, or build the kernel in a run of these"
    )


def found_trials(files: Sequence[Path]) -> Iterator[tuple[TrialDirectory, TrialSpec]]:
    """Directories of trials, with their specs; what cannot be read is none."""
    for file in files:
        trial = TrialDirectory(file.parent)
        if file == trial.spec:
            try:
                yield trial, read_spec(trial)
            except StoreError:
                continue


def epochs_of(trial: TrialDirectory) -> int:
    """How far a trial can go on from: its epochs; more than all where it has a result, 0 where it has no state."""
    result = read_result(trial)
    if result is not None and result.status != "stopped":
        return 10**9
    return len(read_json_lines(trial.metrics)) if trial.last.exists() else 0


def go_on_from(files: Sequence[Path], spec: TrialSpec, trial: TrialDirectory) -> Path | None:
    """Copy the furthest earlier state of the trial into its directory; where it came from, if there is one."""
    earlier = [one for one, told in found_trials(files) if told.same_trial(spec)]
    best = max(earlier, key=epochs_of, default=None)
    if best is None or epochs_of(best) <= epochs_of(trial):
        return None
    copy_trial(best, trial)
    return best.root


def copy_trial(source: TrialDirectory, target: TrialDirectory) -> None:
    """Copy what a trial goes on from, or its result; killed at any moment, it can be trained or copied again.

    The old state goes first, so that no state is beside weights of another; the result comes last.
    """
    target.files.remove(target.last)
    pairs = [(getattr(source, name), getattr(target, name)) for name in COPIED]
    for one, other in pairs:
        if one.exists():
            with target.files.writing(other) as temporary:
                shutil.copyfile(one, temporary)
