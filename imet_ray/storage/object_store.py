"""Buckets of object stores, through obstore: list, read, write, delete, and patience with what passes.

`STORES` has one line per object store. Throttling, resets and outages are waited for, two minutes, then there is one
clear line. What the objects mean is `imet_ray.storage.bucket_mirror`.
"""

import contextlib
import functools
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from imet_ray.errors import ConfigError, StoreError, unknown_name
from imet_ray.units import user_path

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 120.0  # with a store that does not answer
PAUSE_S = (0.5, 10.0)  # between two attempts, at first and at last
READ_S = 30  # without a byte
LONG_UPLOAD_S = 1800  # for a large file in one request: obstore's read_timeout counts while it is sent
RETRIES = 2  # of obstore itself, before `patiently` begins
LARGE = 64 << 20  # bytes; larger objects are read in parts
PART = 32 << 20  # bytes
PARTS_AT_ONCE = 8
ONE_REQUEST = 8 << 20  # bytes; larger files are sent in parts
MOST_PARTS = 9000  # S3 takes 10,000
BLOCK = 1 << 20
THREADS = 32  # calls at once
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "container does not exist")
STATUS, CODE = re.compile(r"status code: (\d{3})"), re.compile(r"<Code>(\w+)</Code>")
# of what a node with a role asks first
TOKEN = re.compile(r"token request|/latest/(api/token|meta-data/iam)")


class ChangedError(Exception):
    """The object is no longer the version that was expected."""


@dataclass(frozen=True)
class Entry:
    """One object."""

    key: str
    size: int  # bytes
    tag: str  # changes whenever the object is written
    modified: float  # of time.time(), by the store's clock
    version: str  # for `Bucket.put`, if it is not from a listing: Google's tell no generations

    def matches(self, path: Path) -> bool:
        """True if a file has the object's size and content; its time, where the tag is not the content's md5."""
        with contextlib.suppress(OSError):
            found = path.stat()
            if found.st_size != self.size:
                return False
            if not re.fullmatch("[0-9a-f]{32}", self.tag):
                return int(found.st_mtime) == int(self.modified)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            return digest.hexdigest() == self.tag
        return False


def split_url(url: str) -> tuple[str, str, tuple[str, ...]]:
    """Scheme, bucket and folders of a URL such as s3://BUCKET/FOLDER.

    Raises:
        ConfigError: for a URL that cannot be meant, or that holds a password.
    """
    scheme, _, rest = url.partition("://")
    bucket, *folders = rest.split("/")
    if scheme not in STORES:
        raise unknown_name("object store", f"{scheme[:40]}://", [f"{known}://" for known in STORES])
    if "@" in rest or "?" in rest or "#" in rest:  # not shown: it may hold a password
        raise ConfigError(
            f"{scheme}:// takes a bucket and a folder, without user, password or query: {STORES[scheme].credentials}"
        )
    parts = tuple(folder for folder in folders if folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]", bucket):
        raise ConfigError(f"{bucket[:80]!r} is no name of a bucket: give {scheme}://BUCKET/FOLDER")
    if any(part in (".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise ConfigError(f"a folder in a bucket has no '.', '..' or '\\' parts, got {url[:80]!r}")
    return scheme, bucket, parts


@functools.cache  # connections and credentials are worth keeping
def open_bucket(scheme: str, name: str) -> "Bucket":
    """The bucket of that name in that store.

    Raises:
        ConfigError: if the store's settings in the environment cannot be meant.
    """
    return Bucket(scheme, name)


class Bucket:
    """A bucket. All calls may come from several threads, and wait out what passes.

    All raise ConfigError if the bucket is not there or refuses us, and StoreError if it does not answer.
    """

    def __init__(self, scheme: str, name: str) -> None:
        self.url = f"{scheme}://{name}"
        self.kind = STORES[scheme]
        self.answered = False
        self.store = self._opened(name, READ_S)
        self.long_store = self._opened(name, LONG_UPLOAD_S)

    def listing(self, prefix: str) -> list[Entry]:
        """All objects below a folder, "" or one that ends with a slash; a page of them per request."""
        found = self._call(prefix, lambda: self.store.list(prefix or None, chunk_size=1000).collect())
        return [_entry(one) for one in found or ()]

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders in a folder."""
        found = self._call(prefix, lambda: self.store.list_with_delimiter(prefix or None))
        return [one.rpartition("/")[2] for one in found["common_prefixes"]] if found else []

    def head(self, key: str) -> Entry | None:
        """One object, or None. A bucket that is not there looks like an object that is not."""
        return self._call(key, lambda: _entry(self.store.head(key)))

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object, or None."""
        return self._call(key, lambda: bytes(self.store.get(key).bytes()))

    def get(
        self, key: str, path: Path, size: int = 0, tell: Callable[[int], object] = lambda n: None
    ) -> Entry | None:
        """Write an object's bytes into a file; None if there is no such object.

        Args:
            size: its bytes, where they are known: large ones come in parts.
            tell: called with the number of bytes that came, from any thread.
        """
        if size >= LARGE:
            return self._get_parts(key, path, tell)

        def read() -> Entry:
            found = self.store.get(key)
            with path.open("wb") as file:
                for block in found.stream(min_chunk_size=BLOCK):
                    file.write(block)
            return _entry(found.meta)

        entry = self._call(key, read)
        if entry is not None:
            tell(entry.size)
        return entry

    def put(self, source: Path | bytes, key: str, version: str | None = None) -> str:
        """Send a file, whole or not at all; the new version.

        Args:
            version: that the object must have; empty: there must be none. Such a file is sent in one request.

        Raises:
            ChangedError: if it has another.
        """
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        large = size > ONE_REQUEST
        parts = large and version is None
        mode: Any = "overwrite" if version is None else _condition(version) if version else "create"
        store = self.long_store if large and not parts else self.store

        def send() -> str:
            try:
                sent = store.put(
                    key,
                    source,
                    mode=mode,
                    use_multipart=parts,
                    chunk_size=max(ONE_REQUEST, size // MOST_PARTS),
                    max_concurrency=PARTS_AT_ONCE,
                )
            except FileNotFoundError as error:
                if not parts or _of_bucket(error):
                    raise
                # the parts were put together, and the answer was lost: such an upload is not there any more
                raise PassingError("the upload has no end") from None
            return _version(self.store.head(key) if parts else sent)  # parts may come without a generation

        done = self._call(key, send)
        if done is None:  # the version to replace was deleted
            raise ChangedError(key)
        return done

    def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        self._call(key, lambda: self.store.delete(key))

    def _get_parts(self, key: str, path: Path, tell: Callable[[int], object]) -> Entry | None:
        while (whole := self.head(key)) is not None:
            with path.open("wb") as file:
                file.truncate(whole.size)

            def part(start: int, whole: Entry = whole) -> None:
                span = (start, min(start + PART, whole.size))

                def read() -> int:
                    found = self.store.get(key, options={"range": span})
                    if _entry(found.meta).tag != whole.tag:
                        raise ChangedError(key)
                    with path.open("r+b") as file:
                        file.seek(start)
                        return file.write(found.bytes())

                if (n := self._call(key, read)) is None:
                    raise ChangedError(key)
                tell(n)

            with contextlib.suppress(ChangedError), ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                list(pool.map(part, range(0, whole.size, PART)))
                return whole
        return None  # else it was written anew meanwhile: all of it once more

    def _opened(self, name: str, read_s: int) -> ObjectStore:
        # a read may take as long as bytes come: read_timeout begins anew with each of them
        client = {"allow_http": True, "connect_timeout": "5s", "read_timeout": f"{read_s}s", "timeout": "24h"}
        pause = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2)}
        retry = {"max_retries": RETRIES, "retry_timeout": timedelta(minutes=2), "backoff": pause}
        try:
            return self.kind.open(name, client, retry)
        except exceptions.BaseError as error:
            raise ConfigError(f"{self.url}: {_said(error)}: {self.kind.credentials}") from None

    def _call(self, key: str, work: Callable[[], T]) -> T | None:
        """Its outcome; None where there is no such object."""

        def attempt() -> T | None:
            try:
                done = work()
            except FileNotFoundError as error:
                if _of_bucket(error):
                    raise self._no_bucket() from None
                done = None
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise ChangedError(key) from None
            except exceptions.InvalidPathError as error:
                named = re.search(r'Path ("[^\n]*?")', str(error))
                what = named.group(1)[:80] if named else _said(error)
                raise StoreError(
                    f"{self.url} has a key that is no path, {what}: rename that object"
                ) from None
            except exceptions.BaseError as error:
                raise self._refusal(key, error) from None
            self.answered = True
            return done

        return patiently(attempt, self.url)

    def _refusal(self, key: str, error: exceptions.BaseError) -> Exception:
        """What the store said, in our words."""
        said = str(error).partition("\n\nDebug source")[0]
        found, named = STATUS.search(said), CODE.search(said)
        status = int(found.group(1)) if found else 0
        what = named.group(1) if named else str(status or _said(error))
        of_token = TOKEN.search(said)
        if what in NO_BUCKET or (status == 404 and not of_token):
            return self._no_bucket()
        if "ratelimitexceeded" in said.lower():  # which may be a 403
            return PassingError(what)
        if of_token and not status and not self.answered:  # no node that has a role
            return ConfigError(
                f"{self.url}: there are no credentials ({_said(error)}): {self.kind.credentials}"
            )
        if status in (401, 403) or (status == 404 and of_token):
            return ConfigError(f"{self.url} refuses these credentials ({what}): {self.kind.credentials}")
        if status == 301 or "redirect" in said or what == "AuthorizationHeaderMalformed":
            return ConfigError(f"{self.url} lies in another region: set $AWS_REGION")
        if 400 <= status < 500 and status not in (408, 429) and what != "RequestTimeout":
            return StoreError(f"{self.url}/{key}: {what}: look at the bucket")
        return PassingError(what)

    def _no_bucket(self) -> ConfigError:
        return ConfigError(f"there is no bucket {self.url}: create it first")


def _entry(meta: Mapping[str, Any]) -> Entry:
    tag = (meta["e_tag"] or "").strip('"')  # Azure quotes it in some answers
    return Entry(meta["path"], meta["size"], tag, meta["last_modified"].timestamp(), _version(meta))


def _version(found: Mapping[str, Any]) -> str:
    """What the store compares, in one word: e_tag, and the generation where it has one."""
    return " ".join(one for one in (found["e_tag"], found["version"]) if one and one != "null")


def _condition(version: str) -> dict[str, str]:
    return dict(zip(("e_tag", "version"), version.split(" "), strict=False))


def _of_bucket(error: FileNotFoundError) -> bool:
    """True if it is the bucket that is not there."""
    return any(said in str(error) for said in NO_BUCKET)


def _said(error: Exception) -> str:
    """The last words of what obstore says, on one line; what is before may be a URL with a signature."""
    text = str(error).partition("\n\nDebug source")[0]
    return " ".join(text.rpartition(": ")[2].split())[:200]


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


def open_s3(name: str, client: Any, retry: Any) -> ObjectStore:
    """S3, or what speaks its protocol at `$AWS_ENDPOINT_URL`."""
    provider = None
    files = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))
    paths = [user_path(os.environ.get(key) or f"~/.aws/{file}") for key, file in files]
    if not os.environ.get("AWS_ACCESS_KEY_ID") and any(path.is_file() for path in paths):
        with contextlib.suppress(ImportError, ValueError):  # of `aws configure`, which obstore does not read
            from obstore.auth.boto3 import Boto3CredentialProvider

            provider = Boto3CredentialProvider()
    # not by lists of objects: not all that speak the protocol take one
    return S3Store(
        name,
        disable_bulk_delete=True,
        client_options=client,
        retry_config=retry,
        credential_provider=provider,
    )


def open_google(name: str, client: Any, retry: Any) -> ObjectStore:
    """Google Cloud Storage, or what speaks its XML API at `$STORAGE_EMULATOR_HOST`."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        return GCSStore(name, client_options=client, retry_config=retry)
    if not re.fullmatch(r"https?://[^/]+/?", emulator):
        raise ConfigError("$STORAGE_EMULATOR_HOST takes http://HOST:PORT")
    return GCSStore(
        name, base_url=emulator.rstrip("/"), bearer_token="none", client_options=client, retry_config=retry
    )


def open_azure(name: str, client: Any, retry: Any) -> ObjectStore:
    """A container of Azure Blob Storage, or of what speaks its protocol at `$AZURE_STORAGE_ENDPOINT`."""
    return AzureStore(name, client_options=client, retry_config=retry)


@dataclass(frozen=True)
class Kind:
    """One kind of object store."""

    open: Callable[[str, Any, Any], ObjectStore]  # of a bucket's name, obstore's ClientConfig and RetryConfig
    credentials: str  # where they come from, for the user


STORES: dict[str, Kind] = {
    "s3": Kind(open_s3, "set $AWS_ACCESS_KEY_ID, use `aws configure` and boto3, or give the node a role"),
    "gs": Kind(open_google, "`gcloud auth application-default login`, or give the node a service account"),
    "az": Kind(open_azure, "set $AZURE_STORAGE_ACCOUNT_NAME and _KEY, or give the node an identity"),
}
