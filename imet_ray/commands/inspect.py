"""The stages of the command line that only read a run: its status, and what other tools show of it.

Each prints what a person wants to read and returns the exit code. Servers listen on loopback until Ctrl-C.
"""

import contextlib
import time
from importlib import metadata
from pathlib import Path
from socketserver import BaseServer

from imet_ray.command_line import pasted
from imet_ray.errors import ConfigError, StoreError
from imet_ray.reporting.exports import EXPORTERS
from imet_ray.reporting.run_status import Watcher
from imet_ray.storage.run_directory import RunDirectory

DASHBOARD = "optuna-dashboard>=0.21,<1"
DRIVERS = {"postgresql": ("sqlalchemy>=2.1,<3", "psycopg[binary]>=3.2,<4")}  # as in pyproject.toml
CHANGES = "while a sweep runs, change nothing there: it can rename and delete studies"
AGAIN_S = 10.0  # a served tool is given the trials that ended meanwhile


def status(store: RunDirectory, port: int | None) -> int:
    """Print how far the run is, or serve it as a page.

    Raises:
        ConfigError: if the port is taken.
    """
    watcher = Watcher(store)
    if port is None:
        print(watcher.look().text())
        return 0
    from imet_ray.reporting.status_page import serve

    try:
        return serve_on(serve(watcher.look, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--serve {port}: {error}: give another port") from None


def serve_on(server: BaseServer) -> int:
    """Say where a server is, and run it until Ctrl-C."""
    with server:
        print(f"http://127.0.0.1:{server.server_address[1]}  (Ctrl-C ends it)")  # type: ignore[index]
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def export(store: RunDirectory, tool: str, port: int | None) -> int:
    """Write the ended trials for a tool of EXPORTERS; with a port, serve them, and write more until Ctrl-C."""
    exporter = EXPORTERS[tool]
    new, total = exporter.write(store)
    print(f"{new} trials written, {total - new} were there: {exporter.place(store)}")
    if port is None or exporter.serve is None:
        print(exporter.hint(store))
        return 0
    print(f"{exporter.serve(store, port)}  (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(AGAIN_S)
            exporter.write(store)
    return 0


def optuna_dashboard(store: RunDirectory, url: str | None, port: int | None) -> int:
    """Print the command that shows the studies in a browser.

    Args:
        url: of the Optuna storage that the sweep had; None: the run's journal, or a copy of it if it is in a bucket.

    Raises:
        ConfigError: if the URL is malformed, or names an SQLite file that does not exist.
        StoreError: if the run has no journal.
    """
    packages, storage, remarks = _journal(store) if url is None else _database(store, url)
    command = ["uvx", "--from", DASHBOARD]
    for package in (f"optuna=={metadata.version('optuna')}", *packages):  # which reads what ours has written
        command += ["--with", package]
    options = ["--port", str(port)] if port is not None else []
    print(pasted(*command, "optuna-dashboard", *storage, *options))
    print("\n".join(f"  {remark}" for remark in remarks))
    return 0


def _journal(store: RunDirectory) -> tuple[list[str], list[str], list[str]]:
    """Packages, storage and remarks for optuna-dashboard."""
    journal = store.fetch_seen()
    if not journal.exists():
        where = store.files.address(store.root)
        raise StoreError(f"{where} has no journal: sweep first, or add --studies URL, as the sweep had it")
    copied = journal != store.journal
    remark = "it shows a copy of the journal: run this again for a newer one" if copied else CHANGES
    return [], ["--storage-class", "JournalFileStorage", str(journal)], [remark]


def _database(store: RunDirectory, url: str) -> tuple[list[str], list[str], list[str]]:
    """Packages, storage and remarks for optuna-dashboard; the storage's URL has no password."""
    import sqlalchemy  # a quarter of a second

    try:
        found = sqlalchemy.make_url(url)
    except (ValueError, sqlalchemy.exc.ArgumentError):
        raise ConfigError(
            "--studies takes a URL such as sqlite:///studies.db or postgresql://HOST/DATABASE"
        ) from None
    kind = found.get_backend_name()
    if kind == "sqlite" and not Path(found.database or "").is_file():
        raise ConfigError(f"--studies: there is no file {found.database}")  # optuna-dashboard would make one
    remarks = [CHANGES]
    if store.studies_id.exists():
        remarks.append(
            f"this run's studies are called {store.root.name}-{store.studies_id.read_text()}/VARIANT"
        )
    secrets = [key for key in found.query if "pass" in key]
    if found.password is not None or secrets:
        way = "set PGPASSWORD" if kind == "postgresql" else "put it into the URL again"
        remarks.append(f"the password is left out: {way}")
    public = found._replace(password=None).difference_update_query(secrets)
    return list(DRIVERS.get(kind, ())), [public.render_as_string(hide_password=False)], remarks
