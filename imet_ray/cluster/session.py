"""Starting or joining Ray, and how many trials fit on it."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from imet_ray.errors import ConfigError
from imet_ray.space import Resources

ANSWER_S = 5.0  # that a head has to answer


@dataclass(frozen=True)
class Session:
    """A Ray that runs, as the stages see it."""

    dashboard: str | None  # http address on this machine
    cpus_per_trial: float
    gpus_per_trial: float
    loader_workers: int
    slots: int  # trials at once

    @property
    def threads(self) -> int:
        """Compute threads of one trial."""
        return max(1, int(self.cpus_per_trial))


def prepare_environment() -> None:
    """Set what Ray reads from the environment; before it is imported."""
    # under `uv run` Ray would zip the working directory and build an environment a worker: +7 s, for nothing
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning each worker
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # its CSV and JSON; we have our own
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune gives a reused actor 2 s to leave its last trial; on a busy machine that is too short
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")


@contextlib.contextmanager
def ray_session(
    resources: Resources, *, address: str | None = None, concurrency: int | None = None
) -> Iterator[Session]:
    """Start a Ray of our own, or join the one at `address`; shut down our side at the end.

    Without an address another Ray that happens to run on this machine is never joined.

    Raises:
        ConfigError: if there is no Ray at `address`, or no trial fits on it.
    """
    if address is not None and address.startswith("ray://"):
        raise ConfigError("--address takes auto or HOST:PORT, not ray://: run this on a node of the cluster")
    if address not in (None, "auto"):
        _refuse_nobody(address)
    prepare_environment()
    import ray

    try:
        context = ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            dashboard_host="127.0.0.1" if address is None else None,
            configure_logging=True,
        )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if address is None:
            raise ConfigError(f"Ray does not start on this machine: {first}") from error
        raise ConfigError(
            f"no Ray to join at {address!r} ({first}): start one with `ray start --head`, or leave out --address"
        ) from error
    try:
        url = context.dashboard_url
        yield _fit(
            resources,
            ray.cluster_resources(),
            dashboard=f"http://{url}" if url else None,
            concurrency=concurrency,
            joined=address is not None,
        )
    finally:
        ray.shutdown()


def _refuse_nobody(address: str) -> None:
    """Ask whether anyone listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigError(f"--address takes auto or HOST:PORT, got {address[:60]!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"nobody answers at {address} ({error}): start a Ray with `ray start --head`, or leave out --address"
        ) from None


def _fit(
    resources: Resources,
    total: dict[str, float],
    *,
    dashboard: str | None,
    concurrency: int | None,
    joined: bool,
) -> Session:
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    wanted = resources.gpus_per_trial
    gpus_per_trial = (1.0 if gpus else 0.0) if wanted == "auto" else float(wanted)
    slots = int(cpus / resources.cpus_per_trial + 1e-9)
    if gpus_per_trial:
        on_one = int(1 / gpus_per_trial + 1e-9)  # a fraction lies on one GPU
        slots = min(slots, int(gpus) * on_one if on_one else int(gpus / gpus_per_trial))
    if slots < 1 and not joined:
        raise ConfigError(
            f"no trial fits: it needs {resources.cpus_per_trial:g} CPUs and {gpus_per_trial:g} GPUs, "
            f"there are {cpus:g} and {gpus:g}: lower cpus_per_trial or gpus_per_trial"
        )
    if concurrency is not None:
        slots = min(slots, concurrency) if not joined else concurrency
    on_a_gpu = max(0, int(resources.cpus_per_trial) - 1) if gpus_per_trial else 0
    # on a CPU the model needs the cores itself
    workers = on_a_gpu if resources.loader_workers == "auto" else resources.loader_workers
    return Session(dashboard, resources.cpus_per_trial, gpus_per_trial, workers, max(1, slots))
