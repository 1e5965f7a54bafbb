"""A data directory in a bucket, brought to this machine once: what has not changed, here or there, stays.

The folder's manifest says which version of each object lies here; it is written when all have come, so that an
interrupted fetch goes on with what is missing. A node needs the images only to pack them, and packs are copied
(`imet_ray.storage.bucket_mirror`), so usually one machine fetches.
"""

import contextlib
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from imet_ray.data.packed_images import one_process
from imet_ray.errors import ConfigError, DataError
from imet_ray.storage.checked_read import read_json
from imet_ray.storage.files import beside, write_json
from imet_ray.storage.object_store import THREADS, Bucket, Entry, open_bucket, split_url

MANIFEST = ".fetched-2.json"  # of an earlier version, whose tags are others: compared by content


def fetch(url: str, folder: Path) -> Path:
    """Make a directory below `folder` what the bucket has; processes that ask at once share one fetch.

    Args:
        url: such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER.

    Raises:
        ConfigError: for a URL that is none, or where nothing lies.
        StoreError: if the bucket does not answer, or the disk is full.
    """
    scheme, name, parts = split_url(url)
    url = f"{scheme}://{'/'.join((name, *parts))}"
    bucket, prefix = open_bucket(scheme, name), "".join(f"{part}/" for part in parts)
    tag = hashlib.sha256(url.encode()).hexdigest()[:8]
    root = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', (parts or (name,))[-1])[-40:]}-{tag}"
    with one_process(root):
        wanted = _wanted(bucket, prefix)
        if not wanted:
            raise ConfigError(f"nothing lies at {url}: give the folder that has train.csv and train/ in it")
        known = read_json(root / MANIFEST) if (root / MANIFEST).exists() else {}
        late = {path: e for path, e in wanted.items() if not _have(root / path, e, known.get(path))}
        if late:
            _bring(bucket, root, late)
        for path in known.keys() - wanted.keys():  # deleted there
            (root / path).unlink(missing_ok=True)
        now = {path: entry.tag for path, entry in wanted.items()}
        if now != known:
            write_json(root / MANIFEST, now)
    return root


def _wanted(bucket: Bucket, prefix: str) -> dict[str, Entry]:
    """Objects by their path in the folder."""
    found = {entry.key.removeprefix(prefix): entry for entry in bucket.listing(prefix)}
    folders = {str(folder) for path in found for folder in PurePosixPath(path).parents}
    # consoles make an empty object per folder, whose key lost its slash
    return {path: entry for path, entry in found.items() if entry.size or path not in folders}


def _have(path: Path, entry: Entry, tag: str | None) -> bool:
    """True if a file is the object.

    Args:
        tag: of the version that was fetched; None: without a manifest, after an interrupted fetch.
    """
    if tag is not None and tag != entry.tag:
        return False
    with contextlib.suppress(OSError):
        found = path.stat()
        as_fetched = (found.st_size, int(found.st_mtime)) == (entry.size, int(entry.modified))
        return (tag is not None and as_fetched) or entry.matches(path)
    return False


def _bring(bucket: Bucket, root: Path, late: dict[str, Entry]) -> None:
    total = sum(entry.size for entry in late.values())

    def one(item: tuple[str, Entry]) -> int:
        path, entry = root / item[0], item[1]
        with beside(path) as temporary:
            found = bucket.get(entry.key, temporary, entry.size)
            if found is None:
                raise DataError(f"{entry.key} was deleted while it was fetched: run the same command again")
            if found.tag != entry.tag:
                raise DataError(f"{entry.key} changed while it was fetched: run the same command again")
            os.utime(temporary, (entry.modified, entry.modified))
            os.replace(temporary, path)
        return entry.size

    pool = ThreadPoolExecutor(THREADS)
    bar = tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=None, leave=False)
    try:
        for size in pool.map(one, late.items()):
            bar.update(size)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
