"""Buckets of Google Cloud Storage, or of what speaks its JSON API at `$STORAGE_EMULATOR_HOST`, through Google's client.

The client's own retries are off, so that `imet_ray.storage.object_store.patiently` alone counts the time; uploads in
chunks are the exception, where only the client can go on in the middle. Credentials are found by the client and never
seen here.
"""

import base64
import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import object_store as buckets
from imet_ray.storage.object_store import (
    CONNECT_S,
    LARGE,
    READ_S,
    THREADS,
    ChangedError,
    Entry,
    PassingError,
    client_module,
    patiently,
)

T = TypeVar("T")

PAGE = 1000  # objects of a listing in one answer, the most that Google gives
ONE_REQUEST = 8 << 20  # bytes; the client sends larger files in chunks
CHUNK = 32 << 20  # bytes sent or read by one request of many; what is sent lies in memory
CHUNKS_AT_ONCE = 8  # read of one object
TIMEOUT = (CONNECT_S, READ_S)
OCTETS = "application/octet-stream"
# else the client asks for the bucket itself, in the background, once and after each object that is not there
NO_METADATA = ("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
WAYS_IN = "`gcloud auth application-default login`, or give the node a service account"


class GoogleBucket:
    """Of Google Cloud Storage. The version of an object is its generation."""

    def __init__(self, name: str) -> None:
        os.environ.setdefault(*NO_METADATA)
        storage = client_module("gs", "google.cloud.storage")
        self.name, self.url = name, f"gs://{name}"
        self.answers = client_module("gs", "google.api_core.exceptions")
        self.auth = client_module("gs", "google.auth.exceptions")
        self.requests = client_module("gs", "requests")
        self.passing = (
            self.answers.RetryError,
            self.requests.RequestException,
            client_module("gs", "urllib3.exceptions").HTTPError,  # in the middle of a body
            client_module("gs", "google.cloud.storage.exceptions").DataCorruption,
            ConnectionError,
            TimeoutError,
        )
        self.retry = client_module("gs", "google.cloud.storage.retry").DEFAULT_RETRY
        try:
            self.client = storage.Client(project=None)  # only who makes buckets needs one
        except (self.auth.GoogleAuthError, ValueError) as error:
            said = str(error).partition(". ")[0].rstrip(".")
            raise ConfigError(f"{self.url}: {said}: {WAYS_IN}") from None
        try:
            self.bucket = self.client.bucket(name)
        except ValueError:
            raise ConfigError(
                f"{name!r} is no name of a bucket: --runs and --data take gs://BUCKET/FOLDER"
            ) from None
        session = self.client._http
        if not session.is_mtls:  # which has an adapter of its own
            adapter = self.requests.adapters.HTTPAdapter(pool_maxsize=THREADS)
            for scheme in ("http://", "https://"):  # requests keeps 10 connections, and opens the others anew
                session.mount(scheme, adapter)

    def listing(self, prefix: str) -> Iterator[Entry]:
        """See `Bucket`."""
        for blobs, _ in self._pages(prefix):
            yield from map(_entry, blobs)

    def folders(self, prefix: str) -> list[str]:
        """See `Bucket`."""
        return [one[len(prefix) : -1] for _, below in self._pages(prefix, "/") for one in sorted(below)]

    def head(self, key: str) -> Entry | None:
        """See `Bucket`."""
        blob = self.bucket.blob(key)

        def ask() -> Entry:
            blob.reload(retry=None, timeout=TIMEOUT)
            return _entry(blob)

        return self._call(key, ask)

    def get(
        self, key: str, path: Path, size: int = 0, tell: Callable[[int], object] = lambda n: None
    ) -> bool:
        """See `Bucket`."""
        if size < LARGE:
            return self._read(key, path, tell)
        while (found := self.head(key)) is not None:
            with path.open("wb") as file:
                file.truncate(found.size)

            def chunk(start: int, whole: Entry = found) -> None:
                part = range(start, min(start + CHUNK, whole.size))
                if not self._read(key, path, tell, part=part, version=whole.version):
                    raise ChangedError(key)

            with (
                contextlib.suppress(ChangedError),  # written anew meanwhile: all of it once more
                ThreadPoolExecutor(CHUNKS_AT_ONCE) as pool,
            ):
                list(pool.map(chunk, range(0, found.size, CHUNK)))
                return True
        return False

    def put(self, path: Path, key: str, version: str | None = None) -> str:
        """See `Bucket`."""
        size = path.stat().st_size
        condition = None if version is None else int(version or 0)  # 0: there must be none

        def send() -> str:
            blob = self.bucket.blob(key, chunk_size=CHUNK if size > ONE_REQUEST else None)
            again = self.retry.with_delay(
                initial=buckets.PAUSE_S[0], maximum=buckets.PAUSE_S[1]
            ).with_timeout(buckets.PATIENCE_S)
            try:
                blob.upload_from_filename(
                    str(path),
                    content_type=OCTETS,
                    if_generation_match=condition,
                    timeout=TIMEOUT,
                    retry=again if size > ONE_REQUEST else None,
                )
            except self.answers.GoogleAPICallError as error:
                if error.code not in (404, 410):
                    raise
                self._page(key)  # raises if there is no bucket; else an upload in chunks has to begin anew
                raise PassingError(type(error).__name__) from None
            return str(blob.generation)

        return str(self._call(key, send))

    def delete(self, key: str) -> None:
        """See `Bucket`."""
        self._call(key, lambda: self.bucket.blob(key).delete(retry=None, timeout=TIMEOUT))

    def _read(
        self,
        key: str,
        path: Path,
        tell: Callable[[int], object],
        *,
        part: range | None = None,
        version: str | None = None,
    ) -> bool:
        """Write an object, or a part of it, into its place in a file; False if there is none of that version."""
        blob = self.bucket.blob(key, generation=int(version) if version else None)

        def fetch() -> bool:
            with path.open("r+b" if part else "wb") as file:
                file.seek(part.start if part else 0)
                blob.download_to_file(
                    file,
                    start=part.start if part else None,
                    end=part.stop - 1 if part else None,
                    raw_download=True,  # as it is kept: unpacked on the way, it would have another size and md5
                    checksum=None if part else "auto",  # the store knows only that of the whole
                    timeout=TIMEOUT,
                    retry=None,
                )
                tell(file.tell() - (part.start if part else 0))  # not before: all of it may come again
            return True

        return bool(self._call(key, fetch))

    def _pages(self, prefix: str, delimiter: str | None = None) -> Iterator[tuple[list[Any], list[str]]]:
        token = None
        while True:
            blobs, below, token = self._page(prefix, delimiter, token)
            yield blobs, below
            if not token:
                return

    def _page(
        self, prefix: str, delimiter: str | None = None, token: str | None = None
    ) -> tuple[list[Any], list[str], str | None]:
        """Objects, folders, and what the next page begins with."""

        def ask() -> tuple[list[Any], list[str], str | None]:
            found = self.client.list_blobs(
                self.bucket,
                prefix=prefix,
                delimiter=delimiter,
                page_size=PAGE,
                page_token=token,
                fields="items(name,size,generation,md5Hash,updated),prefixes,nextPageToken",
                timeout=TIMEOUT,
                retry=None,
            )
            return list(next(found.pages, ())), list(found.prefixes), found.next_page_token

        page = self._call(prefix, ask)
        if page is None:
            raise self._no_bucket()
        return page

    def _call(self, key: str, work: Callable[[], T]) -> T | None:
        """Its outcome; None where there is no such object."""

        def attempt() -> T | None:
            try:
                return work()
            except self.answers.GoogleAPICallError as error:
                if (refusal := self._refusal(key, error)) is not None:
                    raise refusal from None
                return None
            except self.auth.GoogleAuthError as error:
                # such as of a node's metadata server that did not answer
                network = any(isinstance(one, self.auth.TransportError) for one in (error, *error.args))
                if error.retryable or network:
                    raise PassingError(type(error).__name__) from None
                raise self._no_entry(error) from None
            except (
                self.requests.exceptions.MissingSchema,
                self.requests.exceptions.InvalidSchema,
                self.requests.exceptions.InvalidURL,
            ):
                raise ConfigError("$STORAGE_EMULATOR_HOST takes http://HOST:PORT") from None
            except self.passing as error:
                raise PassingError(type(getattr(error, "cause", None) or error).__name__) from None

        return patiently(attempt, self.url)

    def _refusal(self, key: str, error: Any) -> Exception | None:
        """What the store said, in our words; nothing where there is no such object."""
        said, name = f"{error} {error.errors}".lower(), type(error).__name__
        if error.code == 404:
            return self._no_bucket() if "bucket does not exist" in said else None
        if error.code == 412:
            return ChangedError(key)
        if error.code in (408, 429) or error.code >= 500 or "ratelimitexceeded" in said:  # which may be a 403
            return PassingError(name)
        if error.code in (401, 403):
            return self._no_entry(error)
        return StoreError(f"{self.url}/{key}: {name}: look at the bucket")

    def _no_entry(self, error: Exception) -> ConfigError:
        return ConfigError(f"{self.url} refuses these credentials ({type(error).__name__}): {WAYS_IN}")

    def _no_bucket(self) -> ConfigError:
        return ConfigError(f"there is no bucket {self.url}: create it first")


def _entry(blob: Any) -> Entry:
    known = base64.b64decode(blob.md5_hash or "").hex()  # composite objects have none
    return Entry(blob.name, blob.size, str(blob.generation), known, blob.updated.timestamp())
