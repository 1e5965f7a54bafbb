"""The resolved experiment of a run directory: written once, compared each time the run continues.

So a run never mixes results of different data, folds or recipes. What may change from one command to the next is the
budget and the list of variants.
"""

import contextlib
import fcntl
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pydantic import Field

import imet_ray
from imet_ray.errors import ConfigError, StoreError
from imet_ray.search_space import Range, SearchSpace
from imet_ray.specs import Frozen
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.files import disk_error, write_json
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory

PACKAGES = ("ray", "torch", "torchvision", "timm", "albumentations", "optuna", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of what this process runs on, by name."""
    found = {"imet_ray": imet_ray.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git_state() -> str:
    """The commit of the code, with a + where it was changed; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()
    return ""


class Experiment(Frozen):
    """Everything that all trials of a run have in common, and where it was run."""

    data: str  # as on the command line
    data_root: str
    data_digest: str
    folds_digest: str
    label_ids: list[str]
    space: SearchSpace
    left_out: dict[
        str, dict[str, Range]
    ] = {}  # ranges of variants that were searched, and are not in the space now
    versions: dict[str, str] = Field(default_factory=versions)
    git: str = Field(default_factory=_git_state)


def read_experiment(store: RunDirectory) -> Experiment:
    """The experiment that a run was begun with."""
    return read_model(store.experiment, Experiment)


def begin(store: RunDirectory, experiment: Experiment) -> None:
    """Write `experiment.json`, if the run goes on with the same data, folds and recipes.

    Raises:
        StoreError: naming what differs.
    """
    refuse_changed(store, experiment)
    searched = _searched(store) if store.experiment.exists() else {}
    left_out = {name: ranges for name, ranges in searched.items() if name not in experiment.space.ranges}
    experiment = experiment.model_copy(update={"left_out": left_out})
    write_json(store.experiment, experiment.model_dump(mode="json"), store.files)


def refuse_changed(store: RunDirectory, experiment: Experiment) -> None:
    """Compare a run with what it was begun with; a new one may be anything.

    Raises:
        StoreError: naming what differs, as it was and as it is.
    """
    if store.experiment.exists() and (difference := _difference(store, experiment)):
        out = "choose another --name, or --fresh to set the old run aside"
        raise StoreError(f"{store.root} {difference}: {out}")


def _searched(store: RunDirectory) -> dict[str, dict[str, Range]]:
    """The ranges of all variants that the run has ever had."""
    before = read_experiment(store)
    return before.left_out | before.space.ranges


def _difference(store: RunDirectory, experiment: Experiment) -> str | None:
    """What the run was begun with, if it is not what is asked for now."""
    before, space = read_experiment(store), experiment.space
    for field, what in (("data_digest", "data"), ("folds_digest", "folds")):
        if getattr(before, field) != getattr(experiment, field):
            return f"was begun with other {what}"
    for field in ("n_folds", "seed", "search_folds", "pack_short_side", "metric"):
        was = getattr(before.space, field)
        if was != getattr(space, field):
            return f"was begun with {field}={was}, now it is {getattr(space, field)}"
    trials = store.begun_trials()
    specs = [read_spec(trial) for trial in trials]
    if trials and specs[0].trial_id != trials[0].trial_id:  # one tells of all
        return (
            "was begun by an earlier version, whose trials have other ids and would be trained again (it can still be "
            "blended, predicted and looked at)"
        )
    known = {spec.variant.name: spec.variant for spec in specs}
    known |= {variant.name: variant for variant in before.space.variants}
    searched = _searched(store)
    for variant in space.variants:
        old = known.get(variant.name, variant)
        for field in type(variant).model_fields:
            was, now = getattr(old, field), getattr(variant, field)
            if was != now:
                return f"knows variant {variant.name!r} with {field}={was!r}, now it is {now!r}"
        now_searched = space.ranges[variant.name]
        was_searched = searched.get(variant.name, now_searched)
        for field in sorted(was_searched.keys() | now_searched.keys()):
            old_range, new_range = was_searched.get(field), now_searched.get(field)
            if old_range != new_range:
                over = f"{field} {old_range or 'not at all'}, now {new_range or 'not at all'}"
                return f"searched variant {variant.name!r} over other ranges: {over}"
    return None


@contextlib.contextmanager
def only_driver(store: RunDirectory) -> Iterator[None]:
    """Hold the run directory; the lock ends with the process, however it ends.

    Raises:
        ConfigError: if another process drives the same run.
    """
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        opened = store.driver_lock.open("a+")
    except OSError as error:
        raise disk_error(store.root, error) from error
    with opened as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked loaders would keep it
        except OSError:
            file.seek(0)
            raise ConfigError(
                f"{store.root} is being driven by process {file.read().strip() or '?'}: wait for it, "
                "or choose another --name"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        with store.leased(f"process {os.getpid()}"):
            yield
