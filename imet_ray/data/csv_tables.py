"""CSV tables: each cell is a string, and each problem names its row.

A byte-order mark, CRLF line ends and stray columns, as people and Kaggle write them, are read.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from imet_ray.storage.files import LOCAL, Files, write_text

BOM = "\ufeff"
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
            row = f" row {problem.row}" if problem.row is not None else ""
            line = f"    {problem.where}{row}: {problem.text}".rstrip(": ")
            yield line.encode(errors="backslashreplace").decode()
        if len(found) > SHOWN:
            yield f"    and {len(found) - SHOWN:,} more"


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
        text = _read_text(path)
        if text.startswith(BOM):
            problems.append(Problem("byte-order mark", name, 1, "read without it", forbids=False))
        rows = _rows(text.removeprefix(BOM))
    except _UnusableError as error:
        kind, number, text = error.args
        problems.append(Problem(kind, name, number, text or f"expected columns {', '.join(columns)}"))
        return None
    header = [cell.strip() for cell in rows.pop(1)]
    missing = [column for column in columns if column not in header]
    if missing:
        text = f"{', '.join(missing)}; found {', '.join(header)[:100]}"
        problems.append(Problem("missing column", name, 1, text))
        return None
    wanted = columns + optional
    stray = [column for i, column in enumerate(header) if column not in wanted or column in header[:i]]
    if stray:
        problems.append(Problem("stray column", name, 1, f"{', '.join(stray)}: ignored", forbids=False))
    for number, cells in rows.items():
        if cells and len(cells) != len(header):
            kind = "truncated row" if len(cells) < len(header) else "row with too many fields"
            problems.append(Problem(kind, name, number, f"{len(cells)} of {len(header)} fields"))
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


def numbered(rows: pd.DataFrame, column: str) -> Iterator[tuple[int, str]]:
    """Each row's number and what stands in the column."""
    return zip(rows.index.tolist(), rows[column].tolist(), strict=True)


def write_table(path: Path, columns: Mapping[str, Iterable[object]], files: Files = LOCAL) -> None:
    """Write a CSV file with these columns, atomically."""
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"), files)


class _UnusableError(Exception):
    """Nothing of a table can be used: the kind of problem, its row and its text."""


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise _UnusableError("no file", None, "a folder, a pipe or a device")
        data = path.read_bytes()
    except FileNotFoundError:
        raise _UnusableError("no such file", None, "") from None
    except OSError as error:
        raise _UnusableError("file cannot be read", None, str(error.strerror)) from None
    if b"\0" in data:
        raise _UnusableError("NUL byte", _line(data, data.index(b"\0")), "the file is damaged")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        what = f"byte {data[error.start]:#04x}"
        raise _UnusableError("not UTF-8", _line(data, error.start), what) from None
    if not text.removeprefix(BOM).strip():
        raise _UnusableError("empty file", None, "")
    return text


def _line(data: bytes, place: int) -> int:
    return data[:place].count(b"\n") + 1


def _rows(text: str) -> dict[int, list[str]]:
    """The cells of each row, by the number of the line in which it begins: a quoted field may have line ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[int, list[str]] = {}
    row = 1
    try:
        for cells in reader:
            rows[row] = cells
            row = reader.line_num + 1
    except csv.Error as error:
        raise _UnusableError("damaged CSV", row, str(error)) from None
    return rows
