"""optuna-dashboard over a run's studies, on loopback. It reads: who looks on changes nothing.

The driver is the only writer, so all requests but GET are refused, and a journal's storage cannot write.
"""

import io
import logging
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from imet_ray.cluster.studies import PAUSES, open_storage
from imet_ray.curves import missing
from imet_ray.errors import ConfigError, StoreError
from imet_ray.store import Store
from imet_ray.writing import shown

logger = logging.getLogger(__name__)

AGAIN_S = 5.0  # a journal in a bucket is fetched again
App = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


class ReadOnlyJournal(BaseJournalBackend):
    """A run's journal, which only its driver writes."""

    def __init__(self, store: Store) -> None:
        self.store, self.due = store, time.monotonic() + AGAIN_S
        journal = store.fetch_seen(live=False)
        if not journal.exists():
            raise StoreError(
                f"{shown(store.root)} has no journal: sweep first, or add --studies URL, as the sweep had it"
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


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is the user's."""


def serve_studies(store: Store, port: int, url: str | None = None) -> WSGIServer:
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
    app = _only_reading(optuna_dashboard.wsgi(storage))
    if url is not None:
        app = _in_a_line(app)
    try:
        return make_server("127.0.0.1", port, app, _Server, _Quiet)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--serve {port}: {error}: give another port") from None


def _only_reading(app: App) -> App:
    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            code = HTTPStatus.FORBIDDEN
            start(f"{code.value} {code.phrase}", [("Content-Type", "application/json")])
            return [b'{"reason": "read only"}']
        return app(environment, start)

    return answer


def _in_a_line(app: App) -> App:
    """One line, without tracebacks, for a data base that is away; a page asks again every few seconds."""
    for loud in ("optuna_dashboard", "optuna.storages._rdb.storage"):  # tracebacks, queries
        logging.getLogger(loud).setLevel(logging.CRITICAL)
    failed = False

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        def begin(status: str, *more: Any) -> Callable[[bytes], object]:
            nonlocal failed
            if status.startswith("500") and not failed:
                where = environment["PATH_INFO"]
                logger.warning("optuna-dashboard has no answer for %s: is the data base away?", where)
            failed = status.startswith("500")
            return start(status, *more)

        return app(environment | {"wsgi.errors": io.StringIO()}, begin)

    return answer
