"""What files hold: the sha256 of each one's bytes. It is remembered, so that an unchanged file is read once.

A file counts as unchanged while its size, mtime, ctime and inode are the same. No program sets the ctime, so a change
in place is seen even where the old mtime was given back.
"""

import contextlib
import json
import logging
import re
import stat
import time
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imet_ray.errors import StoreError
from imet_ray.storage.checked_read import file_digest, read_json
from imet_ray.storage.files import write_text

logger = logging.getLogger(__name__)

THREADS = 8  # more than cores: they wait for disks and networks; hashing releases the interpreter's lock
CHUNK = 64  # files per task
TICK_NS = 2_000_000_000  # a file that changed so lately may change again and keep its times: the coarsest clock's step
MOST = 32  # indexes that are kept: one per data directory
NAME = re.compile(r"[0-9a-f]{16}\.json")  # of an index: nothing else is deleted


def contents(files: Sequence[Path], index: Path | None = None) -> dict[Path, str]:
    """The sha256 of each file's bytes, in hex; files that cannot be read are left out.

    Measured at 109,237 files of 24 kB on 2 cores: 7 s from the disk, 0.9 s where all are remembered.

    Args:
        files: any number; each once.
        index: where digests are remembered, such as `Cache.contents`; None: nowhere. Processes may share it: it is
            replaced whole, and what one of them loses is read again.
    """
    known = _read(index)
    late: dict[str, list[Any]] = {}  # what has to be remembered
    found: dict[Path, str] = {}

    def chunk(some: Sequence[Path]) -> list[tuple[Path, list[Any], bool]]:
        return [(file, *row) for file in some if (row := _row(file, known.get(str(file)))) is not None]

    pool = ThreadPoolExecutor(THREADS)
    bar = tqdm(total=len(files), desc="reading", unit="img", disable=None, leave=False, delay=1)
    try:
        for rows in pool.map(chunk, [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]):
            for file, row, new in rows:
                found[file] = row[-1]
                if new:
                    late[str(file)] = row
            bar.update(CHUNK)
    finally:  # also of what was read before Ctrl-C
        pool.shutdown(cancel_futures=True)
        bar.close()
        if index is not None and late:
            _write(index, known | late, late.keys() | {str(file) for file in found})
    return found


def _row(file: Path, known: Any) -> tuple[list[Any], bool] | None:
    """Size, mtime, ctime, inode and digest of a file, and whether they are new and may be remembered."""
    now = time.time_ns()
    try:
        is_now = file.stat()
        state = [is_now.st_size, is_now.st_mtime_ns, is_now.st_ctime_ns, is_now.st_ino]
        if isinstance(known, list) and known[:-1] == state:
            return known, False
        if not stat.S_ISREG(is_now.st_mode):  # a pipe could be read for ever
            return None
        return [*state, file_digest(file)], is_now.st_ctime_ns < now - TICK_NS
    except OSError:
        return None


def _read(index: Path | None) -> dict[str, Any]:
    """What the index knows; nothing if it is not there, damaged, or of another kind."""
    with contextlib.suppress(StoreError):
        found = read_json(index) if index is not None else None
        if isinstance(found, dict):
            return found
    return {}


def _write(index: Path, rows: dict[str, Any], wanted: Set[str]) -> None:
    """Remember what is wanted now, and what else is still there; of many indexes the newest are kept."""
    try:
        kept = {path: row for path, row in rows.items() if path in wanted or Path(path).exists()}
        write_text(index, json.dumps(kept))
        ours = [path for path in index.parent.glob("*.json") if NAME.fullmatch(path.name)]
        for path in sorted(ours, key=lambda path: path.stat().st_mtime)[:-MOST]:
            path.unlink(missing_ok=True)
    except (StoreError, OSError) as error:  # the digests are right without it
        logger.warning("pictures will be read again next time: %s", error)
