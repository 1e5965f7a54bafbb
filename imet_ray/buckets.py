"""Buckets of object stores, through the official clients: list, read, write, delete, and patience with what passes.

The client retries by itself; what outlasts that (throttling, resets, an outage) is tried again for two minutes, then
it is one clear line. Credentials are found by the client and never seen here. What the objects mean is
`imet_ray.remote`.
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
ATTEMPTS = 3  # of the client itself
CONNECT_S, READ_S = 5, 30
PARTS = 1 << 30  # bytes; larger files are sent in parts
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
def open_bucket(name: str) -> Bucket:
    """The bucket of that name, in S3 or in what speaks its protocol.

    Raises:
        ConfigError: if the client's package is not installed.
    """
    return S3Bucket(name)


class S3Bucket:
    """Of S3, or of what speaks its protocol at `$AWS_ENDPOINT_URL`."""

    def __init__(self, name: str) -> None:
        boto3, self.config = _client("boto3"), _client("botocore.config")
        self.errors = _client("botocore.exceptions")
        self.name = name
        self.client = boto3.session.Session().client(
            "s3",
            config=self.config.Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                max_pool_connections=THREADS,
            ),
        )
        self.parts = _client("boto3.s3.transfer").TransferConfig(multipart_threshold=PARTS)

    def listing(self, prefix: str) -> Iterator[Entry]:
        """See `Bucket`."""
        for page in self._pages(prefix):
            for found in page.get("Contents", ()):
                yield _s3_entry(found["Key"], found["Size"], found["ETag"], found["LastModified"])

    def folders(self, prefix: str) -> list[str]:
        """See `Bucket`."""
        pages = self._pages(prefix, Delimiter="/")
        return [one["Prefix"][len(prefix) : -1] for page in pages for one in page.get("CommonPrefixes", ())]

    def head(self, key: str) -> Entry | None:
        """See `Bucket`."""
        found = self._call(key, lambda: self.client.head_object(Bucket=self.name, Key=key))
        if found is None:
            return None
        return _s3_entry(key, found["ContentLength"], found["ETag"], found["LastModified"])

    def get(
        self, key: str, path: Path, size: int = 0, tell: Callable[[int], object] = lambda n: None
    ) -> bool:
        """See `Bucket`."""

        def fetch() -> bool:
            if size >= LARGE:
                self.client.download_file(self.name, key, str(path), Callback=tell)
                return True
            body = self.client.get_object(Bucket=self.name, Key=key)["Body"]  # one call, not two
            with path.open("wb") as file:
                for block in body.iter_chunks(BLOCK):  # raises if it is cut off
                    file.write(block)
                    tell(len(block))
            return True

        return bool(self._call(key, fetch))

    def put(self, path: Path, key: str, version: str | None = None) -> str:
        """See `Bucket`."""
        condition = {} if version is None else {"IfMatch": version} if version else {"IfNoneMatch": "*"}

        def send() -> str:
            if not condition and path.stat().st_size >= PARTS:
                self.client.upload_file(str(path), self.name, key, Config=self.parts)
                return str(self.client.head_object(Bucket=self.name, Key=key)["ETag"])
            with path.open("rb") as file:
                sent = self.client.put_object(Bucket=self.name, Key=key, Body=file, **condition)
            return str(sent["ETag"])

        done = self._call(key, send)
        if done is None:  # the version to replace was deleted
            raise ChangedError(key)
        return str(done)

    def delete(self, key: str) -> None:
        """See `Bucket`."""
        self._call(key, lambda: self.client.delete_object(Bucket=self.name, Key=key))

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        while True:
            asked = functools.partial(self.client.list_objects_v2, Bucket=self.name, Prefix=prefix, **options)
            page = self._call(prefix, asked)
            yield page or {}
            if not page or not page.get("IsTruncated"):
                return
            options = options | {"ContinuationToken": page["NextContinuationToken"]}

    def _call(self, key: str, work: Callable[[], T]) -> T | None:
        """Its outcome; None where there is no such object."""

        def attempt() -> T | None:
            try:
                return work()
            except self.errors.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                if code in ("NoSuchKey", "404", "NotFound"):
                    return None
                if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    raise ChangedError(key) from None
                if code == "NoSuchBucket":
                    raise ConfigError(f"there is no bucket s3://{self.name}: create it first") from None
                if status in (401, 403):
                    raise ConfigError(
                        f"s3://{self.name} refuses these credentials ({code}): see `aws sts get-caller-identity`"
                    ) from None
                if status < 500 and status != 429 and code not in ("SlowDown", "RequestTimeout"):
                    raise StoreError(
                        f"s3://{self.name}/{key}: {code or status}: look at the bucket"
                    ) from None
                raise _PassingError(code or str(status)) from None
            except (self.errors.NoCredentialsError, self.errors.PartialCredentialsError) as error:
                raise ConfigError(
                    f"s3://{self.name}: {error}: `aws configure`, or give the node a role"
                ) from None
            except self.errors.ParamValidationError:
                raise ConfigError(
                    f"{self.name!r} is no name of a bucket: --runs and --data take s3://BUCKET/FOLDER"
                ) from None
            except (self.errors.BotoCoreError, ConnectionError, TimeoutError) as error:
                raise _PassingError(type(error).__name__) from None
            except Exception as error:  # of s3transfer, which is no part of botocore
                if type(error).__name__ in ("S3UploadFailedError", "RetriesExceededError"):
                    raise _PassingError(type(error).__name__) from None
                raise

        return _patiently(attempt, f"s3://{self.name}")


class _PassingError(Exception):
    """What may be over at the next attempt."""


def _patiently(attempt: Callable[[], T], where: str) -> T:
    """Try again until it works.

    Raises:
        StoreError: after PATIENCE_S.
    """
    began, pause = time.monotonic(), PAUSE_S[0]
    while True:
        try:
            return attempt()
        except _PassingError as error:
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


def _client(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError("s3:// needs boto3: `uv sync --extra s3`") from None


def _s3_entry(key: str, size: int, tag: str, modified: Any) -> Entry:
    bare = tag.strip('"')
    return Entry(key, size, tag, bare if len(bare) == 32 and "-" not in bare else "", modified.timestamp())
