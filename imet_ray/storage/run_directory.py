"""Where artefacts lie: the only module that makes their paths.

A trial's `result.json` is written last: it means that the trial is done. A run may lie in a bucket: its directory
here is then a twin (`imet_ray.storage.bucket_mirror`), whose files go to the bucket before they are put in place. How
files are written is `imet_ray.storage.files`, how they are read back `imet_ray.storage.checked_read`.
"""

import contextlib
import importlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imet_ray.storage.files import FENCED, TOKEN, SupersededError, is_twin, remote, write_text

SMALL = (
    "experiment.json",
    "folds.csv",
    "studies.id",
    "spec.json",
    "result.json",
    "metrics.jsonl",
    "ensemble.json",
    "half.json",
)
WRITERS = ("spec.json", "splits.json", "metrics.jsonl", "result.json", *FENCED)  # what a trial goes on from


@dataclass(frozen=True)
class RunDirectory:
    """One run directory: `runs/<name>`."""

    root: Path

    @property
    def experiment(self) -> Path:
        return self.root / "experiment.json"

    @property
    def folds(self) -> Path:
        return self.root / "folds.csv"

    @property
    def journal(self) -> Path:
        return self.root / "studies.journal"

    @property
    def tune(self) -> Path:
        return self.root / "tune"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def tensorboard_written(self) -> Path:
        return self.tensorboard / "written.json"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def driver_lock(self) -> Path:
        return self.root / "driver.lock"

    @property
    def lease(self) -> Path:
        return self.root / "driver.json"

    @property
    def studies_id(self) -> Path:
        return self.root / "studies.id"

    @property
    def packs(self) -> Path | None:
        """Where the nodes share packed pictures, if the run lies in a bucket: beside all runs there."""
        return self.root.parent / "_packs" if is_twin(self.root) else None  # no run's name begins so

    def fetch(self, *, owner: bool = False) -> set[Path]:
        """Where the run lies in a bucket: bring what is small, of all trials at once.

        Returns what stays there of out-of-fold predictions, as their places here.

        Args:
            owner: we drive the run. Then the journal comes, too, and what the bucket lacks goes.
        """
        if not is_twin(self.root):
            return set()
        there: set[Path] = remote().fetch(self.root, SMALL, listed=("oof.npz",), owner=owner)
        if owner:
            remote().fetch_log(self.journal, self.journal)
        return there

    def fetch_seen(self, *, live: bool) -> Path:
        """The studies for who only looks: the journal, or where it lies in a bucket a copy, for a driver's is its own.

        Args:
            live: the copy is being read, and only grows.
        """
        if not is_twin(self.root):
            return self.journal
        seen = self.root / "studies.seen"
        remote().fetch_log(self.journal, seen, live=live)
        return seen

    def publish_journal(self) -> None:
        """Send the studies to the bucket, where the run lies in one."""
        if is_twin(self.root) and self.journal.exists():
            remote().publish(self.journal, self.journal)

    @contextlib.contextmanager
    def leased(self, who: str) -> Iterator[None]:
        """Where the run lies in a bucket: keep drivers on other machines away, and bring what they left.

        Raises:
            ConfigError: if one of them lives.
        """
        if not is_twin(self.root):
            yield
            return
        with _leases().held(self.lease, who):
            self.fetch(owner=True)
            yield
            remote().write_index(self.root, SMALL)  # the next machine has 1 file to read, not thousands

    def leaseholder(self) -> str:
        """Who drives a run in a bucket on another machine; empty: nobody does, or it lies in none."""
        holder: str = _leases().holder(self.lease) if is_twin(self.root) else ""
        return holder

    def trial(self, trial_id: str) -> "TrialDirectory":
        return TrialDirectory(self.root / "trials" / trial_id)

    def trials(self) -> list["TrialDirectory"]:
        """All trials that were ever started here, by id."""
        return [TrialDirectory(path) for path in sorted(self.root.glob("trials/*")) if path.is_dir()]

    def begun_trials(self) -> list["TrialDirectory"]:
        """Those of them that got as far as writing their spec."""
        return [trial for trial in self.trials() if trial.spec.exists()]

    def ensemble(self, name: str) -> "EnsembleDirectory":
        return EnsembleDirectory(self.root / "ensembles" / name)


def _leases() -> Any:
    """`imet_ray.storage.driver_lease`, likewise not part of a kernel."""
    return importlib.import_module("imet_ray" + ".storage.driver_lease")


@dataclass(frozen=True)
class TrialDirectory:
    """One trial's directory. Its writer holds a token: an older twin that lost it is told so."""

    root: Path

    @property
    def trial_id(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.root / "last.pt"

    @property
    def best(self) -> Path:
        return self.root / "best.safetensors"

    @property
    def oof(self) -> Path:
        return self.root / "oof.npz"

    @property
    def test(self) -> Path:
        return self.root / "test.npz"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def token(self) -> Path:
        return self.root / TOKEN

    def fetch(self, *paths: Path) -> None:
        """Where the run lies in a bucket: bring these of the trial's files."""
        if is_twin(self.root):
            remote().fetch(self.root, [path.name for path in paths])

    def fetch_all(self) -> None:
        """The same, of all that a trial goes on from; for its writer, who may be on another node than the last one."""
        if is_twin(self.root):
            remote().fetch(self.root, WRITERS, fenced=FENCED, owner=True)

    def acquire(self) -> str:
        """Become the writer of this directory; whoever was it before is superseded."""
        token = secrets.token_hex(8)
        write_text(self.token, token)
        return token

    def check(self, token: str) -> None:
        """Raise `SupersededError` if another writer has taken over since `acquire` gave `token`."""
        if is_twin(self.root):
            now = remote().read_text(self.token)
        else:
            now = self.token.read_text(errors="replace") if self.token.is_file() else None
        if now != token:
            raise SupersededError(str(self.root))


@dataclass(frozen=True)
class EnsembleDirectory:
    """One frozen ensemble's directory."""

    root: Path

    @property
    def ensemble(self) -> Path:
        return self.root / "ensemble.json"

    @property
    def test(self) -> Path:
        return self.root / "test.npz"

    @property
    def submission(self) -> Path:
        return self.root / "submission.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def half(self) -> Path:
        return self.root / "half.json"


@dataclass(frozen=True)
class Cache:
    """What can be made again: generated data sets and packed pictures, shared by all runs."""

    root: Path

    @classmethod
    def default(cls) -> "Cache":
        """`$IMET_RAY_CACHE`, else `$XDG_CACHE_HOME/imet_ray`, else `~/.cache/imet_ray`."""
        named = os.environ.get("IMET_RAY_CACHE")
        if named:
            return cls(Path(named).expanduser().resolve())
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return cls(Path(base).expanduser().resolve() / "imet_ray")

    def pack(self, data_digest: str, split: str, short_side: int) -> Path:
        return self.root / "packs" / f"{data_digest[:16]}-{split}-{short_side}"


def copy_pack(path: Path, shared: Path) -> bool:
    """Copy a whole pack from the bucket, checked by its sha256; False if none is there."""
    return bool(remote().copy_checked(path, shared / path.name))


def share_pack(path: Path, shared: Path) -> None:
    """Put a whole pack into the bucket, if it is not there yet."""
    remote().share_checked(path, shared / path.name)
