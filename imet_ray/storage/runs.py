"""The folder that all runs lie in, here or in a bucket: its newest run, one by name, a name made free."""

import time
from pathlib import Path

from imet_ray.errors import ConfigError
from imet_ray.storage.files import SCHEMES, is_twin, remote, shown
from imet_ray.storage.run_directory import Cache, RunDirectory


def runs_at(runs: str, cache: Cache) -> Path:
    """Where the runs lie on this machine, of a path or a URL such as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.

    Raises:
        ConfigError: for a URL that is none, or that holds a password.
    """
    if runs.partition("://")[0] in SCHEMES:
        path: Path = remote().local_twin(runs, cache.root)
        return path
    if "://" in runs:
        raise ConfigError(f"--runs takes a path, s3:// or gs://, not {runs.partition('://')[0][:40]}://")
    return Path(runs)


def newest_run(runs: Path) -> RunDirectory:
    """The run in `runs` whose experiment was written last.

    Raises:
        ConfigError: if there is none.
    """
    if is_twin(runs):
        for name in remote().folders(runs):
            RunDirectory(runs / name).root.mkdir(parents=True, exist_ok=True)
            remote().fetch_one(RunDirectory(runs / name).experiment)
    found = sorted(_begun(runs), key=lambda store: store.experiment.stat().st_mtime)
    if not found:
        raise ConfigError(f"no run in {shown(runs)}: start one with `python launch.py --sweep`")
    store = found[-1]
    store.fetch()
    return store


def open_run(runs: Path, name: str) -> RunDirectory:
    """The run called `name`.

    Raises:
        ConfigError: if there is none, naming those that exist.
    """
    store = RunDirectory(runs / name)
    store.fetch()
    if not store.experiment.exists():
        names = remote().folders(runs) if is_twin(runs) else [begun.root.name for begun in _begun(runs)]
        known = ", ".join(sorted(names)) or "none yet"
        raise ConfigError(f"no run {name!r} in {shown(runs)}: choose one of: {known}")
    return store


def set_aside(root: Path) -> Path:
    """Rename a run directory so that its name is free; nothing is deleted."""
    kept = root.with_name(f"{root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    root.rename(kept)
    return kept


def _begun(runs: Path) -> list[RunDirectory]:
    return [store for path in runs.glob("*") if (store := RunDirectory(path)).experiment.exists()]
