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

import imet_ray
from imet_ray.errors import ConfigError, StoreError
from imet_ray.search_space import SearchSpace
from imet_ray.specs import Frozen
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.files import disk_error, write_json
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory

PACKAGES = ("ray", "torch", "torchvision", "timm", "albumentations", "optuna", "numpy", "scipy")


class Experiment(Frozen):
    """Everything that all trials of a run have in common, and where it was run."""

    data: str  # as on the command line
    data_root: str
    data_digest: str
    folds_digest: str
    label_ids: list[str]
    space: SearchSpace
    versions: dict[str, str]
    git: str


def resolve(
    space: SearchSpace,
    *,
    data: str,
    data_root: Path,
    data_digest: str,
    folds_digest: str,
    label_ids: tuple[str, ...],
) -> Experiment:
    """The experiment as it stands now, with the versions that run it."""
    versions = {"imet_ray": imet_ray.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return Experiment(
        data=data,
        data_root=str(data_root),
        data_digest=data_digest,
        folds_digest=folds_digest,
        label_ids=list(label_ids),
        space=space,
        versions=versions,
        git=_git_state(),
    )


def read_experiment(store: RunDirectory) -> Experiment:
    """The experiment that a run was begun with."""
    return read_model(store.experiment, Experiment)


def begin(store: RunDirectory, experiment: Experiment) -> None:
    """Write `experiment.json`, or check that the run goes on with the same data, folds and recipes.

    Raises:
        StoreError: naming what differs.
    """
    if store.experiment.exists():
        before = read_experiment(store)
        out = "choose another --name, or --fresh to set the old run aside"
        for field, what in (("data_digest", "data"), ("folds_digest", "folds")):
            if getattr(before, field) != getattr(experiment, field):
                raise StoreError(f"{store.root} was begun with other {what}: {out}")
        for field in ("n_folds", "seed", "search_folds", "pack_short_side", "metric"):
            was = getattr(before.space, field)
            if was != getattr(experiment.space, field):
                raise StoreError(f"{store.root} was begun with {field}={was}: {out}")
        specs = {trial.trial_id: read_spec(trial) for trial in store.begun_trials()}
        if any(spec.trial_id != trial_id for trial_id, spec in list(specs.items())[:1]):  # one tells of all
            raise StoreError(
                f"{store.root} was begun by an earlier version, whose trials have other ids and would be trained "
                f"again: {out}. It can still be blended, predicted and looked at"
            )
        known = {spec.variant.name: spec.variant for spec in specs.values()}
        known |= {variant.name: variant for variant in before.space.variants}
        for variant in experiment.space.variants:
            old = known.get(variant.name, variant)
            if old != variant:
                changed = next(
                    field
                    for field in type(variant).model_fields
                    if getattr(old, field) != getattr(variant, field)
                )
                raise StoreError(
                    f"{store.root} knows variant {variant.name!r} with {changed}="
                    f"{getattr(old, changed)!r}, now it is {getattr(variant, changed)!r}: {out}"
                )
            ranges = before.space.ranges.get(variant.name)
            if ranges is not None and ranges != experiment.space.ranges[variant.name]:
                raise StoreError(f"{store.root} searched variant {variant.name!r} over other ranges: {out}")
    write_json(store.experiment, experiment.model_dump(mode="json"), store.files)


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


def _git_state() -> str:
    """The commit of the code, with a + where it was changed; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()
    return ""
