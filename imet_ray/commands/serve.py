"""The stage that serves an ensemble: an HTTP interface and a page that tag pictures, until Ctrl-C."""

import contextlib
import importlib.util
import ipaddress
import logging
import socket
from dataclasses import dataclass

from imet_ray.errors import ConfigError
from imet_ray.prediction.tagger_files import find_ensemble, with_run
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.storage.runs import Runs
from imet_ray.tagging.collection import Choice, made_by
from imet_ray.units import user_path

PACKAGES = ("fastapi", "uvicorn", "python_multipart")  # of the extra
LEAST_TOKEN = 16  # characters
DRAIN_S = 20  # that requests have to end after Ctrl-C
BACKLOG = 2048  # connections that wait to be accepted


@dataclass(frozen=True)
class Listen:
    """Where the server listens, and whom it answers."""

    port: int
    host: str = "127.0.0.1"
    token: str | None = None  # or @FILE, which holds it

    def secret(self) -> str | None:
        """The token itself.

        Raises:
            ConfigError: if it cannot be read, or is short.
        """
        if self.token is None:
            return None
        token = self.token
        if token.startswith("@"):
            try:
                token = user_path(token[1:]).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeError) as error:
                raise ConfigError(f"--token {self.token}: {error}") from None
        if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"--token must have {LEAST_TOKEN} or more letters and digits, got {len(token)}: make one with "
                "`openssl rand -hex 16`"
            )
        return token

    def open(self) -> socket.socket:
        """A socket that listens there.

        Raises:
            ConfigError: if the port is taken, the host is not this machine's, or others could reach it without a token.
        """
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port must be in 0..65535, got {self.port}")
        try:
            family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"--host {self.host}: {error}: give an address of this machine") from None
        if self.token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise ConfigError(
                f"--host {self.host} lets other machines in: give --token, which they must send, as well"
            )
        try:
            return socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"--port {self.port}: {error}: give another port or --host") from None


def serve_tags(
    ensemble: str,
    runs: Runs,
    *,
    listen: Listen,
    run: str | None = None,
    replicas: int | None = None,
    views: ViewSet | None = None,
) -> int:
    """Serve an ensemble until Ctrl-C.

    Args:
        ensemble: a folder, RUN/ENSEMBLE, or an ensemble of `run`.
        run: None: the newest one.
        replicas: None: one per GPU, or two.

    Raises:
        ConfigError: if a package is missing, the port is taken, or there is no such ensemble.
        StoreError: if it cannot predict.
    """
    refuse_missing_packages()
    token = listen.secret()
    with contextlib.closing(listen.open()) as listening:
        files = find_ensemble(with_run(ensemble, run), runs)
        files.check()
        from imet_ray.cluster.serving import replicas as started
        from imet_ray.serving.app import Served, make_app

        with started(files, count=replicas, views=views) as running:
            served = Served(
                name=files.ensemble.name,
                label_ids=files.ensemble.label_ids,
                labels=files.label_names,
                decided_by=running.decided_by,
                tagged_by=made_by(files, views, Choice()).tagged_by,
                prepare=running.prepare,
                tag=running.tag,
                ready=running.ready,
            )
            app = make_app(served, token=token)
            host, port = listening.getsockname()[:2]
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C ends it)")
            _listen(app, listening)
    return 0


def refuse_missing_packages() -> None:
    """Name what is not installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--serve-tags needs {', '.join(missing)}: `uv sync --extra serve`, or `pip install '.[serve]'` in an "
            "environment of your own"
        )


def _listen(app: object, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; those that are being answered then are answered to the end."""
    import uvicorn

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a warning for each broken request
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    with contextlib.suppress(KeyboardInterrupt):  # it ends first, then raises what it was ended by
        uvicorn.Server(config).run(sockets=[listening])
