"""CSV tables by pandas: each cell is a string, and each problem names its row.

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
MOST_EXTRA = 64  # fields that a row may have beyond the first line's and be reported beside other problems


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
        cells = _cells(text.removeprefix(BOM))
    except _UnusableError as error:
        kind, row, text = error.args
        problems.append(Problem(kind, name, row, text or f"expected columns {', '.join(columns)}"))
        return None
    header = cells.iloc[0].dropna().str.strip().tolist()
    missing = [column for column in columns if column not in header]
    if missing:
        text = f"{', '.join(missing)}; found {', '.join(header)[:100]}"
        problems.append(Problem("missing column", name, 1, text))
        return None
    wanted = columns + optional
    stray = [column for i, column in enumerate(header) if column not in wanted or column in header[:i]]
    if stray:
        problems.append(Problem("stray column", name, 1, f"{', '.join(stray)}: ignored", forbids=False))
    cells = cells.iloc[1:]
    fields = cells.notna().sum(axis=1)
    wrong = fields[(fields != len(header)) & (fields > 0)]
    for number, n in zip(wrong.index.tolist(), wrong.tolist(), strict=True):
        kind = "truncated row" if n < len(header) else "row with too many fields"
        problems.append(Problem(kind, name, number, f"{n} of {len(header)} fields"))
    cells = cells[fields == len(header)]
    return pd.DataFrame(
        {column: cells[header.index(column)].str.strip() if column in header else "" for column in wanted},
        index=cells.index,
        dtype=object,
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
        raise _UnusableError(
            "not UTF-8", _line(data, error.start), f"byte {data[error.start]:#04x}"
        ) from None
    if not text.removeprefix(BOM).strip():
        raise _UnusableError("empty file", None, "")
    return text


def _line(data: bytes, place: int) -> int:
    return data[:place].count(b"\n") + 1


def _cells(text: str) -> pd.DataFrame:
    """All cells, the header's and those of empty lines included; NaN beyond a row's last field.

    The index is the number of the line in which the row begins: a quoted field may have line ends.
    """
    commas = [line.count(",") for line in text.splitlines()]
    width = 1 + min(max(commas), commas[0] + MOST_EXTRA)
    regular = '"' not in text and min(commas) == max(commas) > 0
    try:
        cells = pd.read_csv(
            io.StringIO(text, newline=""),
            header=None,
            names=range(width),
            dtype=object,  # of str: pandas' own strings take no file name that is not UTF-8
            keep_default_na=False,
            skip_blank_lines=False,
            # pandas' fast parser takes a truncated row for one with empty fields, an empty line for an empty field.
            engine="c" if regular else "python",
        )
    except pd.errors.ParserError as error:
        raise _UnusableError("damaged CSV", _damaged_row(text), str(error)) from None
    cells.index = pd.RangeIndex(1, 1 + len(cells))
    if '"' in text:
        breaks = cells.apply(lambda column: column.str.count(r"\r\n|\r|\n")).sum(axis=1)
        cells.index = pd.Index(1 + (1 + breaks).cumsum().shift(fill_value=0).astype(int))
    return cells


def _damaged_row(text: str) -> int | None:
    """Where the row begins that no CSV file may have: pandas does not say it."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    row = 1
    try:
        for _ in reader:
            row = reader.line_num + 1
    except csv.Error:
        return row
    return None
