"""Where artefacts lie and how they are written: the only module that makes their paths.

Writes go to a temporary name beside the target and are put in place by `os.replace`, so a file that exists
is whole. A trial's `result.json` is written last: it means that the trial is done. A run may lie in a bucket: its
directory here is then a twin (`imet_ray.remote`), whose files go to the bucket before they are put in place. What is
inside the files is the business of the modules that write them.
"""

import contextlib
import errno
import hashlib
import importlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from imet_ray.errors import ConfigError, StoreError

Model = TypeVar("Model", bound=BaseModel)
TEXT_LIMIT = 1 << 28  # bytes: what has more is none of ours

SCHEMES = ("s3",)
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
FENCED = ("last.pt", "best.safetensors")  # large: an older twin's write may come late
WRITERS = ("spec.json", "splits.json", "metrics.jsonl", "result.json", *FENCED)  # what a trial goes on from


class SupersededError(Exception):
    """Another process has taken over this trial; this one must stop writing and leave quietly."""


@dataclass(frozen=True)
class Store:
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
    def studies_id(self) -> Path:
        return self.root / "studies.id"

    @property
    def packs(self) -> Path | None:
        """Where the nodes share packed pictures, if the run lies in a bucket: beside all runs there."""
        return self.root.parent / "_packs" if is_twin(self.root) else None  # no run's name begins so

    def fetch(self, *, owner: bool = False) -> None:
        """Where the run lies in a bucket: bring what is small, of all trials at once.

        Args:
            owner: we drive the run. Then the journal comes, too, and what the bucket lacks goes.
        """
        if is_twin(self.root):
            _remote().fetch(self.root, SMALL, owner=owner)
            if owner:
                _remote().fetch_log(self.journal)

    def publish_journal(self) -> None:
        """Send the studies to the bucket, where the run lies in one."""
        if is_twin(self.root) and self.journal.exists():
            _remote().publish(self.journal, self.journal)

    @contextlib.contextmanager
    def leased(self, who: str) -> Iterator[None]:
        """Where the run lies in a bucket: keep drivers on other machines away, and bring what they left.

        Raises:
            ConfigError: if one of them lives.
        """
        if not is_twin(self.root):
            yield
            return
        with importlib.import_module("imet_ray" + ".lease").held(self.root / "driver.json", who):
            self.fetch(owner=True)
            yield
            _remote().write_index(self.root, SMALL)  # the next machine has 1 file to read, not thousands

    def trial(self, trial_id: str) -> "TrialStore":
        return TrialStore(self.root / "trials" / trial_id)

    def trials(self) -> list["TrialStore"]:
        """All trials that were ever started here, by id."""
        return [TrialStore(path) for path in sorted(self.root.glob("trials/*")) if path.is_dir()]

    def begun_trials(self) -> list["TrialStore"]:
        """Those of them that got as far as writing their spec."""
        return [trial for trial in self.trials() if trial.spec.exists()]

    def ensemble(self, name: str) -> "EnsembleStore":
        return EnsembleStore(self.root / "ensembles" / name)


@dataclass(frozen=True)
class TrialStore:
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
        return self.root / "writer.token"

    def fetch(self, *paths: Path) -> None:
        """Where the run lies in a bucket: bring these of the trial's files."""
        if is_twin(self.root):
            _remote().fetch(self.root, [path.name for path in paths])

    def fetch_all(self) -> None:
        """The same, of all that a trial goes on from; for its writer, who may be on another node than the last one."""
        if is_twin(self.root):
            _remote().fetch(self.root, WRITERS, fenced=FENCED, owner=True)

    def acquire(self) -> str:
        """Become the writer of this directory; whoever was it before is superseded."""
        token = secrets.token_hex(8)
        write_text(self.token, token)
        return token

    def check(self, token: str) -> None:
        """Raise `SupersededError` if another writer has taken over since `acquire` gave `token`."""
        if is_twin(self.root):
            now = _remote().read_text(self.token)
        else:
            now = self.token.read_text(errors="replace") if self.token.is_file() else None
        if now != token:
            raise SupersededError(str(self.root))


@dataclass(frozen=True)
class EnsembleStore:
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


def runs_at(runs: str, cache: Cache) -> Path:
    """Where the runs lie on this machine, of a path or a URL such as s3://BUCKET/FOLDER.

    Raises:
        ConfigError: for a URL that is none, or that holds a password.
    """
    if runs.partition("://")[0] in SCHEMES:
        path: Path = _remote().local_twin(runs, cache.root)
        return path
    if "://" in runs:
        raise ConfigError(f"--runs takes a path or s3://, not {runs.partition('://')[0][:40]}://")
    return Path(runs)


def is_twin(path: Path) -> bool:
    """True if the path is the local twin of an object in a bucket."""
    return any(f"{scheme}:" in path.parts for scheme in SCHEMES)


def shown(path: Path) -> str:
    """A path as the user gave it: a twin's URL."""
    for i, part in enumerate(path.parts):
        if part[:-1] in SCHEMES and part.endswith(":"):
            return f"{part}//{'/'.join(path.parts[i + 1 :])}"
    return str(path)


def newest_run(runs: Path) -> Store:
    """The run in `runs` whose experiment was written last.

    Raises:
        ConfigError: if there is none.
    """
    if is_twin(runs):
        for name in _remote().folders(runs):
            Store(runs / name).root.mkdir(parents=True, exist_ok=True)
            _remote().fetch_one(Store(runs / name).experiment)
    found = sorted(runs.glob("*/experiment.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no run in {shown(runs)}: start one with `python launch.py --sweep`")
    store = Store(found[-1].parent)
    store.fetch()
    return store


def open_run(runs: Path, name: str) -> Store:
    """The run called `name`.

    Raises:
        ConfigError: if there is none, naming those that exist.
    """
    store = Store(runs / name)
    store.fetch()
    if not store.experiment.exists():
        names = (
            _remote().folders(runs)
            if is_twin(runs)
            else [p.parent.name for p in runs.glob("*/experiment.json")]
        )
        known = ", ".join(sorted(names)) or "none yet"
        raise ConfigError(f"no run {name!r} in {shown(runs)}: choose one of: {known}")
    return store


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, put in its place when the block ends well.

    Raises:
        StoreError: one line, if the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if is_twin(path):
            _publish(temporary, path)
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # such as a folder that is a file: said above
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete an artefact, if it is there; in the bucket, too."""
    if is_twin(path):
        _remote().delete(path)
    path.unlink(missing_ok=True)


def size_of(path: Path) -> int | None:
    """Bytes of an artefact, here or in the bucket; None if there is none."""
    if is_twin(path):
        found = _remote().head(path)
        return found.size if found else None
    return path.stat().st_size if path.exists() else None


def copy_pack(path: Path, shared: Path) -> bool:
    """Copy a whole pack from the bucket, checked by its sha256; False if none is there."""
    return bool(_remote().copy_checked(path, shared / path.name))


def share_pack(path: Path, shared: Path) -> None:
    """Put a whole pack into the bucket, if it is not there yet."""
    _remote().share_checked(path, shared / path.name)


def _publish(source: Path, path: Path) -> None:
    token = TrialStore(path.parent).token if path.name in FENCED else None
    if not _remote().publish(source, path, token=token):
        raise SupersededError(str(path.parent))


def _remote() -> Any:
    """`imet_ray.remote`: by a name made here, so that a kernel, which has no bucket, is built without it."""
    return importlib.import_module("imet_ray" + ".remote")


def disk_error(path: Path, error: OSError) -> StoreError:
    """The one line for an artefact that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"disk full while writing {path}: free some space, then run the same command")
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, atomically. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def regular(path: Path, *, limit: int | None = None) -> Path:
    """The path itself, if a file of bounded size is there: a pipe or a device could be read for ever.

    Args:
        limit: bytes.

    Raises:
        StoreError: if something else is there, or nothing, or too much.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except OSError as error:
        raise damaged(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, "it is no file")
    if limit is not None and found.st_size > limit:
        raise damaged(path, f"{found.st_size:,} bytes are too many")
    return path


def damaged(path: Path, why: object) -> StoreError:
    """What to say of an artefact that cannot be read."""
    return StoreError(f"{path} is damaged ({_short(why)}): delete it and run the same command")


def _short(why: object) -> str:
    return " ".join(str(why).split())[:300]


def read_text(path: Path) -> str:
    """Read a text artefact.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        return regular(path, limit=TEXT_LIMIT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from None


def read_json(path: Path) -> Any:
    """Read a JSON artefact.

    Raises:
        StoreError: if it is missing or damaged.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a JSON artefact that holds one of our frozen models.

    Raises:
        StoreError: if it is missing, damaged, or of another version.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise damaged(path, f"or of another version: {where}: {first['msg']}") from None


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read what `write_json_lines` wrote; nothing if there is no file.

    Raises:
        StoreError: if it is damaged.
    """
    if not path.exists():
        return []
    lines = read_text(path).splitlines()
    try:
        rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "a line is no object")
    return rows


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file, atomically."""
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file whole.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        with regular(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except StoreError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise damaged(path, error) from None


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(root: Path) -> Path:
    """Rename a run directory so that its name is free; nothing is deleted."""
    kept = root.with_name(f"{root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    root.rename(kept)
    return kept
