"""CSV tables: each cell is a string, and each problem names its row.

A byte-order mark, UTF-16, CRLF line ends, semicolons or tabs between columns, a title above the header and stray
columns, as people, Excel and Kaggle write them, are read.
"""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from imet_ray.storage.files import LOCAL, Files, write_text

MARKS = {  # byte-order marks; that of UTF-32 begins like that of UTF-16
    b"\xef\xbb\xbf": "UTF-8",
    b"\xff\xfe\0\0": "UTF-32-LE",
    b"\0\0\xfe\xff": "UTF-32-BE",
    b"\xff\xfe": "UTF-16-LE",
    b"\xfe\xff": "UTF-16-BE",
}
AS_CSV = "save it as CSV in UTF-8"
NO_TEXT = {  # how other files begin: what it is, what to do
    b"PK\3\4": ("a zip archive", "unpack it"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", AS_CSV),
    b"\x1f\x8b": ("a gzip archive", "unpack it"),
    b"PAR1": ("a Parquet file", AS_CSV),
    b"<": ("a web page or XML", "download the table itself, or " + AS_CSV),
}
WORKBOOK = b"xl/workbook."
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods", ".parquet", ".csv.gz", ".csv.zip")
DELIMITERS = ",;\t|"
TITLES = 10  # lines above the header, at most
HEADER_SIZE = 10_000  # characters
LONGEST = 400  # characters of a line in a report
SHOWN = 50  # problems of one kind in a report; the rest is counted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data directory."""

    kind: str
    where: str  # file, relative to the directory
    row: int | None  # of the file as an editor numbers it; the header is row 1
    text: str
    forbids: bool = True  # training


def listed(problems: Sequence[Problem]) -> Iterator[str]:
    """Lines that name problems by kind. Those of one kind beyond `SHOWN` are counted."""
    kinds: dict[tuple[bool, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((not problem.forbids, problem.kind), []).append(problem)
    for (mild, kind), found in sorted(kinds.items(), key=lambda item: item[0][0]):
        yield f"{'warning' if mild else 'problem'}       {kind}: {len(found):,}"
        for problem in found[:SHOWN]:
            yield f"    {_line_of(problem)}"
        if len(found) > SHOWN:
            yield f"    and {len(found) - SHOWN:,} more"


def warned(problems: Sequence[Problem]) -> Iterator[str]:
    """A line for each kind of problem that does not forbid training, with the first of that kind."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        if not problem.forbids:
            kinds.setdefault(problem.kind, []).append(problem)
    for kind, found in kinds.items():
        more = f", and {len(found) - 1:,} more: --check-data lists them" if len(found) > 1 else ""
        yield f"warning: {kind}: {_line_of(found[0])}{more}"


def _line_of(problem: Problem) -> str:
    """Where it is and what it is, in one line."""
    row = f" row {problem.row}" if problem.row is not None else ""
    line = " ".join(f"{problem.where}{row}: {problem.text}".rstrip(": ").splitlines())
    line = line if len(line) <= LONGEST else line[:LONGEST] + " ..."
    return line.encode(errors="backslashreplace").decode()


def read_table(
    path: Path, columns: tuple[str, ...], problems: list[Problem], *, optional: tuple[str, ...] = ()
) -> pd.DataFrame | None:
    """Read the wanted columns of a CSV file.

    Args:
        columns: that must be there.
        problems: what is wrong is added to it, with the row's number.
        optional: columns that may be missing; they are then empty.

    Returns:
        The rows that can be used: `columns` and `optional` as stripped strings, the index is the row's number in
        the file. None where nothing can be used.
    """
    name = path.name
    try:
        text, encoding = _read_text(path)
        if encoding is not None:
            how = "without it" if encoding == "UTF-8" else f"as {encoding}"
            problems.append(Problem("byte-order mark", name, 1, f"read {how}", forbids=False))
        layout = _layout(text, columns)
        rows = _rows(text, layout)
    except _UnusableError as error:
        kind, number, text = error.args
        problems.append(Problem(kind, name, number, text or f"expected columns {', '.join(columns)}"))
        return None
    header = [cell.strip() for cell in rows.pop(layout.row)]
    missing = [column for column in columns if column not in header]
    if missing:
        text = f"{', '.join(missing)}; found {', '.join(header)[:100]}: name the columns so in the first row"
        problems.append(Problem("missing column", name, layout.row, text))
        return None
    if layout.row > 1:
        text = f"the header is row {layout.row}: what stands above it is ignored"
        problems.append(Problem("title above the header", name, 1, text, forbids=False))
    wanted = columns + optional
    stray = [column for i, column in enumerate(header) if column not in wanted or column in header[:i]]
    if stray:
        problems.append(
            Problem("stray column", name, layout.row, f"{', '.join(stray)}: ignored", forbids=False)
        )
    for number, cells in rows.items():
        if len(cells) == len(header):
            continue
        text = f"{len(cells)} of {len(header)} fields"
        if len(cells) < len(header):
            problems.append(Problem("truncated row", name, number, text))
        else:
            text += f": quote a cell that has {layout.delimiter!r} in it"
            problems.append(Problem("row with too many fields", name, number, text))
    usable = {number: cells for number, cells in rows.items() if len(cells) == len(header)}
    places = {column: header.index(column) for column in wanted if column in header}
    return pd.DataFrame(
        {
            column: [cells[places[column]].strip() if column in places else "" for cells in usable.values()]
            for column in wanted
        },
        index=list(usable),
        dtype=object,  # of str: pandas' own strings take no file name that is not UTF-8
    )


def header_of(path: Path) -> list[str]:
    """The names of a table's columns, whatever they are; none where it cannot be read.

    A header with `id` is found below a title, another one is the first row.
    """
    with contextlib.suppress(_UnusableError, csv.Error):
        text, _ = _read_text(path)
        layout = _layout(text, ("id",))
        head = text[layout.start : layout.start + HEADER_SIZE]
        for delimiter in (layout.delimiter, *DELIMITERS):
            cells = next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), [])
            if len(cells) > 1:
                return [cell.strip() for cell in cells]
        return [head.partition("\n")[0].strip()]
    return []


def like_named(path: Path) -> list[str]:
    """Files beside a table that is not there which may be it: train.xlsx, Train.csv, train.csv.gz."""
    with contextlib.suppress(OSError):
        return sorted(
            file.name
            for file in path.parent.iterdir()
            if file.name.lower().startswith(f"{path.stem}.")
            and file.name.lower().endswith(TABLE_SUFFIXES)
            and file.name != path.name
            and file.is_file()
        )
    return []


def numbered(rows: pd.DataFrame, column: str) -> Iterator[tuple[int, str]]:
    """Each row's number and what stands in the column."""
    return zip(rows.index.tolist(), rows[column].tolist(), strict=True)


def write_table(path: Path, columns: Mapping[str, Iterable[object]], files: Files = LOCAL) -> None:
    """Write a CSV file with these columns, atomically."""
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"), files)


class _UnusableError(Exception):
    """Nothing of a table can be used: the kind of problem, its row and its text."""


@dataclass(frozen=True)
class _Layout:
    """Where a table's header is, and what separates its columns."""

    row: int  # from 1
    start: int  # of the header, in the text
    delimiter: str


def _read_text(path: Path) -> tuple[str, str | None]:
    """A file's text, and the encoding that its byte-order mark names."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise _UnusableError("no file", None, "a folder, a pipe or a device")
        data = path.read_bytes()
    except FileNotFoundError:
        others = ", ".join(like_named(path))
        text = f"{others} is there: save it as {path.name}, a CSV file in UTF-8" if others else ""
        raise _UnusableError("no such file", None, text) from None
    except OSError as error:
        raise _UnusableError("file cannot be read", None, str(error.strerror)) from None
    for magic, (what, out) in NO_TEXT.items():
        if data.startswith(magic):
            if WORKBOOK in data:  # a zip archive, too
                what, out = "an Excel workbook", AS_CSV
            raise _UnusableError("no CSV file", None, f"{what}: {out}")
    mark, encoding = next(
        (item for item in MARKS.items() if data.startswith(item[0])), (b"", _unmarked(data))
    )
    data = data.removeprefix(mark)
    if encoding == "UTF-8" and b"\0" in data:
        raise _UnusableError("NUL byte", _line(data, data.index(b"\0")), "the file is damaged")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#04x}: save the file as UTF-8"
        raise _UnusableError(f"not {encoding[:6].rstrip('-')}", _line(data, error.start), what) from None
    if "\0" in text:
        raise _UnusableError("NUL byte", text[: text.index("\0")].count("\n") + 1, "the file is damaged")
    if not text.strip():
        raise _UnusableError("empty file", None, "")
    return text, encoding if mark else None


def _unmarked(data: bytes) -> str:
    """The encoding of a file without a byte-order mark: UTF-8, or UTF-16 where every second byte of a header is 0."""
    even, odd = data[:64:2], data[1:64:2]
    if len(data) > 2 and any(even) != any(odd):
        return "UTF-16-LE" if any(even) else "UTF-16-BE"
    return "UTF-8"


def _line(data: bytes, place: int) -> int:
    return len(re.findall(rb"\r\n?|\n", data[:place])) + 1


def _layout(text: str, columns: tuple[str, ...]) -> _Layout:
    """The first row that has all columns, under the first separator that shows them; the first row where none has."""
    starts = [0, *(found.end() for found in itertools.islice(re.finditer(r"\r\n?|\n", text), TITLES))]
    for row, start in enumerate(starts, 1):
        for delimiter in DELIMITERS:
            with contextlib.suppress(csv.Error, StopIteration):
                head = io.StringIO(text[start : start + HEADER_SIZE], newline="")
                header = next(csv.reader(head, delimiter=delimiter, skipinitialspace=True, strict=True))
                if {cell.strip() for cell in header}.issuperset(columns):
                    return _Layout(row, start, delimiter)
    return _Layout(1, 0, ",")


def _rows(text: str, layout: _Layout) -> dict[int, list[str]]:
    """The cells of each row, by the number of the line in which it begins: a quoted field may have line ends.

    Rows without any text are left out.
    """
    lines = io.StringIO(text[layout.start :], newline="")
    reader = csv.reader(lines, delimiter=layout.delimiter, skipinitialspace=True, strict=True)
    rows: dict[int, list[str]] = {}
    row = layout.row
    try:
        for cells in reader:
            if row == layout.row or any(cell.strip() for cell in cells):
                rows[row] = cells
            row = reader.line_num + layout.row
    except csv.Error as error:
        raise _UnusableError("damaged CSV", row, str(error)) from None
    return rows
