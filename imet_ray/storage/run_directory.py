"""Where artefacts lie: the only module that makes their paths.

A trial's `result.json` is written last: it means that the trial is done. How files are written, and where they lie,
is `imet_ray.storage.files`; how they are read back is `imet_ray.storage.checked_read`.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imet_ray.errors import ConfigError
from imet_ray.storage.files import LOCAL, Files, SupersededError, write_text
from imet_ray.units import user_path

FENCED = ("last.pt", "best.safetensors")  # large: an older writer's write may come late
TOKEN = "writer.token"  # of a trial's directory
SMALL = (
    "experiment.json",
    "folds.csv",
    "labels.csv",
    "studies.id",
    "spec.json",
    "result.json",
    "metrics.jsonl",
    "ensemble.json",
    "half.json",
    "rate.json",
)
WRITERS = ("spec.json", "splits.json", "metrics.jsonl", "result.json", *FENCED)  # what a trial goes on from


class Place:
    """Where a file lies in its directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, directory: Any, owner: type) -> Path:
        return Path(directory.root / self.name)


@dataclass(frozen=True)
class RunDirectory:
    """One run directory: `runs/<name>`."""

    root: Path
    files: Files = LOCAL

    @property
    def options(self) -> list[str]:
        """What leads a command line to this run."""
        where = self.files.address(self.root.parent)
        return ["--name", self.root.name, *([] if where == "runs" else ["--runs", where])]

    experiment = Place("experiment.json")
    folds = Place("folds.csv")
    labels = Place("labels.csv")  # ids and names, which outlive the data
    journal = Place("studies.journal")
    tune = Place("tune")
    tensorboard = Place("tensorboard")
    tensorboard_written = Place("tensorboard/written.json")
    mlflow = Place("mlflow.db")
    driver_lock = Place("driver.lock")
    lease = Place("driver.json")
    driven = Place("driven.json")
    studies_id = Place("studies.id")

    @property
    def packs(self) -> "SharedPacks":
        return SharedPacks(self.root.parent / "_packs", self.files)  # no run's name begins so

    def fetch(self, *, owner: bool = False) -> set[Path]:
        """Bring what is small, of all trials at once, to this machine.

        Returns all files that lie elsewhere, large ones too, as their places here.

        Args:
            owner: we drive the run. Then the journal comes, too, and what was deleted elsewhere goes.
        """
        elsewhere = self.files.fetch(self.root, SMALL, owner=owner)
        if owner:
            self.files.fetch_log(self.journal, self.journal)
        return elsewhere

    def fetch_seen(self) -> Path:
        """The studies for who only looks: the journal, or a copy where it lies elsewhere, for a driver's is its own."""
        return self.files.fetch_log(self.journal, self.root / "studies.seen")

    def publish_journal(self) -> None:
        """Let other machines see the studies as they are."""
        if self.journal.exists():
            self.files.publish(self.journal)

    @contextlib.contextmanager
    def leased(self, who: str) -> Iterator[None]:
        """Keep drivers on other machines away, and bring what they left.

        Raises:
            ConfigError: if one of them lives.
        """
        with self.files.leased(self.lease, who):
            self.fetch(owner=True)
            yield

    def leaseholder(self) -> str:
        """Who drives the run on another machine; empty: nobody does."""
        return self.files.leaseholder(self.lease)

    def label_source(self, source: str, suffix: str) -> Path:
        """The run's own copy of what pseudo-labels come from.

        Args:
            source: as the space names it.
            suffix: .json, or .npz.
        """
        tag = hashlib.sha256(source.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", source.removesuffix(".npz"))[-60:].strip("_.")
        return self.root / "label_sources" / f"{name}-{tag}{suffix}"

    def rate(self, variant: str, fold: int) -> "RateDirectory":
        return RateDirectory(self.root / "rates" / f"{variant}-fold{fold}", self.files)

    def trial(self, trial_id: str) -> "TrialDirectory":
        return TrialDirectory(self.root / "trials" / trial_id, self.files)

    def trials(self) -> list["TrialDirectory"]:
        """All trials that were ever started here, by id."""
        paths = sorted(self.root.glob("trials/*"))
        return [TrialDirectory(path, self.files) for path in paths if path.is_dir()]

    def begun_trials(self) -> list["TrialDirectory"]:
        """Those of them that got as far as writing their spec."""
        return [trial for trial in self.trials() if trial.spec.exists()]

    def ensemble(self, name: str) -> "EnsembleDirectory":
        """Where an ensemble lies.

        Raises:
            ConfigError: for what is no name, such as a path.
        """
        if not name or Path(name).name != name:
            raise ConfigError(
                f"an ensemble is named by its folder in {self.root / 'ensembles'}, got {name!r}: leave out the rest"
            )
        return EnsembleDirectory(self.root / "ensembles" / name, self.files)


@dataclass(frozen=True)
class TrialDirectory:
    """One trial's directory. Its writer holds a token: an older writer that lost it is told so."""

    root: Path
    files: Files = LOCAL

    @property
    def trial_id(self) -> str:
        return self.root.name

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.root.parents[1], self.files)

    spec = Place("spec.json")
    metrics = Place("metrics.jsonl")
    last = Place("last.pt")
    start = Place("start.safetensors")  # untrained weights from another machine; else the recipe's are taken
    best = Place("best.safetensors")
    added = Place("added.npz")  # the pseudo-labels of its training pictures
    oof = Place("oof.npz")
    test = Place("test.npz")
    result = Place("result.json")
    splits = Place("splits.json")
    token = Place(TOKEN)

    def oof_of(self, views: str | None) -> Path:
        """Out-of-fold predictions of other views than the recipe's own; None: `oof`."""
        return self.oof if views is None else self.root / f"oof-{views}.npz"

    def test_of(self, views: str | None) -> Path:
        """Likewise of the test split."""
        return self.test if views is None else self.root / f"test-{views}.npz"

    def fetch(self, *paths: Path) -> None:
        """Bring these of the trial's files to this machine."""
        self.files.fetch(self.root, [path.name for path in paths])

    def fetch_all(self) -> None:
        """Bring all that a trial goes on from; for its writer, who may be on another node than the last one."""
        self.files.fetch(self.root, WRITERS, owner=True)

    def acquire(self) -> str:
        """Become the writer of this directory; whoever was it before is superseded."""
        token = secrets.token_hex(8)
        write_text(self.token, token, self.files)
        return token

    def check(self, token: str) -> None:
        """Raise `SupersededError` if another writer has taken over since `acquire` gave `token`."""
        if self.files.read_now(self.token) != token:
            raise SupersededError(str(self.root))


@dataclass(frozen=True)
class RateDirectory:
    """What the learning-rate finder found for one variant on one fold."""

    root: Path
    files: Files = LOCAL

    rate = Place("rate.json")
    curve = Place("curve.npz")
    page = Place("curve.html")


@dataclass(frozen=True)
class EnsembleDirectory:
    """One frozen ensemble's directory."""

    root: Path
    files: Files = LOCAL

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.root.parents[1], self.files)

    ensemble = Place("ensemble.json")
    oof = Place("oof.npz")
    test = Place("test.npz")
    submission = Place("submission.csv")
    report = Place("report.html")
    half = Place("half.json")

    def test_of(self, views: str) -> Path:
        """Predictions of the test split with other views than the ensemble's."""
        return self.root / f"test-{views}.npz"

    def submission_of(self, views: str) -> Path:
        """The submission that is made of them."""
        return self.root / f"submission-{views}.csv"

    @property
    def of_other_views(self) -> list[Path]:
        """All of these files that there are."""
        return sorted([*self.root.glob("test-*.npz"), *self.root.glob("submission-*.csv")])


@dataclass(frozen=True)
class ExportedDirectory:
    """A folder that is all that an ensemble needs to tag new pictures, wherever it is copied to."""

    root: Path
    files: Files = LOCAL

    ensemble = Place("ensemble.json")
    labels = Place("labels.csv")
    card = Place("README.md")
    weights = Place("weights")
    onnx = Place("onnx")
    hub = Place("hub")

    @property
    def entries(self) -> list[Path]:
        """All that may lie in it."""
        return [self.ensemble, self.labels, self.card, self.weights, self.onnx, self.hub]

    def weights_of(self, trial_id: str) -> Path:
        """A trial's weights, as its `best` is."""
        return self.weights / f"{trial_id}.safetensors"

    def onnx_of(self, trial_id: str) -> Path:
        """The same model for ONNX Runtime."""
        return self.onnx / f"{trial_id}.onnx"


@dataclass(frozen=True)
class Cache:
    """What can be made again: generated datasets and packed pictures, shared by all runs."""

    root: Path

    @classmethod
    def at(cls, given: Path | None) -> "Cache":
        """The cache that the user named, or the default one."""
        return cls(given.resolve()) if given else cls.default()

    @classmethod
    def default(cls) -> "Cache":
        """`$IMET_RAY_CACHE`, else `$XDG_CACHE_HOME/imet_ray`, else `~/.cache/imet_ray`."""
        named = os.environ.get("IMET_RAY_CACHE")
        if named:
            return cls(user_path(named).resolve())
        base = os.environ.get("XDG_CACHE_HOME")
        if base:
            return cls(user_path(base).resolve() / "imet_ray")
        try:
            return cls(Path.home().resolve() / ".cache" / "imet_ray")
        except RuntimeError:
            raise ConfigError(
                "there is no home directory for the cache: give --cache DIR, or set HOME"
            ) from None

    def pack(self, data_digest: str, split: str, short_side: int) -> Path:
        return self.root / "packs" / f"{data_digest[:16]}-{split}-{short_side}"

    def contents(self, data: Path) -> Path:
        """Where the digests of a data directory's files are remembered."""
        tag = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
        return self.root / "contents" / f"{tag}.json"


@dataclass(frozen=True)
class SharedPacks:
    """Packed images that the nodes of a cluster give each other, where the runs lie in a bucket."""

    root: Path
    files: Files

    def copy(self, path: Path) -> bool:
        """Put a pack that another node shared into place, checked; False if there is none."""
        return self.files.copy_shared(path, self.root / path.name)

    def share(self, path: Path) -> None:
        """Give a whole pack to the other nodes, if they have none yet."""
        self.files.share(path, self.root / path.name)
