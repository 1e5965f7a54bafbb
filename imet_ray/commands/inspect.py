"""The stages of the command line that only read a run: its status, and what other tools show of it.

Each prints what a person wants to read and returns the exit code. Servers listen on loopback until Ctrl-C.
"""

import contextlib
import os
import time
from importlib import metadata
from socketserver import BaseServer

from imet_ray.errors import ConfigError
from imet_ray.reporting.run_status import Watcher
from imet_ray.storage.run_directory import RunDirectory

AGAIN_S = 10.0  # a served TensorBoard is given the trials that ended meanwhile


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


def tensorboard(store: RunDirectory, port: int | None) -> int:
    """Write TensorBoard's files, and serve them, if there is a port."""
    from imet_ray.reporting.tensorboard_export import start_server, write_events

    new, total = write_events(store)
    print(f"{new} trials written, {total - new} were there: {store.tensorboard}")
    if port is None:
        print("look: the same command with --serve")
        return 0
    print(f"{start_server(store, port)}  (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(AGAIN_S)
            write_events(store)
    return 0


def mlflow(store: RunDirectory) -> int:
    """Log to MLflow."""
    from imet_ray.reporting.mlflow_export import URI, local_uri, log_runs

    new, total = log_runs(store)
    there = f"{total - new} were there"
    if os.environ.get(URI):  # which may hold a password
        print(f"{new} trials logged to ${URI}, {there}")
    else:
        print(f"{new} trials logged to {store.mlflow}, {there}")
        print(
            f"look: uvx mlflow@{metadata.version('mlflow-skinny')} ui --backend-store-uri {local_uri(store)}"
        )
    return 0
