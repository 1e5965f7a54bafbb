"""Run directories in a bucket: each has a local twin, and the bucket is the truth.

A local path that has `s3:` or `gs:` as a part is the twin of the object that the rest of the path names, on every
node alike. What is written goes to the bucket first, whole, and then into its place here; what is read is first made
equal to the bucket by one listing and parallel reads of what differs. So a file that is here was there, and
a trial goes on wherever it is started next. Which files there are is `imet_ray.storage.run_directory`'s business.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from imet_ray.errors import ConfigError
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.files import beside, url_parts
from imet_ray.storage.object_store import THREADS, Bucket, ChangedError, Entry, open_bucket

logger = logging.getLogger(__name__)

SHOWN_BYTES = 100_000_000
INDEX = "small.index"
INDEX_LIMIT = 1 << 30  # bytes of text
SHOWN_FROM = 200  # files: fewer need no bar


def local_twin(url: str, root: Path) -> Path:
    """Where the twin of a folder in a bucket lies.

    Args:
        url: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.
        root: of all twins; the same on all nodes.

    Raises:
        ConfigError: for a URL that is none, or that holds a password.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, folder = rest.partition("/")
    if "@" in rest or "?" in rest or "#" in rest:  # not shown: it may hold a password
        raise ConfigError(
            f"{scheme}:// takes a bucket and a folder, without user, password or query: credentials come from the "
            "environment, `aws configure` or `gcloud auth`, or the node's role"
        )
    parts = [part for part in folder.split("/") if part]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}", bucket):
        raise ConfigError(f"no bucket in {url[:80]!r}: give {scheme}://BUCKET/FOLDER")
    if url_parts(Path(*parts)) or any(
        part in (".", "..") or "\\" in part or not part.isprintable() for part in parts
    ):
        raise ConfigError(f"a folder in a bucket has no '.', '..', '\\' or ':' parts, got {url[:80]!r}")
    return root.joinpath(f"{scheme}:", bucket, *parts)


def publish(source: Path, path: Path, *, token: Path | None = None) -> bool:
    """Send a file to the bucket, as what `path` is the twin of; False if another writer has taken over.

    Args:
        token: of the writer, where only the newest one may write: then the object must still be the version that was
            fetched or sent last from this node. An older twin's write that was held up on its way is so refused.
    """
    bucket, key = _object(path)
    if token is None:
        bucket.put(source, key)
        return True
    while True:
        known = _version_of(path)
        version = known.read_text() if known.exists() else None
        try:
            known.write_text(bucket.put(source, key, version))
        except ChangedError:
            if read_text(token) != token.read_text():
                return False
            now = bucket.head(key)  # by an older twin, or by an attempt of ours whose answer was lost
            known.write_text(now.version if now else "")
            continue
        return True


def fetch(
    folder: Path,
    names: Collection[str],
    *,
    fenced: Collection[str] = (),
    listed: Collection[str] = (),
    owner: bool = False,
) -> set[Path]:
    """Make the files of these names, down to two folders below one, what the bucket has: one listing, parallel reads.

    Args:
        listed: names of files that are not read; which of them the bucket has is returned, as their places here.
        fenced: names whose version `publish` must know.
        owner: nobody else on this node writes here, so that what the bucket lacks goes.

    Raises:
        StoreError: if the bucket does not answer.
    """
    bucket, prefix = _object(folder)
    found: dict[Path, Entry] = {}
    there: set[Path] = set()
    began = time.time()
    for entry in bucket.listing(f"{prefix}/"):
        inside = PurePosixPath(entry.key[len(prefix) + 1 :])
        harmless = entry.key == f"{prefix}/{inside}" and not {"..", ".", "/"} & set(inside.parts)
        if harmless and len(inside.parts) <= 3:
            if inside.name in names:
                found[folder / inside] = entry
            elif inside.name in listed:
                there.add(folder / inside)
    for path in _local(folder, names) if owner else ():
        if (
            path not in found and path.stat().st_ctime < began
        ):  # never came to the bucket, or was deleted there
            path.unlink(missing_ok=True)
    for name in fenced:
        if (folder / name) not in found and name in names:
            folder.mkdir(parents=True, exist_ok=True)
            _version_of(folder / name).write_text("")

    late = {path for path, entry in found.items() if not _same(path, entry)}
    if len(late) >= SHOWN_FROM:
        late -= _from_index(folder, {path: found[path] for path in late})

    def bring(one: tuple[Path, Entry]) -> None:
        path, entry = one
        if path in late:
            get(path, entry=entry)
        if path.name in fenced:
            _version_of(path).write_text(entry.version)

    quiet = True if len(late) < SHOWN_FROM else None  # None: unless stderr is no terminal
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in tqdm(
            pool.map(bring, found.items()), total=len(found), desc="fetch", disable=quiet, leave=False
        ):
            pass
    return there


def write_index(folder: Path, names: Collection[str]) -> None:
    """Put all files of these names that are here into one object, so that a machine without them reads it at once."""
    texts = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in _local(folder, names)
    }
    bucket, key = _object(folder / INDEX)
    with beside(folder / INDEX) as temporary:
        temporary.write_bytes(zlib.compress(json.dumps(texts).encode(), 1))
        bucket.put(temporary, key)


def _from_index(folder: Path, wanted: dict[Path, Entry]) -> set[Path]:
    """Write those files whose text in the index is what the bucket has now; which."""
    if not get(folder / INDEX):
        return set()
    try:
        text = zlib.decompressobj().decompress((folder / INDEX).read_bytes(), INDEX_LIMIT)
        known = {folder / inside: text.encode() for inside, text in json.loads(text).items()}
    except (OSError, ValueError, AttributeError, TypeError, zlib.error):  # damaged: all are read one by one
        return set()
    done = set()
    for path, entry in wanted.items():
        data = known.get(path)
        if data is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() == entry.md5:
            with beside(path) as temporary:
                temporary.write_bytes(data)
                os.utime(temporary, (entry.modified, entry.modified))
                os.replace(temporary, path)
            done.add(path)
    return done


def get(path: Path, *, entry: Entry | None = None) -> bool:
    """Read one object into its twin, whole; False if there is none."""
    bucket, key = _object(path)
    with beside(path) as temporary:
        if not bucket.get(key, temporary, entry.size if entry else 0):
            return False
        if entry is not None:
            os.utime(temporary, (entry.modified, entry.modified))  # who looks on asks when it was written
        os.replace(temporary, path)
    return True


def fetch_one(path: Path) -> None:
    """Make one file what the bucket has."""
    found = head(path)
    if found is None:
        path.unlink(missing_ok=True)
    elif not _same(path, found):
        get(path, entry=found)


def fetch_log(path: Path, target: Path, *, live: bool = False) -> None:
    """Fetch a file that only grows; what is here stays if it is the bucket's with more at its end.

    Args:
        target: where it goes.
        live: what is here is being read, and stays unless the bucket's is the same with more at its end.
    """
    bucket, key = _object(path)
    with beside(target) as temporary:
        if not bucket.get(key, temporary):
            if not live:
                target.unlink(missing_ok=True)
            return
        if target.exists():
            ours, theirs = target.read_bytes(), temporary.read_bytes()
            if not theirs.startswith(ours) if live else ours.startswith(theirs):
                return
        os.replace(temporary, target)


def read_text(path: Path) -> str | None:
    """The text of the object that `path` is the twin of, from the bucket itself; None if there is none."""
    bucket, key = _object(path)
    with beside(path) as temporary:
        return temporary.read_text(encoding="utf-8") if bucket.get(key, temporary) else None


def put_text(path: Path, text: str, *, version: str | None = None) -> str:
    """Write a small object in the bucket alone; its new version.

    Raises:
        ChangedError: if it is no longer `version`.
    """
    bucket, key = _object(path)
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        return bucket.put(temporary, key, version)


def delete(path: Path) -> None:
    """Delete the object that `path` is the twin of."""
    bucket, key = _object(path)
    bucket.delete(key)


def head(path: Path) -> Entry | None:
    """The object that `path` is the twin of, without its bytes."""
    bucket, key = _object(path)
    return bucket.head(key)


def share_checked(source: Path, path: Path) -> None:
    """Send a large file as what `path` is the twin of, if it is not there; its sha256 comes last: then it is whole."""
    mark = path.with_name(f"{path.name}.sha256")
    if head(mark) is None:
        bucket, key = _object(path)
        bucket.put(source, key)
        put_text(mark, file_digest(source))


def copy_checked(target: Path, path: Path) -> bool:
    """Fetch what `share_checked` sent into a file elsewhere; False if it is not there, not whole, or altered."""
    digest = read_text(path.with_name(f"{path.name}.sha256"))
    found = head(path) if digest else None
    if digest is None or found is None:
        return False
    bucket, key = _object(path)
    bar = tqdm(
        *(None, f"copy {target.name}", found.size),
        unit="B",
        unit_scale=True,
        disable=None if found.size >= SHOWN_BYTES else True,
        leave=False,
    )
    with contextlib.closing(bar), beside(target) as temporary:
        if not bucket.get(key, temporary, found.size, bar.update):
            return False
        if file_digest(temporary) != digest:
            logger.warning("%s is damaged in the bucket: packing again", path.name)
            return False
        os.replace(temporary, target)
    return True


def folders(path: Path) -> list[str]:
    """Names of the folders in a folder."""
    bucket, prefix = _object(path)
    return bucket.folders(f"{prefix}/" if prefix else "")


def _object(path: Path) -> tuple[Bucket, str]:
    """The bucket and the key of a twin."""
    scheme, name, *key = url_parts(path)
    return open_bucket(scheme, name), "/".join(key)


def _local(folder: Path, names: Collection[str]) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        for name in files:
            if name in names:
                yield Path(root) / name


def _same(path: Path, entry: Entry) -> bool:
    """True if the local file has the object's bytes, as far as the store tells them."""
    with contextlib.suppress(OSError):
        if entry.md5 and path.stat().st_size == entry.size:
            return md5_of(path) == entry.md5
    return False


def md5_of(path: Path) -> str:
    """What object stores tell of what they hold."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _version_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")
