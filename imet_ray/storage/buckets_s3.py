"""Buckets of S3, or of what speaks its protocol, through boto3.

The client tries three times by itself; what outlasts that is `imet_ray.storage.object_store.patiently`'s business.
Credentials are found by the client and never seen here.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.object_store import (
    BLOCK,
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

ATTEMPTS = 3  # of the client itself
PARTS = 1 << 30  # bytes; larger files are sent in parts


class S3Bucket:
    """Of S3, or of what speaks its protocol at `$AWS_ENDPOINT_URL`."""

    def __init__(self, name: str) -> None:
        boto3, self.config = client_module("s3", "boto3"), client_module("s3", "botocore.config")
        self.errors = client_module("s3", "botocore.exceptions")
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
        self.parts = client_module("s3", "boto3.s3.transfer").TransferConfig(multipart_threshold=PARTS)

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
                raise PassingError(code or str(status)) from None
            except (self.errors.NoCredentialsError, self.errors.PartialCredentialsError) as error:
                raise ConfigError(
                    f"s3://{self.name}: {error}: `aws configure`, or give the node a role"
                ) from None
            except self.errors.ParamValidationError:
                raise ConfigError(
                    f"{self.name!r} is no name of a bucket: --runs and --data take s3://BUCKET/FOLDER"
                ) from None
            except (self.errors.BotoCoreError, ConnectionError, TimeoutError) as error:
                raise PassingError(type(error).__name__) from None
            except Exception as error:  # of s3transfer, which is no part of botocore
                if type(error).__name__ in ("S3UploadFailedError", "RetriesExceededError"):
                    raise PassingError(type(error).__name__) from None
                raise

        return patiently(attempt, f"s3://{self.name}")


def _s3_entry(key: str, size: int, tag: str, modified: Any) -> Entry:
    bare = tag.strip('"')
    return Entry(key, size, tag, bare if len(bare) == 32 and "-" not in bare else "", modified.timestamp())
