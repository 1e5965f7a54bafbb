"""Where the Optuna studies of a run are stored: the run's journal, or any database that Optuna opens.

The driver alone writes the journal. If the run lies in a bucket, the journal is written here and sent after changes,
for at most a tenth of the time: a lost machine costs its last seconds, and no trained epoch, as results are not in it.
A database that goes away during a sweep is waited for, as a bucket is.
"""

import contextlib
import functools
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.checked_read import damaged, regular
from imet_ray.storage.files import write_text
from imet_ray.storage.object_store import PassingError, patiently
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.timers import called_after

logger = logging.getLogger(__name__)

JOURNAL_PAUSE_S = 2.0  # at least, between two uploads of the journal
JOURNAL_PAUSES = 9.0  # the pause is at least so many times as long as the upload
SLOW_S = 90.0  # of one attempt; a dead connection is found earlier, and Optuna connects five times
LIBPQ = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # s, ms: else a dead connection is never noticed
PASSING = (  # what a database that is away raises; the last one after Optuna has ignored another
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.PendingRollbackError,
)
FAULTS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)  # all that a database may raise


class _LeaseIsLock(JournalFileSymlinkLock):
    """No lock of the journal's own: the run's lease says who drives, and the driver alone writes.

    A signal while Optuna takes or releases its lock would come out as another error.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@dataclass
class Studies:
    """The studies of one run."""

    storage: BaseStorage
    prefix: str = ""  # of the studies' names; a database may have other runs' studies
    journal_of: RunDirectory | None = None  # the run whose journal this is; None: a database
    _upload_at: float = 0.0  # of time.monotonic()

    def study(self, variant: str) -> optuna.Study:
        """The study of a variant, new or as it was left."""
        return optuna.create_study(
            study_name=self.prefix + variant, storage=self.storage, direction="maximize", load_if_exists=True
        )

    def save(self, *, last: bool = False) -> None:
        """Upload the journal, if it is time."""
        if self.journal_of is not None and (last or time.monotonic() >= self._upload_at):
            began = time.monotonic()
            self.journal_of.publish_journal()
            now = time.monotonic()
            self._upload_at = now + max(JOURNAL_PAUSE_S, JOURNAL_PAUSES * (now - began))


def journal_studies(store: RunDirectory) -> Studies:
    """The studies in a run's journal, repaired after a killed driver or a full disk (an unfinished last line).

    Raises:
        StoreError: if the journal is damaged.
    """
    path = store.journal
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = b""  # lines
    if path.is_symlink() or path.exists():
        content = regular(path).read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(path, len(whole))
    try:
        if whole:
            json.loads(whole.splitlines()[-1])  # Optuna reads a bad last line only when another follows
        return Studies(
            JournalStorage(JournalFileBackend(str(path), _LeaseIsLock(str(path)))), journal_of=store
        )
    except OSError:
        raise
    except Exception as error:  # Optuna raises whatever the first bad line causes
        raise damaged(path, error) from error


@contextlib.contextmanager
def open_studies(store: RunDirectory, url: str | None) -> Iterator[Studies]:
    """The studies of a run.

    Args:
        url: of an Optuna storage (sqlite:///FILE, postgresql://...); None: the run's journal.

    Raises:
        ConfigError: if the storage cannot be opened. No message contains the password in its URL.
        StoreError: if the journal is damaged.
    """
    if url is None:
        studies = journal_studies(store)
        yield studies
        studies.save(last=True)
        return
    if not store.studies_id.exists():  # a later run of the same name gets studies of its own
        write_text(store.studies_id, secrets.token_hex(4), store.files)
    prefix = f"{store.root.name}-{store.studies_id.read_text()}/"
    storage = open_storage(url)
    patient = _patient(optuna.storages.get_storage(storage), without_password(url))
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)  # it logs failed queries
    try:
        yield Studies(patient, prefix)
    finally:
        storage.engine.dispose()


def open_storage(url: str) -> RDBStorage:
    """A database that Optuna opens, by its URL."""
    if not re.match(r"[a-z][a-z0-9+]*://", url):
        raise ConfigError("--studies takes a URL such as sqlite:///studies.db or postgresql://HOST/DATABASE")
    try:
        # each connection is tried before it is used, because a database that restarts cuts all of them
        options = {"pool_pre_ping": True, "connect_args": LIBPQ if url.startswith("postgresql://") else {}}
        found = RDBStorage(url, engine_kwargs=options)
        found.get_all_studies()
    except ImportError:
        scheme, way = url.partition(":")[0], "install the one that SQLAlchemy names for it"
        if scheme == "postgresql":
            way = "`uv sync --extra postgres`"
        raise ConfigError(f"--studies: no driver for {scheme}:// is installed: {way}") from None
    except Exception as error:
        raise ConfigError(f"--studies: cannot open {without_password(url)}: {_reason(error, url)}") from None
    return found


def _reason(error: Exception, url: str) -> str:
    """Why a database cannot be opened, and the way out; without what it says, where that may contain the password."""
    if isinstance(error, RuntimeError) and "optuna storage upgrade" in str(error):
        return "its tables are of an older Optuna: run `optuna storage upgrade --storage URL`, once"
    said = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
    with contextlib.suppress(ValueError, sqlalchemy.exc.ArgumentError):
        found = sqlalchemy.make_url(url)
        secrets = [str(found.password or ""), *map(str, found.query.values())]
        if not any(secret and secret in said for secret in secrets):
            return f"{said} (does it exist, and is access allowed?)"
    return f"{type(error).__name__}: does it exist, and is access allowed?"


def _patient(storage: BaseStorage, where: str) -> BaseStorage:
    """That storage; each of its operations, which are transactions, is tried again while the database is away."""

    def patient(name: str) -> Callable[..., Any]:
        operation = getattr(storage, name)

        def call(self: BaseStorage, *args: Any, **kwargs: Any) -> Any:
            cut = False  # the connection was cut, and the operation perhaps carried out all the same

            def attempt() -> Any:
                nonlocal cut
                try:
                    with called_after(SLOW_S, functools.partial(_tell_of_silence, where)):
                        return operation(*args, **kwargs)
                except UpdateFinishedTrialError:
                    if name != "set_trial_state_values" or not cut:
                        raise
                    return True
                except (*PASSING, StorageInternalError) as error:
                    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                    if not isinstance(cause, PASSING):
                        raise
                    cut = True
                    raise PassingError(type(cause).__name__) from None

            return patiently(attempt, where)

        return call

    operations = {name: patient(name) for name in BaseStorage.__abstractmethods__}
    found: BaseStorage = type("PatientStorage", (BaseStorage,), operations)()
    return found


def _tell_of_silence(where: str) -> None:
    """Tell the user of a server that hangs: it is waited for without a limit."""
    logger.warning("%s has not answered for %.0f s: still waiting", where, SLOW_S)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn what a database of studies raises into one line.

    Raises:
        StoreError: if it failed during an operation, or refused it.
    """
    try:
        yield
    except FAULTS as error:
        raise StoreError(
            f"--studies: the database failed ({type(error.__cause__ or error).__name__}): its log may say why; then "
            "the same command continues"
        ) from None


def without_password(url: str) -> str:
    """A URL without its user, password and query."""
    try:
        found = sqlalchemy.make_url(url)
    except (ValueError, sqlalchemy.exc.ArgumentError):
        return f"{url.partition('://')[0]}://..."
    base = (found.database or "").rpartition("@")[2] or None
    return sqlalchemy.URL.create(
        found.drivername, host=found.host, port=found.port, database=base
    ).render_as_string()
