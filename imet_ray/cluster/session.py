"""A Ray that we start on this machine or join: what it offers, how many trials fit on it, and whether it is lost."""

import contextlib
import dataclasses
import functools
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import imet_ray
from imet_ray.cluster.own_ray import LOOPBACK, OWNER, resources_here, start_options
from imet_ray.command_line import interrupted_by_sigterm
from imet_ray.errors import ConfigError, ImetError, StoreError, telling_line
from imet_ray.search_space import Resources
from imet_ray.startup import ONE_ARENA
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.timers import called_after

logger = logging.getLogger(__name__)

STARTS = 3  # attempts to start a Ray of our own
START_S = 300.0  # for all of them, or to join one
TOLD = 400  # characters of Ray's error, from its end
CHECKOUT = Path(imet_ray.__file__).resolve().parents[1]
SLOW_START = "timed out during startup"  # in Ray's error
KNOCK_S = 5.0  # between two questions to the head
ANSWER_S = 5.0  # that the head has to answer
LOST_S = 40.0  # without an answer; after 60 s Ray itself ends the process, in its own words
SHOW_CURSOR = "\x1b[?25h"


@dataclass(frozen=True)
class Slot:
    """What a worker has to work with, and for which run."""

    run: RunDirectory
    cpus: float
    gpus: float
    loader_workers: int
    joined: bool  # perhaps one of several nodes

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def describe(self, error: ImetError) -> str:
        """An error for the user; it names the node where there may be several."""
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
    capacity: Callable[[], int]  # trials at once, as the cluster is when called, or may become
    nodes: int = 1
    joined: bool = False  # else we started it, on this machine
    workers_per_trial: int = 1  # each with the CPUs and GPUs of a trial

    def slot(self, run: RunDirectory) -> Slot:
        """What each worker of a run has."""
        return Slot(run, self.cpus_per_trial, self.gpus_per_trial, self.loader_workers, self.joined)


def prepare_environment() -> None:
    """Set what Ray reads from the environment; call it before Ray is imported."""
    try:
        Path.home()
    except RuntimeError:  # a user without a name: Tune asks for a home when it is imported
        os.environ["HOME"] = "/"  # as containers do
    # under `uv run` Ray would zip the working directory and build an environment per worker: +7 s for nothing
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    for name, value in {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else each worker warns
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's CSV and JSON; we have our own
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a traceback per failure; `worker_failures` prints one line
        # Tune lets a custom searcher have one waiting trial, too few for a cluster to grow; ours limits itself
        "TUNE_MAX_PENDING_TRIALS_PG": "100000",
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # to leave the last trial; Tune's 2 s are too short on a busy machine
        # a task on a node that was unplugged is missed after 80 s, not after Ray's 7 minutes
        "RAY_grpc_client_keepalive_time_ms": "20000",
        "RAY_grpc_client_keepalive_timeout_ms": "60000",
        **ONE_ARENA,
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def ray_session(
    resources: Resources, *, address: str | None = None, concurrency: int | None = None, run: str = ""
) -> Iterator[Session]:
    """Start a Ray of our own, or join the one at `address`; leave or stop it at the end.

    Without an address another Ray that runs on this machine is never joined.

    Args:
        run: its name, which Ray's pages show as the job's.

    Raises:
        ConfigError: if there is no Ray at `address`, none can be started here, or no trial fits on it.
        StoreError: if it fails later, and not by an error of our own code.
    """
    if address is not None and address.startswith("ray://"):
        raise ConfigError("--address takes auto or HOST:PORT, not ray://: run this on a node of the cluster")
    if address not in (None, "auto"):
        refuse_unanswered(address)
    prepare_environment()
    import ray

    from imet_ray.cluster.node_environment import refuse_other_versions, runtime_env
    from imet_ray.cluster.worker_failures import quiet_ray

    joined = address is not None
    quiet_ray()
    fit = functools.partial(_fit, resources, concurrency=concurrency, joined=joined)
    if joined:
        context = _start_or_join(address, run, {"runtime_env": runtime_env()})
    else:
        found = resources_here()
        here = fit(lambda: found)  # refused before Ray starts
        context = _start_or_join(None, run, start_options(found))
    with contextlib.suppress(OSError):
        # the key to Ray's clusters, which Ray lets all users of the machine read
        Path("~/.ray/auth_token").expanduser().chmod(0o600)
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        stack.enter_context(interrupted_by_sigterm())
        if joined:
            stack.enter_context(head_watched(ray.get_runtime_context().gcs_address))
            refuse_private()
            here = fit(_largest, nodes=refuse_other_versions())
        url = context.dashboard_url
        try:
            yield dataclasses.replace(here, dashboard=f"http://{url}" if url else None)
        except ray.exceptions.RayTaskError:  # our own code raised: its traceback is what helps
            raise
        except ray.exceptions.RayError as error:
            raise StoreError(f"Ray failed ({telling_line(error)}): the same command continues") from error


def refuse_private() -> None:
    """Leave alone a Ray that another sweep has started for itself: it ends with that sweep.

    Raises:
        ConfigError: naming the process.
    """
    import ray

    owners = {node["Labels"][OWNER] for node in ray.nodes() if OWNER in node.get("Labels", {})}
    if owners:
        raise ConfigError(
            f"the Ray at {ray.get_runtime_context().gcs_address} belongs to process {owners.pop()}, another sweep, and "
            "ends with it: start one that lasts with `ray start --head`, or leave out --address"
        )


def refuse_unanswered(address: str) -> None:
    """Ask whether anyone listens: Ray itself would try for minutes.

    Raises:
        ConfigError: if nobody answers, or the address is malformed.
    """
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigError(f"--address takes auto or HOST:PORT, got {address[:60]!r}")
    try:
        _knock(address)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"nobody answers at {address} ({error}): start a Ray with `ray start --head`, or leave out --address"
        ) from None


@contextlib.contextmanager
def head_watched(address: str) -> Iterator[None]:
    """End this process with one line when the head of the cluster is lost.

    Ray answers nothing then, not even a shutdown. What was trained is in the store.
    """
    over = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not over.wait(KNOCK_S):
            with contextlib.suppress(OSError):
                _knock(address)
                answered = time.monotonic()
            silent = time.monotonic() - answered
            if silent >= LOST_S and not over.is_set():
                _die(
                    f"the head of the cluster ({address}) has not answered for {silent:.0f} s: start the cluster "
                    "again, then the same command continues"
                )

    thread = threading.Thread(target=watch, daemon=True, name="head")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()


def _start_or_join(address: str | None, run: str, options: dict[str, Any]) -> Any:
    """Ray's context. A start of our own that is too slow for Ray, on a busy machine, is tried again.

    Args:
        options: what else `ray.init` is told.
    """
    import ray

    job = ray.job_config.JobConfig(metadata={"job_name": run} if run else {})
    if address is None:  # workers find our code wherever this process was started; to a cluster it is sent
        job._py_driver_sys_path.append(str(CHECKOUT))
    with called_after(START_S, _end_late_start):  # it may wait for ever
        for left in reversed(range(STARTS)):
            try:
                return ray.init(
                    address=address or "local",
                    job_config=job,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    dashboard_host=None if address else LOOPBACK,
                    configure_logging=True,
                    **options,
                )
            except SystemExit as error:  # how Ray takes SIGTERM, while it starts
                if error.code != signal.SIGTERM:
                    raise
                raise KeyboardInterrupt from None
            except Exception as error:  # of any kind: what its parts and the system raise
                told = " ".join(str(error).split())[-TOLD:] or type(error).__name__
                if address is None and left and SLOW_START in told:  # what was started ends with this process
                    logger.warning("Ray did not start in its 30 s (%s): trying again", told)
                    continue
                if address is None:
                    raise ConfigError(f"Ray does not start on this machine: {told}") from error
                raise ConfigError(
                    f"no Ray to join at {address!r} ({told}): start one with `ray start --head`, or leave out --address"
                ) from error
    raise AssertionError("the last attempt returns or raises")


def _end_late_start() -> None:
    _die(
        f"Ray has not started in {START_S:.0f} s: its logs are in session_latest/logs of its temporary directory"
    )


def _die(message: str) -> NoReturn:
    """End this process from any thread, with one line for the user."""
    sys.stdout.flush()
    shown = SHOW_CURSOR if sys.stderr.isatty() else ""  # the live table hides it
    print(f"{shown}error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _largest() -> dict[str, float]:
    """Resources of the cluster that we joined, or those that its autoscaler may add, whichever are more."""
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
    concurrency: int | None,
    joined: bool,
    nodes: int = 1,
) -> Session:
    """What a trial gets, and how many fit. On a machine with fewer CPUs than it asks for it gets all of them.

    Raises:
        ConfigError: if none fits, and the cluster cannot grow.
    """
    now = total()
    cpus, gpus = now.get("CPU", 0.0), now.get("GPU", 0.0)
    wanted, workers = resources.gpus_per_trial, resources.workers_per_trial
    if not joined and 1 <= (all_of_them := cpus // workers) < resources.cpus_per_trial:
        resources = resources.model_copy(update={"cpus_per_trial": all_of_them})
    gpus_per_trial = (1.0 if gpus else 0.0) if wanted == "auto" else float(wanted)
    if resources.batch_norm == "sync" and not gpus_per_trial:
        raise ConfigError("batch_norm is sync, and there are no GPUs: leave it out of the space")

    def fitting(found: dict[str, float]) -> int:
        slots = _slots(resources, gpus_per_trial, found)
        if not joined:
            return slots if concurrency is None else min(slots, concurrency)
        return max(1, slots if concurrency is None else concurrency)  # it may grow

    slots = fitting(now)
    if slots < 1:
        raise ConfigError(
            f"no trial fits: it needs {workers * resources.cpus_per_trial:g} CPUs and "
            f"{workers * gpus_per_trial:g} GPUs, there are {cpus:g} and {gpus:g}: lower cpus_per_trial, "
            "gpus_per_trial or workers_per_trial"
        )
    # on a CPU the model needs the cores itself
    beside_gpu = max(0, int(resources.cpus_per_trial) - 1) if gpus_per_trial else 0
    return Session(
        dashboard=None,
        cpus_per_trial=resources.cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        loader_workers=beside_gpu if resources.loader_workers == "auto" else resources.loader_workers,
        slots=slots,
        capacity=(lambda: fitting(total())) if joined else (lambda: slots),
        nodes=nodes,
        joined=joined,
        workers_per_trial=workers,
    )


def _slots(resources: Resources, gpus_per_trial: float, found: dict[str, float]) -> int:
    """How many trials fit on these resources at once."""
    slots = int(found.get("CPU", 0.0) / resources.cpus_per_trial + 1e-9)
    if gpus_per_trial:
        per_gpu = int(1 / gpus_per_trial + 1e-9)  # a fraction lies on one GPU
        slots = min(slots, int(found.get("GPU", 0.0)) * per_gpu)
    return slots // resources.workers_per_trial
