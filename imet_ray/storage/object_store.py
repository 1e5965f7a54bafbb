"""Buckets of object stores: what is asked of them (list, read, write, delete), and patience with what passes.

Throttling, resets and outages are waited for, two minutes, then there is one clear line. Each store is reached through
its official client, in a module of its own that is imported when a bucket there is opened. What the objects mean is
`imet_ray.storage.bucket_mirror`.
"""

import functools
import importlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from imet_ray.errors import ConfigError, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 120.0  # with a store that does not answer
PAUSE_S = (0.5, 10.0)  # between two attempts, at first and at last
CONNECT_S, READ_S = 5, 30
LARGE = 64 << 20  # bytes; larger ones are read in parts
BLOCK = 1 << 20
THREADS = 32  # calls at once; also the client's connections


class ChangedError(Exception):
    """The object is no longer the version that was expected."""


@dataclass(frozen=True)
class Entry:
    """One object."""

    key: str
    size: int  # bytes
    version: str  # changes whenever the object is written
    md5: str  # hex; empty where the store does not know it
    modified: float  # of time.time(), by the store's clock


class Bucket(Protocol):
    """What is asked of a bucket. All calls may come from several threads."""

    def listing(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key begins so, a page of them a call."""

    def folders(self, prefix: str) -> list[str]:
        """What stands between the prefix and the next slash, of all objects below it."""

    def head(self, key: str) -> Entry | None:
        """One object, or None."""

    def get(
        self, key: str, path: Path, size: int = 0, tell: Callable[[int], object] = lambda n: None
    ) -> bool:
        """Write an object's bytes into a file; False if there is none.

        Args:
            size: its bytes, where they are known: large ones come in parts.
            tell: called with the bytes that came, from any thread.
        """

    def put(self, path: Path, key: str, version: str | None = None) -> str:
        """Send a file, whole or not at all; the new version.

        Args:
            version: that the object must have; empty: there must be none.

        Raises:
            ChangedError: if it has another.
        """

    def delete(self, key: str) -> None:
        """Delete an object, if there is one."""


@functools.cache  # a client takes a second to make, and its connections are worth keeping
def open_bucket(scheme: str, name: str) -> Bucket:
    """The bucket of that name in that store.

    Args:
        scheme: of `imet_ray.storage.files.SCHEMES`.

    Raises:
        ConfigError: if the client's package is not installed, or finds no credentials.
    """
    if scheme == "gs":
        from imet_ray.storage.buckets_gs import GoogleBucket

        return GoogleBucket(name)
    from imet_ray.storage.buckets_s3 import S3Bucket

    return S3Bucket(name)


class PassingError(Exception):
    """What may be over at the next attempt."""


def patiently(attempt: Callable[[], T], where: str) -> T:
    """Try again until it works.

    Args:
        attempt: raises PassingError where the next attempt may work.
        where: the bucket's URL, for the user.

    Raises:
        StoreError: after PATIENCE_S.
    """
    began, pause = time.monotonic(), PAUSE_S[0]
    while True:
        try:
            return attempt()
        except PassingError as error:
            left = PATIENCE_S - (time.monotonic() - began)
            if left <= 0:
                raise StoreError(
                    f"{where} has not answered for {PATIENCE_S:.0f} s ({error}): "
                    "the same command continues when it does"
                ) from None
            if pause == PAUSE_S[0]:
                logger.warning("%s: %s: trying again for up to %.0f s", where, error, left)
        time.sleep(min(left, pause * random.uniform(0.5, 1)))  # not all nodes at once
        pause = min(2 * pause, PAUSE_S[1])


def client_module(scheme: str, module: str) -> Any:
    """A module of a store's client.

    Raises:
        ConfigError: if its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{scheme}:// needs {module}: `uv sync --extra {scheme}`") from None
