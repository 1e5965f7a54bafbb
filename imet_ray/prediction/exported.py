"""Exporting an ensemble: its folder is written beside its place, and put there whole.

An export that was stopped goes on: what is written and right stays. What the folder holds is `ExportedDirectory`.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from imet_ray.errors import ConfigError, ImetError, StoreError
from imet_ray.prediction.ensemble import Ensemble, ensemble_text, in_order
from imet_ray.prediction.tagger_files import TaggerFiles, write_labels
from imet_ray.storage.checked_read import file_digest, read_model
from imet_ray.storage.files import disk_error, write_text, writing
from imet_ray.storage.locks import LockedError, locked
from imet_ray.storage.run_directory import ExportedDirectory


def refuse_place(folder: Path, ensemble: Ensemble) -> None:
    """Refuse a place that holds anything but an export of the same ensemble.

    Raises:
        ConfigError: saying what is there.
    """
    if not folder.exists():
        return
    if Path.cwd().is_relative_to(folder):
        raise ConfigError(
            f"you are in {folder}, which would be replaced: name a folder in it, or go elsewhere"
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder")
    entries = {path.name for path in folder.iterdir()}
    if not entries:
        return
    place = ExportedDirectory(folder)
    if not place.ensemble.is_file():
        raise ConfigError(f"{folder} is not empty, and no export: name another folder, or empty it")
    if strangers := sorted(entries - {path.name for path in place.entries}):
        raise ConfigError(
            f"{folder} holds {strangers[0]}, which no export writes: move it away, or name another folder"
        )
    try:
        there = read_model(place.ensemble, Ensemble)
    except StoreError as error:
        raise ConfigError(
            f"{folder} is no export that can be replaced ({error}): name another folder"
        ) from None
    if there.name != ensemble.name:
        raise ConfigError(
            f"{folder} is an export of {there.name}, not of {ensemble.name}: name another folder"
        )
    if (there.data_digest, there.folds_digest) != (ensemble.data_digest, ensemble.folds_digest):
        raise ConfigError(
            f"{folder} is an export of another {there.name}, of other data or folds: name another folder"
        )


@contextlib.contextmanager
def exporting(folder: Path, ensemble: Ensemble) -> Iterator[ExportedDirectory]:
    """A folder to write to, put in its place when the block ends well; an earlier export there is replaced.

    What a stopped process wrote is still in it. What was refused is not, nor what a full disk cut off.

    Raises:
        ConfigError: if another process exports to the same place, or if something else is there.
        StoreError: if it cannot be written.
    """
    refuse_place(folder, ensemble)
    staging, earlier = (folder.with_name(f".{folder.name}.{state}") for state in ("exporting", "replaced"))
    lock = staging / "lock"
    try:
        with locked(lock, who=f"process {os.getpid()}"):
            if earlier.exists() and not folder.exists():  # stopped between the two renames
                earlier.rename(folder)
            shutil.rmtree(earlier, ignore_errors=True)
            try:
                yield ExportedDirectory(staging)
            except (ImetError, OSError):
                shutil.rmtree(staging, ignore_errors=True)
                raise
            lock.unlink()
            if folder.exists():
                folder.rename(earlier)
            staging.rename(folder)
            shutil.rmtree(earlier, ignore_errors=True)
    except LockedError as error:
        raise ConfigError(f"{folder} is being written by {error}: wait for it") from None
    except OSError as error:
        raise disk_error(folder, error) from error


def write_files(place: ExportedDirectory, files: TaggerFiles) -> int:
    """Write what tags: the ensemble, its labels, and the weights of the members that are needed; the bytes of these.

    Raises:
        StoreError: if weights are missing, or others than the ensemble's.
    """
    ensemble, total = files.ensemble, 0
    wanted = set()
    for member in in_order(ensemble):
        for trial_id, digest in zip(member.trials, member.checkpoints, strict=True):
            source, target = files.checkpoints[trial_id], place.weights_of(trial_id)
            if not source.is_file():
                raise StoreError(f"{source} is missing: sweep again, or put it back")
            if not (target.is_file() and file_digest(target) == digest):
                with writing(target) as temporary:
                    shutil.copyfile(source, temporary)
                    if file_digest(temporary) != digest:
                        raise StoreError(
                            f"{source} has other weights than the ensemble was fitted with: blend again"
                        )
            total += target.stat().st_size
            wanted.add(target)
    for path in set(place.weights.iterdir()) - wanted:  # of an export that was stopped
        path.unlink()
    write_text(place.ensemble, ensemble_text(ensemble))
    write_labels(place.labels, ensemble.label_ids, files.label_names)
    return total
