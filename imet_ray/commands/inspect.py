"""The stages of the command line that only read a run: its status, and what other tools show of it.

Each prints what a person wants to read and returns the exit code. Servers listen on loopback until Ctrl-C.
"""

import contextlib
import time
from socketserver import BaseServer

from imet_ray.errors import ConfigError
from imet_ray.reporting.exports import EXPORTERS
from imet_ray.reporting.run_status import Watcher
from imet_ray.storage.run_directory import RunDirectory

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
