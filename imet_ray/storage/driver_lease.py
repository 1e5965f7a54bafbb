"""One driver a run, over a bucket: an object that its holder keeps changing.

No clocks are compared: whoever would take it watches whether it changes. On one machine a file lock does that job.
"""

import _thread
import contextlib
import itertools
import json
import logging
import platform
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import bucket_mirror as remote
from imet_ray.storage.object_store import ChangedError
from imet_ray.units import clock

logger = logging.getLogger(__name__)

BEAT_S = 10.0
DEAD_S = 35.0  # without a beat
LOOK_S = 1.0


@contextlib.contextmanager
def held(path: Path, who: str) -> Iterator[None]:
    """Hold the run whose lease `path` is the twin of; the caller holds the lock of this machine.

    If another machine takes it meanwhile, for this one was cut off, the main thread is interrupted.

    Raises:
        ConfigError: if another machine's driver holds it and lives.
    """
    beats = itertools.count()

    def text() -> str:
        return json.dumps({"driver": who, "host": platform.node(), "beat": f"{next(beats)} {time.time_ns()}"})

    first = text()
    try:
        version = remote.put_text(path, first, version=_free(path))
    except ChangedError:
        if remote.read_text(path) != first:
            raise ConfigError(f"{who}: another driver began this run just now: wait for it") from None
        found = remote.head(path)  # ours, and the answer was lost
        version = found.version if found else ""
    stop = threading.Event()

    def beat() -> None:
        nonlocal version
        while not stop.wait(BEAT_S):
            try:
                version = remote.put_text(path, text(), version=version)
            except ChangedError:
                now = _read(path)
                if now.get("driver") == who and now.get("host") == platform.node():
                    found = remote.head(path)  # an attempt of ours whose answer was lost
                    version = found.version if found else ""
                    continue
                logger.error(
                    "another driver took this run over: %s on %s", now.get("driver"), now.get("host")
                )
                _thread.interrupt_main()
                return
            except StoreError as error:
                logger.warning("%s", error)

    thread = threading.Thread(target=beat, daemon=True, name="lease")
    thread.start()
    try:
        with _interruptible():
            yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(StoreError):
            if _read(path).get("driver") == who:
                remote.delete(path)


def holder(path: Path) -> str:
    """Who holds the run on another machine, as it says, and since when nothing was heard of it; empty: nobody does."""
    found, said = remote.head(path), _read(path)
    ours = said.get("host") == platform.node()  # it would have this machine's lock, if it lived
    if found is None or not said or ours:
        return ""
    who, silent = "{} on {}".format(*_named(said)), time.time() - found.modified  # of two clocks: a hint
    return who if silent < DEAD_S else f"{who}, last heard of {clock(silent)} ago by the clock here"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A script's background job ignores interrupts, and so the one that says that it is not the driver any more."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _free(path: Path) -> str:
    """The version of the lease that may be replaced; empty: there is none."""
    found = remote.head(path)
    if found is None:
        return ""
    holder = _read(path)
    if holder.get("host") == platform.node():
        return found.version  # we have this machine's lock, so it is dead
    logger.warning("%s on %s held this run: looking for %.0f s whether it lives", *_named(holder), DEAD_S)
    until = time.monotonic() + DEAD_S
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        now = remote.head(path)
        if now is None:
            return ""
        if now.version != found.version:
            raise ConfigError(
                "{} on {} drives this run: wait for it, or choose another --name".format(*_named(holder))
            )
    return found.version


def _read(path: Path) -> dict[str, str]:
    with contextlib.suppress(ValueError):
        found = json.loads(remote.read_text(path) or "{}")
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return {}


def _named(holder: dict[str, str]) -> tuple[str, str]:
    return holder.get("driver", "?")[:80], holder.get("host", "?")[:80]
