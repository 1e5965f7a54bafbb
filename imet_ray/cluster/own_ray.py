"""What a Ray of our own needs of this machine. It is looked at first: Ray would wait for minutes, and say little."""

import logging
import os
import resource
import secrets
import shutil
import socket
from pathlib import Path
from typing import Any

from imet_ray.cores import usable_cores
from imet_ray.errors import ConfigError

logger = logging.getLogger(__name__)

SOCKET = "session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"  # the longest name, below Ray's directory
SOCKET_BYTES = 107  # of a socket's whole path, on Linux
FREE_BYTES = 100 * 10**6  # for Ray's logs and sockets
OPEN_FILES = 256  # 64 are too few for two workers, 256 were enough
SHARED_MEMORY = Path("/dev/shm")
LOOPBACK = "127.0.0.1"
OWNER = "imet-ray/driver"  # a label of a private Ray's node: the process that it ends with


def resources_here() -> dict[str, float]:
    """CPU cores and GPUs that this process may use, by Ray's names."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    gpus = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return {"CPU": usable_cores(), "GPU": gpus if visible is None else min(gpus, len(visible))}


def keep_to_loopback() -> None:
    """Have a Ray of our own listen on loopback alone. Call it before Ray is imported.

    The variable's name is of the systems where this is the default.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def start_options(found: dict[str, float]) -> dict[str, Any]:
    """What `ray.init` must know of this machine, after all that would keep Ray from starting is refused.

    Args:
        found: the cores and GPUs that Ray may hand out.

    Raises:
        ConfigError: naming what is missing, and what to set.
    """
    from ray._common.utils import get_default_ray_temp_dir

    temporary = Path(get_default_ray_temp_dir()).absolute()
    check_temporary(temporary)
    check_open_files()
    check_loopback()
    _keep_token()
    options: dict[str, Any] = {
        "_temp_dir": str(temporary),  # from a relative one Ray's own processes would not find it
        "num_cpus": int(found["CPU"]),
        "num_gpus": int(found["GPU"]),
        "labels": {OWNER: str(os.getpid())},
    }
    if SHARED_MEMORY.exists() and not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        logger.warning("%s cannot be written: Ray shares data by files in %s", SHARED_MEMORY, temporary)
        options["_plasma_directory"] = str(temporary)
    return options


def check_temporary(directory: Path) -> None:
    """Refuse a directory that Ray could not keep its sockets and logs in."""
    there = _nearest(directory)
    length = len(os.fsencode(directory / SOCKET))
    if length > SOCKET_BYTES:
        problem = f"the paths of its sockets would have {length} bytes, of {SOCKET_BYTES} at most"
    elif not there.is_dir():
        problem = f"{there} is no directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} cannot be written"
    elif (free := shutil.disk_usage(there).free) < FREE_BYTES:
        problem = f"{free / 1e6:.0f} MB are free there, and Ray needs {FREE_BYTES / 1e6:.0f} MB"
    else:
        return
    raise ConfigError(
        f"Ray cannot use its temporary directory {directory} ({problem}): set RAY_TMPDIR to another folder, with a "
        f"short path, such as /tmp/ray-{os.getuid()}"
    )


def check_open_files() -> None:
    """Raise the limit of open files as far as it takes, and refuse one that cannot be raised."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == resource.RLIM_INFINITY or now >= OPEN_FILES:
        return
    if most != resource.RLIM_INFINITY and most < OPEN_FILES:
        raise ConfigError(
            f"a process may have {most} files open here, and Ray needs {OPEN_FILES}: raise the hard limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, most))


def check_loopback() -> None:
    """Refuse a machine whose processes cannot reach one another."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"there is no loopback network ({LOOPBACK}: {error}), by which Ray's processes talk: `ip link set lo up`"
        ) from None


def _nearest(path: Path) -> Path:
    """The path, or the deepest folder above it that is there."""
    return next(place for place in (path, *path.parents) if os.access(place, os.F_OK))


def _keep_token() -> None:
    """Give this Ray a token of its own where there is no home directory to keep the usual one in."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    token = Path.home() / ".ray" / "auth_token"
    if os.access(token, os.R_OK) or os.access(_nearest(token), os.W_OK | os.X_OK):
        return
    logger.warning(
        "%s cannot be written: this Ray has a token of its own, and its dashboard cannot be opened; set HOME for that",
        token,
    )
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
