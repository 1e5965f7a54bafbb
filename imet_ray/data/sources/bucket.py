"""A data directory in a bucket, brought to this machine once: what is here and has not changed there stays.

The folder's manifest says which version of each object lies here; it is written when all have come, so that an
interrupted fetch goes on with what is missing. Each node needs the pictures only to pack them, and packs are copied
(`imet_ray.storage.bucket_mirror`), so usually one machine fetches.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from imet_ray.errors import ConfigError, DataError
from imet_ray.storage.bucket_mirror import local_twin, md5_of
from imet_ray.storage.checked_read import read_json
from imet_ray.storage.files import disk_error, shown, url_parts, write_json
from imet_ray.storage.object_store import THREADS, Bucket, Entry, open_bucket

logger = logging.getLogger(__name__)

MANIFEST = ".fetched.json"


def fetch(url: str, folder: Path, *, progress: bool = True) -> Path:
    """Make a directory below `folder` what the bucket has; processes that ask at once share one fetch.

    Args:
        url: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.
        progress: draw a bar, if stderr is a terminal.

    Raises:
        ConfigError: for a URL that is none, or where nothing lies.
        StoreError: if the bucket does not answer, or the disk is full.
    """
    place = local_twin(url, Path("/"))  # checks it
    scheme, name, *parts = url_parts(place)
    bucket, prefix = open_bucket(scheme, name), "".join(f"{part}/" for part in parts)
    tag = hashlib.sha256(shown(place).encode()).hexdigest()[:8]
    root = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', (parts or [name])[-1])[-40:]}-{tag}"
    with _alone(root):
        wanted = _wanted(bucket, prefix)
        if not wanted:
            raise ConfigError(
                f"nothing lies at {shown(place)}: give the folder that has train.csv and train/ in it"
            )
        known = read_json(root / MANIFEST) if (root / MANIFEST).exists() else {}
        late = {path: e for path, e in wanted.items() if not _have(root / path, e, known.get(path))}
        if late:
            _bring(bucket, root, late, progress)
        for path in known.keys() - wanted.keys():  # deleted there
            (root / path).unlink(missing_ok=True)
        now = {path: entry.version for path, entry in wanted.items()}
        if now != known:
            write_json(root / MANIFEST, now)
    return root


def _wanted(bucket: Bucket, prefix: str) -> dict[str, Entry]:
    """Objects by their path in the folder; keys that name no path below it are refused."""
    found = {}
    for entry in bucket.listing(prefix):
        inside = entry.key[len(prefix) :]
        if not inside or inside.endswith("/"):  # an empty folder, as consoles make them
            continue
        path = PurePosixPath(inside)
        if str(path) != inside or path.is_absolute() or ".." in path.parts or "\0" in inside:
            raise DataError(f"the bucket has a key that is no path: {inside[:80]!r}: rename it")
        found[inside] = entry
    return found


def _have(path: Path, entry: Entry, version: str | None) -> bool:
    with contextlib.suppress(OSError):
        # without a manifest, after an interrupted fetch, the bytes tell
        if path.stat().st_size == entry.size:
            if version is not None:
                return version == entry.version
            return bool(entry.md5) and md5_of(path) == entry.md5
    return False


def _bring(bucket: Bucket, root: Path, late: dict[str, Entry], progress: bool) -> None:
    total = sum(entry.size for entry in late.values())

    def one(item: tuple[str, Entry]) -> int:
        path, entry = root / item[0], item[1]
        temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not bucket.get(entry.key, temporary, entry.size):
                raise DataError(f"{entry.key} was deleted while it was fetched: run the same command again")
            if temporary.stat().st_size != entry.size or (entry.md5 and md5_of(temporary) != entry.md5):
                raise DataError(f"{entry.key} changed while it was fetched: run the same command again")
            os.replace(temporary, path)
        except OSError as error:
            raise disk_error(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return entry.size

    pool = ThreadPoolExecutor(THREADS)
    bar = tqdm(
        total=total, desc="fetch", unit="B", unit_scale=True, disable=None if progress else True, leave=False
    )
    try:
        for size in pool.map(one, late.items()):
            bar.update(size)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process of this node fetches it; the lock ends with its process."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = root.with_name(f"{root.name}.lock").open("ab")
    except OSError as error:
        raise disk_error(root, error) from error
    with file:
        with contextlib.suppress(OSError):  # no locks on that file system: two may fetch, both whole files
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
