"""Where tags go: to a table that is whole or not there, to sidecars beside the pictures, or to stdout.

Whatever stops the process, the same command goes on: a table grows in a partial file beside it, a line per batch, whose
torn last line is dropped, and is put in place when all are there. A new kind is a function and a line in `OUTPUTS`.
"""

import contextlib
import errno
import fcntl
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from imet_ray.command_line import pasted
from imet_ray.errors import ConfigError, DataError, StoreError, unknown_name
from imet_ray.storage.files import clear_leftovers, disk_error
from imet_ray.tagging.pictures import Found
from imet_ray.tagging.rows import Row
from imet_ray.tagging.sidecars import Sidecars
from imet_ray.tagging.tables import TABLES, Table, json_line, write_csv

XMP = "xmp"
BEGINNING = b'{"tagged_by": '  # of a partial file


@dataclass(frozen=True)
class Made:
    """What decides the labels, as outputs note it."""

    tagged_by: str
    how: str  # in words


class Output(ABC):
    """Where tags go. It is entered before anything is asked of it."""

    where: str  # for who reads what was done

    @abstractmethod
    def has(self, picture: Found) -> bool:
        """True if the picture was tagged before, by the same ensemble in the same way."""

    def failed(self, picture: Found) -> bool:
        """True if a command that was stopped could not read it: it comes last.

        Else the batches behind it were others than without the stop, and so the last digits of their probabilities.
        """
        return False

    @abstractmethod
    def add(self, rows: Sequence[tuple[Found, Row]], unread: Sequence[str] = ()) -> dict[str, str]:
        """Keep the rows of a batch for good; of which pictures they cannot be kept, and why.

        Args:
            unread: pictures of the batch that cannot be read.

        Raises:
            StoreError: if nothing can be written any more.
        """

    def finish(self) -> None:  # noqa: B027  # most have nothing to do
        """All that can be tagged is."""

    def check(self, todo: Sequence[Found]) -> None:  # noqa: B027
        """Raise ConfigError if it cannot take some of these, before hours are spent on them."""

    @contextlib.contextmanager
    def opened(self) -> Iterator["Output"]:
        """Nobody else writes there meanwhile."""
        yield self


class Printed(Output):
    """CSV on stdout, as it comes. Nothing is remembered."""

    where = "stdout"

    def __init__(self) -> None:
        self.begun = False

    def has(self, picture: Found) -> bool:
        return False

    def add(self, rows: Sequence[tuple[Found, Row]], unread: Sequence[str] = ()) -> dict[str, str]:
        write_csv(sys.stdout, [row for _, row in rows], header=not self.begun)
        sys.stdout.flush()
        self.begun = True
        return {}

    def finish(self) -> None:
        if not self.begun:
            write_csv(sys.stdout, [], header=True)


class InTable(Output):
    """A table, and the partial file that it grows in."""

    def __init__(self, path: Path, table: Table, made: Made) -> None:
        table.check()
        if path.is_dir():
            raise ConfigError(
                f"--out {path} is a folder: give a file in it, such as tags{path.suffix or '.csv'}"
            )
        self.path, self.table, self.made = path, table, made
        self.partial = path.with_name(f"{path.name}.partial")
        self.where = str(path)
        self.head = f"{json_line({'tagged_by': made.tagged_by, 'how': made.how})}\n"  # of the partial file
        self.rows: dict[str, Row] = {}  # of the table
        self.new: dict[str, Row] = {}  # of the partial file
        self.unread: set[str] = set()  # likewise
        self._file: FileIO | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Output]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._locked()
        except OSError as error:
            raise disk_error(self.partial, error) from error
        with file:
            self._file = file
            try:
                clear_leftovers(self.path)
                self.rows = self._before()  # behind the lock: who held it may have written the table
                self.new = self._resumed()
                yield self
            finally:
                if self._is_empty():  # else other options would be refused for nothing
                    self.partial.unlink(missing_ok=True)
        self._file = None

    def has(self, picture: Found) -> bool:
        return picture.name in self.rows or picture.name in self.new

    def failed(self, picture: Found) -> bool:
        return picture.name in self.unread

    def add(self, rows: Sequence[tuple[Found, Row]], unread: Sequence[str] = ()) -> dict[str, str]:
        if rows or not self.unread.issuperset(unread):  # else it says nothing new
            batch = {"rows": [row.to_dict() for _, row in rows], "unread": list(unread)}
            self._append(f"{json_line(batch)}\n")  # one line: it is kept whole or not at all
            self.new |= {row.path: row for _, row in rows}
            self.unread.update(unread)
        return {}

    def finish(self) -> None:
        new = {path: row for path, row in self.new.items() if path not in self.rows}
        if new or not self.path.exists():
            self.table.write(self.path, [*self.rows.values(), *new.values()])
        assert self._file is not None
        self._file.truncate(0)  # it goes when this is left

    def _before(self) -> dict[str, Row]:
        """The rows of the table, where an earlier command finished it.

        Raises:
            ConfigError: if it is of another ensemble or none of ours: it is never overwritten.
        """
        if not os.path.lexists(self.path):
            return {}
        try:
            rows = {row.path: row for row in self.table.read(self.path)}
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror or error}") from error
        except Exception:  # whatever pandas, csv and json raise of a stranger's file
            raise ConfigError(
                f"--out {self.path} is there, and is no table of tags: give another name, or move it away"
            ) from None
        self._refuse_other(self.path, {row.tagged_by for row in rows.values()})
        return rows

    def _refuse_other(self, path: Path, tagged_by: set[str]) -> None:
        if others := sorted(tagged_by - {self.made.tagged_by}):
            raise ConfigError(
                f"{path} has tags by {others[0]}, not by {self.made.tagged_by}: the ensemble, its views or the options "
                "are others; give another --out, or move it away"
            )

    def _locked(self) -> FileIO:
        """The partial file, which no other process writes.

        Raises:
            ConfigError: if one does.
        """
        while True:
            file = self.partial.open("ab+", buffering=0)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.close()
                    raise ConfigError(
                        f"another process tags into {self.path}: wait for it, or give another --out"
                    ) from None
            with contextlib.suppress(FileNotFoundError):  # another one has just finished it
                if os.path.samestat(os.fstat(file.fileno()), self.partial.stat()):
                    return file
            file.close()

    def _resumed(self) -> dict[str, Row]:
        """The rows of a command that was stopped; from a line on that is torn, or that power failed on, all goes.

        Raises:
            ConfigError: if they are another ensemble's.
            StoreError: if the file is none of ours.
        """
        assert self._file is not None
        self._file.seek(0)
        head, *lines = self._file.read().splitlines(keepends=True) or [b""]
        batches, whole = _whole_batches(lines)
        rows = [row for found, _ in batches for row in found]
        try:
            begun = {str(json.loads(head)["tagged_by"])}
        except (ValueError, KeyError, TypeError):
            if rows or not BEGINNING.startswith(head[: len(BEGINNING)]):
                raise StoreError(
                    f"{self.partial} is damaged: delete it (`{pasted('rm', self.partial)}`), and begin anew"
                ) from None
        if rows:
            self._refuse_other(self.partial, begun)
            self._file.truncate(len(head) + whole)
            self.unread = {name for _, unread in batches for name in unread}
        else:  # nothing is lost
            self._file.truncate(0)
            self._append(self.head)
        return {row.path: row for row in rows}

    def _is_empty(self) -> bool:
        """True if the partial file holds its head at most."""
        assert self._file is not None
        self._file.seek(0)
        return self.head.encode().startswith(self._file.read(len(self.head.encode()) + 1))

    def _append(self, text: str) -> None:
        assert self._file is not None
        data = memoryview(text.encode())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise disk_error(self.partial, error) from error


def _whole_batches(lines: Sequence[bytes]) -> tuple[list[tuple[list[Row], list[str]]], int]:
    """The batches before the first line that is none, each as rows and what could not be read; and their bytes."""
    batches, whole = [], 0
    for line in lines:
        try:
            found = json.loads(line)
            batch = [Row.of(row) for row in found["rows"]], [str(name) for name in found["unread"]]
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        batches.append(batch)
        whole += len(line)
    return batches, whole


class InSidecars(Output):
    """dc:subject in a sidecar beside each picture."""

    where = "sidecars beside the pictures"

    def __init__(self, made: Made, prefix: str) -> None:
        self.made, self.sidecars = made, Sidecars(prefix)

    def check(self, todo: Sequence[Found]) -> None:
        if elsewhere := [picture.path for picture in todo if not picture.is_local]:
            raise ConfigError(
                f"--out xmp writes beside the pictures, and {elsewhere[0]} lies in a bucket: choose --out tags.csv, or "
                "bring the pictures here"
            )
        folders = {Path(picture.path).parent for picture in todo}
        if folders and all(folder.is_dir() and not os.access(folder, os.W_OK) for folder in folders):
            raise ConfigError(
                f"--out xmp writes beside the pictures, and {min(folders)} cannot be written: choose --out tags.csv, "
                "or copy the pictures"
            )

    def has(self, picture: Found) -> bool:
        with contextlib.suppress(DataError):  # it is told of when it is to be written
            return self.sidecars.tagged_by(Path(picture.path)) == self.made.tagged_by
        return False

    def add(self, rows: Sequence[tuple[Found, Row]], unread: Sequence[str] = ()) -> dict[str, str]:
        problems = {}
        for picture, row in rows:
            try:
                self.sidecars.write(Path(picture.path), row.labels, self.made.tagged_by)
            except DataError as error:
                problems[picture.name] = str(error)
        return problems


@dataclass(frozen=True)
class Asked:
    """What a person asks of an output."""

    out: Path | None
    made: Made
    prefix: str = ""


def output_of(asked: Asked) -> Output:
    """The output that `--out` names; None: stdout.

    Raises:
        ConfigError: for a suffix that nobody knows, or a prefix that nothing would use.
    """
    if asked.out is None:
        kind = "-"
    else:
        kind = XMP if str(asked.out) == XMP else asked.out.suffix.lower()
    if kind not in OUTPUTS:
        known = [name for name in OUTPUTS if name != "-"]
        raise unknown_name("kind of --out", kind or str(asked.out), known)
    if asked.prefix and kind != XMP:
        raise ConfigError("--prefix is for --out xmp: tables have only labels in them")
    return OUTPUTS[kind](asked)


def _in_table(suffix: str) -> Callable[[Asked], Output]:
    def make(asked: Asked) -> Output:
        assert asked.out is not None
        return InTable(asked.out, TABLES[suffix], asked.made)

    return make


def _in_sidecars(asked: Asked) -> Output:
    prefixed = f"{asked.made.tagged_by} {asked.prefix}".strip()
    return InSidecars(replace(asked.made, tagged_by=prefixed), asked.prefix)


OUTPUTS: dict[str, Callable[[Asked], Output]] = {
    "-": lambda asked: Printed(),
    **{suffix: _in_table(suffix) for suffix in TABLES},
    XMP: _in_sidecars,
}
