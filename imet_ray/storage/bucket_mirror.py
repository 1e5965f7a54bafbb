"""Runs in a bucket: each file has a mirror on this machine, and the bucket is the truth.

What is written goes to the bucket first, whole, and then into its place here. What is read is first made equal to
the bucket by one listing and parallel reads of what differs. So a file that is here was there, and a trial goes on
wherever it is started next. Which files there are is `imet_ray.storage.run_directory`'s business.
"""

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from imet_ray.errors import ConfigError
from imet_ray.storage import driver_lease
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.files import Files, SupersededError, beside, sync
from imet_ray.storage.object_store import THREADS, Bucket, ChangedError, Entry, open_bucket, split_url
from imet_ray.storage.run_directory import FENCED, TOKEN

logger = logging.getLogger(__name__)

SHOWN_BYTES = 100_000_000
INDEX = "small.index"
INDEX_LIMIT = 1 << 30  # bytes of text
SHOWN_FROM = 200  # files: fewer need no bar


@dataclass(frozen=True)
class MirroredFiles(Files):
    """Files of a folder in a bucket, and of its mirror on this machine."""

    root: Path  # of the mirror; the same on all nodes
    url: str  # such as s3://BUCKET/FOLDER

    @classmethod
    def of(cls, url: str, cache: Path) -> "MirroredFiles":
        """The folder at a URL, with its mirror below a cache.

        Raises:
            ConfigError: for a URL that is none, or that holds a password.
        """
        scheme, bucket, parts = split_url(url)
        root = cache.resolve().joinpath("mirrors", scheme, bucket, *parts)
        return cls(root, f"{scheme}://{'/'.join((bucket, *parts))}")

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        with beside(path) as temporary:
            yield temporary
            sync(temporary)
            if path.name in FENCED:
                self._put_fenced(temporary, path)
            else:
                self._bucket.put(temporary, self._key(path))
            os.replace(temporary, path)

    def remove(self, path: Path) -> None:
        self._bucket.delete(self._key(path))
        super().remove(path)

    def size_of(self, path: Path) -> int | None:
        found = self._bucket.head(self._key(path))
        return found.size if found else None

    def address(self, path: Path) -> str:
        return "/".join((self.url, *path.relative_to(self.root).parts))

    def read_now(self, path: Path) -> str | None:
        data = self._bucket.read(self._key(path))
        return None if data is None else data.decode("utf-8", errors="replace")

    def folders(self, path: Path) -> list[str]:
        return self._bucket.folders(_folder(self._key(path)))

    def fetch(
        self,
        folder: Path,
        names: Collection[str],
        *,
        fenced: Collection[str] = (),
        listed: Collection[str] = (),
        owner: bool = False,
    ) -> set[Path]:
        began = time.time()
        there = self._listing(folder)
        found = {path: entry for path, entry in there.items() if path.name in names}
        for path in _local(folder, names) if owner else ():
            # never came to the bucket, or was deleted there
            if path not in found and path.stat().st_ctime < began:
                path.unlink(missing_ok=True)
        for name in fenced:
            if (folder / name) not in found and name in names:
                folder.mkdir(parents=True, exist_ok=True)
                _version_of(folder / name).write_text("")
        late = {path for path, entry in found.items() if not entry.matches(path)}
        if len(late) >= SHOWN_FROM:
            late -= self._from_index(folder, {path: found[path] for path in late})

        def bring(path: Path) -> None:
            if path.name in fenced:
                self._get_fenced(path, late=path in late)
            elif path in late:
                self._get(path, found[path].size)

        quiet = True if len(late) < SHOWN_FROM else None  # None: unless stderr is no terminal
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in tqdm(pool.map(bring, found), total=len(found), desc="fetch", disable=quiet, leave=False):
                pass
        return {path for path in there if path.name in listed}

    def fetch_file(self, path: Path) -> None:
        found = self._bucket.head(self._key(path))
        if found is None:
            path.unlink(missing_ok=True)
        elif not found.matches(path):
            self._get(path, found.size)

    def fetch_log(self, path: Path, target: Path) -> Path:
        theirs = self._bucket.read(self._key(path))
        if theirs is None:
            target.unlink(missing_ok=True)
        elif not (target.exists() and target.read_bytes().startswith(theirs)):
            with beside(target) as temporary:
                temporary.write_bytes(theirs)
                os.replace(temporary, target)
        return target

    def publish(self, path: Path) -> None:
        self._bucket.put(path, self._key(path))

    @contextlib.contextmanager
    def leased(self, lease: Path, who: str) -> Iterator[None]:
        with driver_lease.held(self._bucket, self._key(lease), who):
            yield

    def leaseholder(self, lease: Path) -> str:
        return driver_lease.holder(self._bucket, self._key(lease))

    def write_index(self, folder: Path, names: Collection[str]) -> None:
        """Put all files of these names into one object, so that a machine without them reads it at once."""
        self.fetch(folder, names)
        texts = {
            str(path.relative_to(folder)): (entry.tag, path.read_text(encoding="utf-8"))
            for path, entry in self._listing(folder).items()
            if path.name in names and entry.matches(path)
        }
        self._bucket.put(zlib.compress(json.dumps(texts).encode(), 1), self._key(folder / INDEX))

    def share(self, source: Path, path: Path) -> None:
        """Its sha256 comes last: then it is whole."""
        if self._bucket.head(self._key(_mark(path))) is None:
            self._bucket.put(source, self._key(path))
            self._bucket.put(file_digest(source).encode(), self._key(_mark(path)))

    def copy_shared(self, target: Path, path: Path) -> bool:
        digest = self.read_now(_mark(path))
        size = self.size_of(path) if digest else None
        if digest is None or size is None:
            return False
        bar = tqdm(
            *(None, f"copy {target.name}", size),
            unit="B",
            unit_scale=True,
            disable=None if size >= SHOWN_BYTES else True,
            leave=False,
        )
        with contextlib.closing(bar), beside(target) as temporary:
            if self._bucket.get(self._key(path), temporary, size, bar.update) is None:
                return False
            if file_digest(temporary) != digest:
                logger.warning("%s is damaged in the bucket: packing again", path.name)
                return False
            os.replace(temporary, target)
        return True

    def check_set_aside(self) -> None:
        raise ConfigError("--fresh renames a directory, and a bucket has none: choose another --name")

    @property
    def _bucket(self) -> Bucket:
        scheme, name, _ = split_url(self.url)
        return open_bucket(scheme, name)

    def _key(self, path: Path) -> str:
        return "/".join((*split_url(self.url)[2], *path.relative_to(self.root).parts))

    def _listing(self, folder: Path) -> dict[Path, Entry]:
        """What lies at most two folders below one, by its place here."""
        prefix = _folder(self._key(folder))
        found = {entry.key.removeprefix(prefix): entry for entry in self._bucket.listing(prefix)}
        return {folder / key: entry for key, entry in found.items() if len(PurePosixPath(key).parts) <= 3}

    def _get(self, path: Path, size: int) -> str:
        """Read one object into its mirror, whole; its version, or nothing if there is none any more."""
        with beside(path) as temporary:
            entry = self._bucket.get(self._key(path), temporary, size)
            if entry is None:
                return ""
            os.utime(temporary, (entry.modified, entry.modified))  # who looks on asks when it was written
            os.replace(temporary, path)
        return entry.version

    def _put_fenced(self, source: Path, path: Path) -> None:
        """Send a file that only the trial's newest writer may write.

        The object must still be the version that was fetched or sent last from this node. So a write of an older
        writer that was held up on its way is refused.

        Raises:
            SupersededError: if another writer has taken over.
        """
        bucket, key, known, token = self._bucket, self._key(path), _version_of(path), path.with_name(TOKEN)
        while True:
            version = known.read_text() if known.exists() else None
            try:
                known.write_text(bucket.put(source, key, version))
                return
            except ChangedError:
                if self.read_now(token) != token.read_text():
                    raise SupersededError(str(path.parent)) from None
                now = bucket.head(key)  # by an older writer, or by an attempt of ours whose answer was lost
                known.write_text(now.version if now else "")

    def _get_fenced(self, path: Path, *, late: bool) -> None:
        now, known = (
            self._bucket.head(self._key(path)),
            _version_of(path),
        )  # a listing may not tell the version
        version = now.version if now else ""
        if now is not None and (late or not known.exists() or known.read_text() != version):
            version = self._get(path, now.size)
        known.write_text(version)

    def _from_index(self, folder: Path, wanted: dict[Path, Entry]) -> set[Path]:
        """Write those files whose text in the index is what the bucket has now; which."""
        data = self._bucket.read(self._key(folder / INDEX))
        try:
            text = zlib.decompressobj().decompress(data or b"", INDEX_LIMIT)
            known = {
                folder / inside: (str(tag), str(text)) for inside, (tag, text) in json.loads(text).items()
            }
        except (
            ValueError,
            AttributeError,
            TypeError,
            zlib.error,
        ):  # none, or damaged: all are read one by one
            return set()
        done = {path for path, entry in wanted.items() if path in known and known[path][0] == entry.tag}
        for path in done:
            with beside(path) as temporary:
                temporary.write_text(known[path][1], encoding="utf-8")
                os.utime(temporary, (wanted[path].modified, wanted[path].modified))
                os.replace(temporary, path)
        return done


def _folder(key: str) -> str:
    return f"{key}/" if key else ""


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _local(folder: Path, names: Collection[str]) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        for name in files:
            if name in names:
                yield Path(root) / name


def _version_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")
