"""Lock files. Where the file system knows no locks (Lustre, NFS without lockd, sshfs), the caller is told."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from imet_ray.errors import ImetError
from imet_ray.storage.files import disk_error

logger = logging.getLogger(__name__)

HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)  # all else: there are no locks


class LockedError(ImetError):
    """Another process holds the lock; the text is what it has written into the file."""


@contextlib.contextmanager
def locked(path: Path, *, who: str, waiting: str | None = None) -> Iterator[bool]:
    """Hold a lock file until the block ends. The lock ends with its process, however it ends.

    Yields False where the file system knows no locks.

    Args:
        who: holds it, for others to read.
        waiting: said before another process is waited for; None: it is not.

    Raises:
        LockedError: if another process holds it, and is not waited for.
        StoreError: if the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise disk_error(path, error) from error
    with opened as file:
        held = _try(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if held is False:
            if waiting is None:
                raise LockedError(_said(file))
            logger.warning("%s", waiting)
            held = _try(file, fcntl.LOCK_EX)
        if held:
            file.truncate(0)
            file.write(who)
            file.flush()
        yield bool(held)


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[bool]:
    """Hold a folder, which needs no file for it, until the block ends; others that ask wait. It is for moments.

    Yields False where there are no such locks (NFS), or the folder cannot be listed.
    """
    with contextlib.ExitStack() as stack:
        held = False
        with contextlib.suppress(OSError):
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        yield held


def holder(path: Path) -> str | None:
    """Who holds a lock file; empty: nobody does, None: the file system knows no locks. It neither waits nor writes."""
    try:
        with path.open() as file:
            held = _try(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None if held is None else "" if held else _said(file)
    except OSError:
        return ""


def _try(file: IO[str], how: int) -> bool | None:
    """True if the lock is ours now, False if it is another's, None if there are no locks."""
    try:
        fcntl.lockf(file, how)  # not flock: forked loaders would keep it
    except OSError as error:
        return False if error.errno in HELD_BY_ANOTHER else None
    return True


def _said(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200).strip() or "?"
