"""Starting or joining Ray, and how many trials fit on it."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imet_ray.cluster.head_watch import refuse_nobody, watched
from imet_ray.errors import ConfigError, ImetError
from imet_ray.search_space import Resources
from imet_ray.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

TRIES = 3  # to start a Ray of our own
SLOW = "timed out during startup"  # what Ray says then
LOOK_S = 5.0  # a cluster's size is looked at again


@dataclass(frozen=True)
class Slot:
    """What a worker works with, and for which run."""

    run: RunDirectory
    cpus: float
    gpus: float
    threads: int
    loader_workers: int
    joined: bool  # one of several nodes, perhaps

    def tell(self, error: ImetError) -> str:
        """What the user is told of an error here; with the node that has it, where there may be others."""
        if not self.joined:
            return str(error)
        import ray

        return f"{error} (on {socket.gethostname()}, {ray.util.get_node_ip_address()})"


@dataclass(frozen=True)
class Session:
    """A Ray that runs, as the stages see it."""

    dashboard: str | None  # http address on this machine
    cpus_per_trial: float
    gpus_per_trial: float
    loader_workers: int
    slots: int  # trials at once, as the cluster is now
    capacity: Callable[[], int]  # trials at once, as it is at any time or may become
    nodes: int = 1
    joined: bool = False  # else it is ours, on this machine
    workers_per_trial: int = 1  # each with the CPUs and GPUs of a trial

    def slot(self, run: RunDirectory) -> Slot:
        """What each worker of a run has."""
        threads = max(1, int(self.cpus_per_trial))
        return Slot(run, self.cpus_per_trial, self.gpus_per_trial, threads, self.loader_workers, self.joined)


def prepare_environment() -> None:
    """Set what Ray reads from the environment; before it is imported."""
    # under `uv run` Ray would zip the working directory and build an environment a worker: +7 s, for nothing
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning each worker
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # its CSV and JSON; we have our own
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault(
        "TUNE_PRINT_ALL_TRIAL_ERRORS", "0"
    )  # its traceback of each death; `deaths` says it in a line
    # of other people's searchers Tune keeps one trial waiting, too few for a cluster to grow by; ours holds back itself
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "100000")
    # Tune gives a reused actor 2 s to leave its last trial; on a busy machine that is too short
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")


@contextlib.contextmanager
def ray_session(
    resources: Resources, *, address: str | None = None, concurrency: int | None = None, run: str = ""
) -> Iterator[Session]:
    """Start a Ray of our own, or join the one at `address`; shut down our side at the end.

    Without an address another Ray that happens to run on this machine is never joined.

    Args:
        run: what it is for: the name of the job on Ray's pages.

    Raises:
        ConfigError: if there is no Ray at `address`, or no trial fits on it.
    """
    if address is not None and address.startswith("ray://"):
        raise ConfigError("--address takes auto or HOST:PORT, not ray://: run this on a node of the cluster")
    if address not in (None, "auto"):
        refuse_nobody(address)
    prepare_environment()
    import ray

    from imet_ray.cluster import node_environment as nodes
    from imet_ray.cluster import worker_failures as deaths

    joined = address is not None
    deaths.keep_quiet()
    context = _start_or_join(address, run)
    _close_token()
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        stack.enter_context(_ended_by_sigterm())
        if joined:
            stack.enter_context(watched(ray.get_runtime_context().gcs_address))
        url = context.dashboard_url
        yield _fit(
            resources,
            _largest if joined else ray.cluster_resources,
            dashboard=f"http://{url}" if url else None,
            concurrency=concurrency,
            joined=joined,
            nodes=nodes.refuse_other_versions() if joined else 1,
        )


def _start_or_join(address: str | None, run: str) -> Any:
    """Ray's context; a start of our own that a busy machine makes too slow for Ray is tried again."""
    import ray

    from imet_ray.cluster import node_environment as nodes

    for left in reversed(range(TRIES)):
        try:
            return ray.init(
                address=address or "local",
                runtime_env=nodes.runtime_env() if address else None,
                job_config=ray.job_config.JobConfig(metadata={"job_name": run} if run else {}),
                log_to_driver=False,
                logging_level=logging.ERROR,
                dashboard_host=None if address else "127.0.0.1",
                configure_logging=True,
            )
        except Exception as error:
            slow = address is None and SLOW in str(error)  # a plain Exception
            if not slow and not isinstance(
                error, (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError)
            ):
                raise
            if slow and left:  # what was started then (350 MB) ends with this process
                logger.warning("Ray did not start in its 30 s on this busy machine: trying again")
                continue
            first = (str(error).splitlines() or [type(error).__name__])[0]
            if address is None:
                raise ConfigError(f"Ray does not start on this machine: {first}") from error
            raise ConfigError(
                f"no Ray to join at {address!r} ({first}): start one with `ray start --head`, or leave out --address"
            ) from error
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C, where Ray would print its stack: schedulers of clusters and init systems send it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_token() -> None:
    """Ray writes the key to its clusters so that all users of the machine can read it."""
    with contextlib.suppress(OSError):
        Path("~/.ray/auth_token").expanduser().chmod(0o600)


def _largest() -> dict[str, float]:
    """Resources of the cluster that we joined, or those that its autoscaler may add to it, whichever are more."""
    import ray
    from ray._private.state import state

    found: dict[str, float] = ray.cluster_resources()
    for name, amount in (state.get_max_resources_from_cluster_config() or {}).items():
        found[name] = max(found.get(name, 0.0), float(amount))
    return found


def _fit(
    resources: Resources,
    total: Callable[[], dict[str, float]],
    *,
    dashboard: str | None,
    concurrency: int | None,
    joined: bool,
    nodes: int = 1,
) -> Session:
    now = total()
    cpus, gpus = now.get("CPU", 0.0), now.get("GPU", 0.0)
    wanted = resources.gpus_per_trial
    gpus_per_trial = (1.0 if gpus else 0.0) if wanted == "auto" else float(wanted)

    workers_per_trial = resources.workers_per_trial
    if resources.batch_norm == "sync" and not gpus_per_trial:
        raise ConfigError("batch_norm is sync, and there are no GPUs: leave it out of the space")

    def fitting(found: dict[str, float]) -> int:
        slots = int(found.get("CPU", 0.0) / resources.cpus_per_trial + 1e-9)
        if gpus_per_trial:
            on_one = int(1 / gpus_per_trial + 1e-9)  # a fraction lies on one GPU
            on_all = found.get("GPU", 0.0)
            slots = min(slots, int(on_all) * on_one)
        slots //= workers_per_trial
        if concurrency is not None:
            slots = min(slots, concurrency) if not joined else concurrency
        return max(1, slots) if joined else slots  # it may grow

    slots = fitting(now)
    if slots < 1:
        raise ConfigError(
            f"no trial fits: it needs {workers_per_trial * resources.cpus_per_trial:g} CPUs and "
            f"{workers_per_trial * gpus_per_trial:g} GPUs, there are {cpus:g} and {gpus:g}: lower cpus_per_trial, "
            "gpus_per_trial or workers_per_trial"
        )
    on_a_gpu = max(0, int(resources.cpus_per_trial) - 1) if gpus_per_trial else 0
    # on a CPU the model needs the cores itself
    workers = on_a_gpu if resources.loader_workers == "auto" else resources.loader_workers
    capacity = _now_and_then(lambda: fitting(total())) if joined else lambda: slots
    return Session(
        dashboard,
        resources.cpus_per_trial,
        gpus_per_trial,
        workers,
        slots,
        capacity,
        nodes,
        joined,
        workers_per_trial,
    )


def _now_and_then(look: Callable[[], int]) -> Callable[[], int]:
    """`look`, at most once in LOOK_S."""
    seen, at = 0, -LOOK_S

    def now() -> int:
        nonlocal seen, at
        if time.monotonic() - at > LOOK_S:
            seen, at = look(), time.monotonic()
        return seen

    return now
