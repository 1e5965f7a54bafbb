"""Where Optuna's studies lie: the run's journal, which the driver alone writes, or any data base that Optuna opens.

A data base that goes away during a sweep is waited for as a bucket is. A journal of a run in a bucket is written here
and sent after changes, never taking more than a tenth of the time: a lost machine costs the last seconds of it. Results
are no part of it, so no trained epoch is.
"""

import contextlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.files import write_text
from imet_ray.storage.object_store import PassingError, patiently
from imet_ray.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

PAUSE_S = 2.0  # between two times that the journal is sent, at least
PAUSES = 9.0  # times the seconds that sending it took, or fetching it
SLOW_S = 90.0  # of one attempt; a dead link is found before, and Optuna connects five times
LIBPQ = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
}  # s, ms: else a dead link is waited for without an end
PASSING = (  # what a data base that is away raises; the last one after Optuna has passed over another
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.PendingRollbackError,
)

FAULTS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)  # all that one may raise


@dataclass
class Studies:
    """The studies of one run."""

    store: RunDirectory
    storage: BaseStorage | None  # None: the run's journal
    prefix: str  # of their names; a data base may have other runs' studies
    due: float = 0.0  # of time.monotonic(): not sent again before

    def save(self, *, last: bool = False) -> None:
        """Send the journal, if it is time."""
        if self.storage is None and (last or time.monotonic() >= self.due):
            began = time.monotonic()
            self.store.publish_journal()
            now = time.monotonic()
            self.due = now + max(PAUSE_S, PAUSES * (now - began))


@contextlib.contextmanager
def open_studies(store: RunDirectory, url: str | None) -> Iterator[Studies]:
    """The studies of a run.

    Args:
        url: of an Optuna storage (sqlite:///FILE, postgresql://...); None: the run's journal.

    Raises:
        ConfigError: if the storage cannot be opened. A password in its URL is in no message.
    """
    if url is None:
        studies = Studies(store, None, "")
        yield studies
        studies.save(last=True)
        return
    if not store.studies_id.exists():  # so that a run that takes this one's name later has studies of its own
        write_text(store.studies_id, secrets.token_hex(4), store.files)
    prefix = f"{store.root.name}-{store.studies_id.read_text()}/"
    storage = open_storage(url)
    patient = _patient(optuna.storages.get_storage(storage), hidden(url))
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)  # its queries, when one fails
    try:
        yield Studies(store, patient, prefix)
    finally:
        storage.engine.dispose()


def open_storage(url: str, *, there: bool = False) -> RDBStorage:
    """A data base of Optuna's, by its URL.

    Args:
        there: nothing is made where nothing is.
    """
    if not re.match(r"[a-z][a-z0-9+]*://", url):
        raise ConfigError("--studies takes a URL such as sqlite:///studies.db or postgresql://HOST/DATABASE")
    try:
        file = sqlalchemy.make_url(url).database
        if there and url.startswith("sqlite") and not Path(file or "").is_file():
            raise FileNotFoundError(file)
        # a connection is tried before it is used, for a data base that was started again cuts all
        how = {"pool_pre_ping": True, "connect_args": LIBPQ if url.startswith("postgresql://") else {}}
        found = RDBStorage(url, engine_kwargs=how, skip_table_creation=there)
        found.get_all_studies()
    except ImportError:
        scheme = url.partition(":")[0]
        way = (
            "`uv sync --extra postgres`"
            if scheme == "postgresql"
            else "install the one that SQLAlchemy names for it"
        )
        raise ConfigError(f"--studies: no driver for {scheme}:// is installed: {way}") from None
    except Exception as error:  # of a data base's driver, whose texts may hold the URL, and so the password
        raise ConfigError(
            f"--studies: cannot open {hidden(url)}: {type(error).__name__}: is it there, and may we enter?"
        ) from None
    return found


def _patient(storage: BaseStorage, where: str) -> BaseStorage:
    """That storage; each of its operations, which are transactions, is tried again while its data base is away."""

    def patient(name: str) -> Callable[..., Any]:
        operation = getattr(storage, name)

        def call(self: BaseStorage, *args: Any, **kwargs: Any) -> Any:
            cut = False  # off, and perhaps carried out nevertheless

            def attempt() -> Any:
                nonlocal cut
                try:
                    with _told_if_slow(where):
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


@contextlib.contextmanager
def _told_if_slow(where: str) -> Iterator[None]:
    """A server that hangs with its link up is waited for as long as it does: its user hears of it."""
    timer = threading.Timer(
        SLOW_S, logger.warning, ("%s has not answered for %.0f s: still waiting", where, SLOW_S)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def data_base_faults() -> Iterator[None]:
    """What a data base of studies raises, as one line.

    Raises:
        StoreError: it broke off in the middle of something, or refused it.
    """
    try:
        yield
    except FAULTS as error:
        raise StoreError(
            f"--studies: the data base failed ({type(error.__cause__ or error).__name__}): its log may say why; then "
            "the same command continues"
        ) from None


def hidden(url: str) -> str:
    """A URL without its user, password and query: where it leads."""
    try:
        found = sqlalchemy.make_url(url)
    except (ValueError, sqlalchemy.exc.ArgumentError):
        return f"{url.partition('://')[0]}://..."
    base = (found.database or "").rpartition("@")[2] or None
    return sqlalchemy.URL.create(
        found.drivername, host=found.host, port=found.port, database=base
    ).render_as_string()
