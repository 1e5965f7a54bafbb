"""The resolved experiment of a run directory: written once, compared each time the run continues.

So a run never mixes results of different data, folds or recipes. What may change from one command to the next is the
budget and the list of variants.
"""

import contextlib
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pydantic import Field, ValidationError

import imet_ray
from imet_ray.errors import ConfigError, StoreError
from imet_ray.search_space import Range, SearchSpace
from imet_ray.specs import Frozen
from imet_ray.storage import driver_lease
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.driver_lease import LeaseFile
from imet_ray.storage.files import write_json
from imet_ray.storage.locks import LockedError, holder, locked
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

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
    limit: int | None = None  # training pictures, at most, and test pictures: a sample of the data; None: all
    data_digest: str
    folds_digest: str
    label_ids: list[str]
    weights: dict[str, str] = {}  # sha256 of each file of weights that trials begin from, by its path
    space: SearchSpace
    left_out: dict[str, dict[str, Range]] = {}  # of variants that were searched, and are not in the space now
    versions: dict[str, str] = Field(default_factory=versions)
    git: str = Field(default_factory=_git_state)


def read_experiment(store: RunDirectory) -> Experiment:
    """The experiment that a run was begun with."""
    return read_model(store.experiment, Experiment)


def begin(store: RunDirectory, experiment: Experiment) -> None:
    """Write `experiment.json`, if the run goes on with the same data, folds, weights and recipes.

    Raises:
        StoreError: naming what differs.
    """
    refuse_changed(store, experiment)
    if store.experiment.exists():  # what belongs to variants that are left out this time stays known
        searched = _searched(store).items()
        left_out = {name: ranges for name, ranges in searched if name not in experiment.space.ranges}
        weights = read_experiment(store).weights | experiment.weights
        experiment = experiment.model_copy(update={"left_out": left_out, "weights": weights})
    write_json(store.experiment, experiment.model_dump(mode="json"), store.files)


def refuse_changed(store: RunDirectory, experiment: Experiment) -> None:
    """Compare a run with what it was begun with; a new one may be anything.

    Raises:
        StoreError: naming what differs, as it was and as it is.
    """
    if store.experiment.exists() and (difference := _difference(store, experiment)):
        raise StoreError(f"{store.root} {difference}: {way_out(store)}")


def _searched(store: RunDirectory) -> dict[str, dict[str, Range]]:
    """The ranges of all variants that the run has ever had."""
    before = read_experiment(store)
    return before.left_out | before.space.ranges


def way_out(store: RunDirectory, aside: str = "--fresh to set the old run aside") -> str:
    """What to do about a run that cannot go on.

    Args:
        aside: the option for it, where the run can be renamed.
    """
    with contextlib.suppress(ConfigError):
        store.files.check_set_aside()
        return f"choose another --name, or {aside}"
    return "choose another --name"


def _difference(store: RunDirectory, experiment: Experiment) -> str | None:
    """What the run was begun with, if it is not what is asked for now."""
    before, space = read_experiment(store), experiment.space
    trials = store.begun_trials()
    specs = [read_spec(trial) for trial in trials]
    if trials and specs[0].trial_id != trials[0].trial_id:  # one tells of all
        return (
            "was begun by an earlier version, whose trials have other ids and would be trained again (it can still be "
            "blended, predicted and looked at)"
        )
    for field, what in (("data_digest", "data"), ("folds_digest", "folds")):
        if getattr(before, field) != getattr(experiment, field):
            return f"was begun with other {what}"
    for path, digest in experiment.weights.items():
        if before.weights.get(path, digest) != digest:
            return f"was begun with other weights in {path}"
    for field in ("n_folds", "seed", "search_folds", "pack_short_side", "metric"):
        was = getattr(before.space, field)
        if was != getattr(space, field):
            return f"was begun with {field}={was}, now it is {getattr(space, field)}"
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


class Driven(Frozen):
    """What a run directory says of its last driver."""

    run: str = ""  # the directory's name then: a copy has another
    at: float = 0.0  # time.time(); 0: before runs said so


def driven(store: RunDirectory) -> Driven:
    """When a run was driven last."""
    with contextlib.suppress(ValidationError):
        return Driven.model_validate_json(store.files.read_now(store.driven) or "{}")
    return Driven()


@contextlib.contextmanager
def only_driver(store: RunDirectory) -> Iterator[None]:
    """Hold the run directory, and note in it that it is driven now. The lock ends with the process, however it ends.

    Where the file system knows no locks, a file that its holder keeps changing does, as in buckets.

    Raises:
        ConfigError: if another process drives the same run.
    """
    process = f"process {os.getpid()}"
    try:
        with (
            locked(store.driver_lock, who=f"{os.getpid()} on {platform.node()}") as held,
            contextlib.ExitStack() as stack,
        ):
            if not held:
                logger.warning(
                    "%s lies on a file system without locks: %s shows that it is driven",
                    store.root,
                    store.lease.name,
                )
                stack.enter_context(driver_lease.held(LeaseFile(), str(store.lease), process, alone=False))
            stack.enter_context(store.leased(process))
            write_json(store.driven, Driven(run=store.root.name, at=time.time()).model_dump(), store.files)
            yield
    except LockedError as error:
        raise ConfigError(
            f"{store.root} is being driven by process {error}: wait for it, or choose another --name"
        ) from None


def driver_of(store: RunDirectory) -> str:
    """The process that drives a run, wherever it is; empty: none is seen from here. It neither waits nor writes."""
    held = holder(store.driver_lock)
    if held:
        return f"process {held}"
    here = driver_lease.holder(LeaseFile(), str(store.lease), alone=False) if held is None else ""
    return here or store.leaseholder()
