"""The folder that all runs lie in, here or in a bucket."""

import time
from dataclasses import dataclass
from pathlib import Path

from imet_ray.command_line import pasted
from imet_ray.errors import ConfigError
from imet_ray.storage.bucket_mirror import MirroredFiles
from imet_ray.storage.experiment import driven
from imet_ray.storage.files import LOCAL, Files
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.units import user_path


@dataclass(frozen=True)
class Runs:
    """The folder that all runs lie in."""

    root: Path  # on this machine, as the user gave it
    files: Files = LOCAL

    def run(self, name: str) -> RunDirectory:
        """The run of that name, which need not exist."""
        return RunDirectory((self.root / name).resolve(), self.files)

    def address(self, name: str) -> str:
        """The run as the user would type it."""
        return self.files.address(self.root / name)

    def open(self, name: str | None) -> RunDirectory:
        """The run of that name; else the one that was driven last. What is small of it is brought here.

        Raises:
            ConfigError: if there is none, naming those that exist, or if copies of a run cannot be told apart.
        """
        where = self.files.address(self.root)
        found = self._newest() if name is None else self.run(name)
        found.fetch()
        if not found.experiment.exists():
            known = ", ".join(run.root.name for run in self._begun()) or "none yet"
            raise ConfigError(f"no run {name!r} in {where}: choose one of: {known}")
        return found

    def _newest(self) -> RunDirectory:
        """The run that was driven last, as it says itself. A copy of a run says the same, and the run's name."""
        where = self.files.address(self.root)
        begun = [(run, driven(run)) for run in self._begun()]
        if not begun:
            start = pasted("python", "launch.py", "--sweep", *([] if where == "runs" else ["--runs", where]))
            raise ConfigError(f"no run in {where}: start one with `{start}`")
        last = max(said.at for _, said in begun)
        newest = {run.root.name: said.run for run, said in begun if said.at == last}
        names = list(newest) if len(newest) == 1 else [name for name in newest if newest[name] == name]
        if len(names) != 1:
            raise ConfigError(
                f"which run in {where} was driven last is not known: give --name, one of: {', '.join(newest)}"
            )
        return self.run(names[0])

    def _begun(self) -> list[RunDirectory]:
        """Runs that have an experiment, by name."""
        found = {self.run(name) for name in self.files.folders(self.root)}  # once, where there are links
        for run in found:
            self.files.fetch_file(run.experiment)
        return sorted((run for run in found if run.experiment.exists()), key=lambda run: run.root)


def runs_at(where: str, cache: Cache) -> Runs:
    """The runs at a path, or at a URL such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER.

    Raises:
        ConfigError: for a URL that is none, or that holds a password.
    """
    if "://" not in where:
        return Runs(user_path(where))
    files = MirroredFiles.of(where, cache.root)
    return Runs(files.root, files)


def set_aside(root: Path) -> Path:
    """Rename a run directory so that its name is free; nothing is deleted."""
    kept = root.with_name(f"{root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    root.rename(kept)
    return kept
