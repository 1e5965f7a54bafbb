"""CSV files as people and Kaggle write them: a BOM, CRLF and stray columns are read, damage is named by row."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SHOWN = 50  # problems of one kind in a report; the rest is counted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data directory."""

    kind: str
    where: str  # file, relative to the directory
    row: int | None  # of the file as an editor numbers it; the header is row 1
    text: str
    forbids: bool = True  # training


@dataclass(frozen=True)
class Row:
    """One row: the wanted columns in the order asked for, "" where an optional one is missing."""

    number: int
    values: tuple[str, ...]


def listed(problems: Sequence[Problem]) -> Iterator[str]:
    """Lines that name problems by kind; many of one kind are counted at the end."""
    kinds: dict[tuple[bool, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((not problem.forbids, problem.kind), []).append(problem)
    for (mild, kind), found in sorted(kinds.items(), key=lambda item: item[0][0]):
        yield f"{'warning' if mild else 'problem'}       {kind}: {len(found):,}"
        for problem in found[:SHOWN]:
            row = f" row {problem.row}" if problem.row is not None else ""
            yield (
                f"    {problem.where}{row}: {problem.text}".rstrip(": ")
                .encode(errors="backslashreplace")
                .decode()
            )
        if len(found) > SHOWN:
            yield f"    and {len(found) - SHOWN:,} more"


def read_table(
    path: Path,
    columns: tuple[str, ...],
    problems: list[Problem],
    *,
    optional: tuple[str, ...] = (),
    quiet: bool = False,
) -> list[Row] | None:
    """Read the wanted columns of a CSV file.

    Args:
        columns: that must be there.
        problems: what is wrong is added to it, with the row's number.
        optional: columns that may be missing.
        quiet: add nothing; for a second reading.

    Returns:
        The rows that can be used, or None where nothing can.
    """
    found: list[Problem] = []
    rows = _read(path, columns, optional, found)
    if not quiet:
        problems += found
    return rows


def _read(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...], problems: list[Problem]
) -> list[Row] | None:
    name = path.name
    try:
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            problems.append(Problem("no file", name, None, "a folder, a pipe or a device"))
            return None
        data = path.read_bytes()
    except FileNotFoundError:
        problems.append(Problem("no such file", name, None, f"expected columns {', '.join(columns)}"))
        return None
    except OSError as error:
        problems.append(Problem("file cannot be read", name, None, str(error.strerror)))
        return None
    if data.startswith(b"\xef\xbb\xbf"):
        problems.append(Problem("byte-order mark", name, 1, "read without it", forbids=False))
    if b"\0" in data:
        row = data[: data.index(b"\0")].count(b"\n") + 1
        problems.append(Problem("NUL byte", name, row, "the file is damaged"))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        problems.append(Problem("not UTF-8", name, row, f"byte {data[error.start]:#04x}"))
        return None
    if not text.strip():
        problems.append(Problem("empty file", name, None, f"expected columns {', '.join(columns)}"))
        return None
    number = 1  # where the row begins; a field may have line ends
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader)]
        missing = [column for column in columns if column not in header]
        if missing:
            problems.append(
                Problem("missing column", name, 1, f"{', '.join(missing)}; found {', '.join(header)[:100]}")
            )
            return None
        stray = [
            column
            for i, column in enumerate(header)
            if column not in columns + optional or column in header[:i]
        ]
        if stray:
            problems.append(Problem("stray column", name, 1, f"{', '.join(stray)}: ignored", forbids=False))
        places = [header.index(column) if column in header else None for column in columns + optional]
        rows: list[Row] = []
        number = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                values = (fields[place].strip() if place is not None else "" for place in places)
                rows.append(Row(number, tuple(values)))
            elif fields:
                kind = "truncated row" if len(fields) < len(header) else "row with too many fields"
                problems.append(Problem(kind, name, number, f"{len(fields)} of {len(header)} fields"))
            number = reader.line_num + 1
    except csv.Error as error:
        problems.append(Problem("damaged CSV", name, number, str(error)))
        return None
    return rows
