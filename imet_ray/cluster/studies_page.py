"""optuna-dashboard over a run's studies, on loopback. It reads: who looks on changes nothing.

The driver is the only writer, so all requests but GET are refused, and a journal's storage cannot write.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from imet_ray.cluster.study_storage import FAULTS, PAUSES, open_storage
from imet_ray.errors import ConfigError, StoreError
from imet_ray.reporting.exports import missing
from imet_ray.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

AGAIN_S = 5.0  # a journal in a bucket is fetched again
SAID_S = 60.0  # of a data base that is away it is said again
VIEWS = "optuna_dashboard._bottle_util"  # the logger of what its pages raise
App = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


class ReadOnlyJournal(BaseJournalBackend):
    """A run's journal, which only its driver writes."""

    def __init__(self, store: RunDirectory) -> None:
        self.store, self.due = store, time.monotonic() + AGAIN_S
        journal = store.fetch_seen(live=False)
        if not journal.exists():
            where = store.files.address(store.root)
            raise StoreError(
                f"{where} has no journal: sweep first, or add --studies URL, as the sweep had it"
            )
        self.file = JournalFileBackend(str(journal))

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """What was added since; out of a bucket, what was added until some seconds ago."""
        if (began := time.monotonic()) >= self.due:
            try:
                self.store.fetch_seen(live=True)
            except StoreError as error:  # what was seen last is shown
                logger.warning("%s", error)
            now = time.monotonic()
            self.due = now + max(AGAIN_S, PAUSES * (now - began))
        return self.file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse."""
        raise StoreError("the studies are read only here: their sweep writes them")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    filtered: "_InALine | None" = None

    def server_close(self) -> None:
        super().server_close()
        if self.filtered is not None:
            logging.getLogger(VIEWS).removeFilter(self.filtered)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is the user's."""


def serve_studies(store: RunDirectory, port: int, url: str | None = None) -> WSGIServer:
    """A server on 127.0.0.1; the caller runs it.

    Args:
        url: of an Optuna storage, with all the studies that it has; None: the run's own journal.

    Raises:
        ConfigError: if optuna-dashboard is not installed, the storage does not open, or the port is taken.
        StoreError: if the run has no studies.
    """
    try:
        import optuna_dashboard
    except ImportError:
        raise missing("optuna-dashboard") from None
    storage = JournalStorage(ReadOnlyJournal(store)) if url is None else open_storage(url, there=True)
    app = optuna_dashboard.wsgi(storage)
    filtered = _InALine() if url is not None else None
    if filtered is not None:
        app = filtered.around(app)
        logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.CRITICAL)  # its queries
    try:
        server = make_server("127.0.0.1", port, _only_reading(app), _Server, _Quiet)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--serve {port}: {error}: give another port") from None
    if filtered is not None:
        server.filtered = filtered
        logging.getLogger(VIEWS).addFilter(filtered)
    return server


def _only_reading(app: App) -> App:
    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            code = HTTPStatus.FORBIDDEN
            start(f"{code.value} {code.phrase}", [("Content-Type", "application/json")])
            return [b'{"reason": "read only"}']
        return app(environment, start)

    return answer


class _InALine(logging.Filter):
    """What a data base raises that is away, which is a line a minute instead of a traceback; all else passes."""

    def __init__(self) -> None:
        super().__init__()
        self.due = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if not isinstance(error, FAULTS):
            return True
        self.tell(error)
        return False

    def tell(self, error: Exception) -> None:
        """Its kind only: the text of a driver may hold a password."""
        if (now := time.monotonic()) >= self.due:
            self.due = now + SAID_S
            kind = type(error.__cause__ or error).__name__
            logger.warning("--studies: the data base does not answer (%s): is it away?", kind)

    def around(self, app: Any) -> App:
        """Those pages of optuna-dashboard that do not log what they raise."""
        app.catchall = False

        def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            try:
                found: Iterable[bytes] = app(environment, start)
                return found
            except FAULTS as error:
                self.tell(error)
                code = HTTPStatus.SERVICE_UNAVAILABLE
                start(f"{code.value} {code.phrase}", [("Content-Type", "text/plain")])
                return [b"the data base does not answer"]

        return answer
