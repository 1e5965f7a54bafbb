"""One driver per run, over a bucket: an object that its holder keeps changing.

No clocks are compared: a driver that wants the run watches whether the object changes. On one machine a file lock does
that job.
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

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.object_store import Bucket, ChangedError
from imet_ray.units import clock

logger = logging.getLogger(__name__)

BEAT_S = 10.0
DEAD_S = 35.0  # without a beat
LOOK_S = 1.0


@contextlib.contextmanager
def held(bucket: Bucket, key: str, who: str) -> Iterator[None]:
    """Hold the run whose lease has that key. The caller holds the lock of this machine.

    If another machine takes the run because this one was cut off, the main thread is interrupted.

    Raises:
        ConfigError: if another machine's driver holds it and lives.
    """
    beats = itertools.count()

    def text() -> bytes:
        beat = f"{next(beats)} {time.time_ns()}"
        return json.dumps({"driver": who, "host": platform.node(), "beat": beat}).encode()

    first = text()
    try:
        version = bucket.put(first, key, _free(bucket, key))
    except ChangedError:
        if bucket.read(key) != first:
            raise ConfigError(f"{who}: another driver began this run just now: wait for it") from None
        found = bucket.head(key)  # ours, and the answer was lost
        version = found.version if found else ""
    stop = threading.Event()

    def beat() -> None:
        nonlocal version
        while not stop.wait(BEAT_S):
            try:
                version = bucket.put(text(), key, version)
            except ChangedError:
                now = _read(bucket, key)
                if now.get("driver") == who and now.get("host") == platform.node():
                    found = bucket.head(key)  # an attempt of ours whose answer was lost
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
            if _read(bucket, key).get("driver") == who:
                bucket.delete(key)


def holder(bucket: Bucket, key: str) -> str:
    """Who holds the run on another machine, and how long ago it was last heard of; empty: nobody holds it."""
    found, said = bucket.head(key), _read(bucket, key)
    ours = said.get("host") == platform.node()  # if it lived, it would have this machine's lock
    if found is None or not said or ours:
        return ""
    who, silent = "{} on {}".format(*_named(said)), time.time() - found.modified  # of two clocks: a hint
    return who if silent < DEAD_S else f"{who}, last heard of {clock(silent)} ago by the clock here"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let the interrupt through: a script's background job ignores interrupts, also the one that ends a driver."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _free(bucket: Bucket, key: str) -> str:
    """The version of the lease that may be replaced; empty: there is no lease."""
    found = bucket.head(key)
    if found is None:
        return ""
    holder = _read(bucket, key)
    if holder.get("host") == platform.node():
        return found.version  # we have this machine's lock, so it is dead
    logger.warning("%s on %s held this run: looking for %.0f s whether it lives", *_named(holder), DEAD_S)
    until = time.monotonic() + DEAD_S
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        now = bucket.head(key)
        if now is None:
            return ""
        if now.version != found.version:
            raise ConfigError(
                "{} on {} drives this run: wait for it, or choose another --name".format(*_named(holder))
            )
    return found.version


def _read(bucket: Bucket, key: str) -> dict[str, str]:
    with contextlib.suppress(ValueError):
        found = json.loads(bucket.read(key) or b"{}")
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return {}


def _named(holder: dict[str, str]) -> tuple[str, str]:
    return holder.get("driver", "?")[:80], holder.get("host", "?")[:80]
