"""Runs in a bucket: each file has a mirror on this machine, and the bucket is the truth.

What is written goes to the bucket first, whole, and then into its place here. What is read is first made equal to
the bucket by one listing and parallel reads of what differs. So a file that is here was there, and a trial goes on
wherever it is started next. Which files there are is `imet_ray.storage.run_directory`'s business.
"""

import contextlib
import functools
import logging
import os
import time
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

bar_after_2_s = functools.partial(
    tqdm, leave=False, delay=2, disable=None
)  # None: unless stderr is no terminal


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

    def fetch(self, folder: Path, names: Collection[str], *, owner: bool = False) -> set[Path]:
        began = time.time()
        there = self._listing(folder)
        found = {path: entry for path, entry in there.items() if path.name in names}
        if owner:
            for path in folder.rglob("*"):  # never came to the bucket, or was deleted there
                if path.name in names and path not in found and path.stat().st_ctime < began:
                    path.unlink(missing_ok=True)
            for name in FENCED:
                if name in names and folder / name not in found:
                    folder.mkdir(parents=True, exist_ok=True)
                    _version_of(folder / name).write_text("")
        late = {path for path, entry in found.items() if not entry.matches(path)}

        def bring(path: Path) -> None:
            if owner and path.name in FENCED:
                self._get_fenced(path, late=path in late)
            elif path in late:
                self._get(path, found[path].size)

        with ThreadPoolExecutor(THREADS) as pool:
            list(bar_after_2_s(pool.map(bring, found), total=len(found), desc="fetch"))
        return set(there)

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

    def share(self, source: Path, path: Path) -> None:
        """Its sha256 comes last: then it is whole."""
        if self._bucket.head(self._key(_digest_of(path))) is None:
            self._bucket.put(source, self._key(path))
            self._bucket.put(file_digest(source).encode(), self._key(_digest_of(path)))

    def copy_shared(self, target: Path, path: Path) -> bool:
        digest, size = self.read_now(_digest_of(path)), self.size_of(path)
        if digest is None or size is None:
            return False
        with (
            beside(target) as temporary,
            bar_after_2_s(desc=f"copy {target.name}", total=size, unit="B", unit_scale=True) as bar,
        ):
            if self._bucket.get(self._key(path), temporary, size, bar.update) is None:
                return False
            if file_digest(temporary) != digest:
                logger.warning("%s is damaged in the bucket: packing again", path.name)
                return False
            os.replace(temporary, target)
        return True

    def check_set_aside(self) -> None:
        raise ConfigError("a run in a bucket cannot be renamed to set it aside: choose another --name")

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
        now, known = self._bucket.head(self._key(path)), _version_of(path)  # a listing may not tell versions
        version = now.version if now else ""
        if now is not None and (late or not known.exists() or known.read_text() != version):
            version = self._get(path, now.size)
        known.write_text(version)


def _folder(key: str) -> str:
    return f"{key}/" if key else ""


def _digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _version_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")
