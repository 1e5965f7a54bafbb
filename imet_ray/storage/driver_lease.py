"""One driver per run, over a bucket or a file system without locks: an object that its holder keeps changing.

No clocks are compared: a driver that wants the run watches whether the object changes. Elsewhere a file lock does that
job.
"""

import contextlib
import json
import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.files import beside, disk_error
from imet_ray.storage.object_store import Bucket, ChangedError, Entry
from imet_ray.units import clock

logger = logging.getLogger(__name__)

BEAT_S = 10.0
DEAD_S = 35.0  # without a beat
LOOK_S = 1.0


@contextlib.contextmanager
def held(bucket: "Bucket | LeaseFile", key: str, who: str, *, alone: bool = True) -> Iterator[None]:
    """Hold the run whose lease has that key.

    If another machine takes the run because this one was cut off, this process gets SIGTERM, which acts like Ctrl-C.

    Args:
        alone: the caller holds the lock of this machine, so a lease of this machine is a dead driver's.

    Raises:
        ConfigError: if another driver holds it and lives.
    """
    ours = {"driver": who, "host": platform.node(), "token": secrets.token_hex(8)}

    def is_ours() -> bool:
        return _read(bucket, key).get("token") == ours["token"]

    def put(version: str) -> str | None:
        """The lease's new version; None if it is another driver's."""
        try:
            return bucket.put(json.dumps(ours | {"beat": time.time_ns()}).encode(), key, version)
        except ChangedError:
            found = bucket.head(key)
            if not is_ours():
                return None
            return found.version if found else ""  # of an attempt whose answer was lost

    version = put(_free(bucket, key, alone))
    if version is None:
        raise ConfigError(f"{who}: another driver began this run just now: wait for it")
    stop = threading.Event()

    def beat(version: str) -> None:
        while not stop.wait(BEAT_S):
            try:
                now = put(version)
            except StoreError as error:
                logger.warning("%s", error)
                continue
            if now is None:
                logger.error("another driver took this run over: %s on %s", *_named(_read(bucket, key)))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            version = now

    thread = threading.Thread(target=beat, args=(version,), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(StoreError):
            if is_ours():
                bucket.delete(key)


def holder(bucket: "Bucket | LeaseFile", key: str, *, alone: bool = True) -> str:
    """Who holds the run, and how long ago it was last heard of; empty: nobody holds it.

    Args:
        alone: on another machine, because a driver on this one would hold its lock.
    """
    found, said = bucket.head(key), _read(bucket, key)
    if found is None or not said or (alone and said.get("host") == platform.node()):
        return ""
    who, silent = "{} on {}".format(*_named(said)), time.time() - found.modified  # of two clocks: a hint
    return who if silent < DEAD_S else f"{who}, last heard of {clock(silent)} ago by the clock here"


@dataclass(frozen=True)
class LeaseFile:
    """What a lease asks of a bucket, from a file: its version is its content.

    Two drivers that take over from a dead one within the same millisecond both succeed; the first one ends at its next
    beat.
    """

    def head(self, key: str) -> Entry | None:
        data = self.read(key)
        if data is None:
            return None
        modified = 0.0
        with contextlib.suppress(OSError):  # replaced just now
            modified = Path(key).stat().st_mtime
        return Entry(key, len(data), "", modified, data.decode(errors="replace"))

    def read(self, key: str) -> bytes | None:
        with contextlib.suppress(OSError):
            return Path(key).read_bytes()
        return None

    def put(self, source: bytes, key: str, version: str) -> str:
        path = Path(key)
        try:
            if not version:
                with path.open("xb") as file:
                    file.write(source)
                return source.decode()
        except FileExistsError:
            raise ChangedError(key) from None
        except OSError as error:
            raise disk_error(path, error) from error
        with beside(path) as temporary:
            temporary.write_bytes(source)
            found = self.head(key)
            if found is None or found.version != version:
                raise ChangedError(key)
            os.replace(temporary, path)
        return source.decode()

    def delete(self, key: str) -> None:
        Path(key).unlink(missing_ok=True)


def _free(bucket: Bucket | LeaseFile, key: str, alone: bool) -> str:
    """The version of the lease that may be replaced; empty: there is no lease."""
    found = bucket.head(key)
    if found is None:
        return ""
    before = _read(bucket, key)
    if alone and before.get("host") == platform.node():
        return found.version
    logger.warning("%s on %s held this run: looking for %.0f s whether it lives", *_named(before), DEAD_S)
    until = time.monotonic() + DEAD_S
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        now = bucket.head(key)
        if now is None:
            return ""
        if now.version != found.version:
            raise ConfigError(
                "{} on {} drives this run: wait for it, or choose another --name".format(*_named(before))
            )
    return found.version


def _read(bucket: Bucket | LeaseFile, key: str) -> dict[str, str]:
    with contextlib.suppress(ValueError):
        found = json.loads(bucket.read(key) or b"{}")
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return {}


def _named(holder: dict[str, str]) -> tuple[str, str]:
    return holder.get("driver", "?")[:80], holder.get("host", "?")[:80]
