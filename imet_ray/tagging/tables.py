"""Tables of tags: CSV, JSON lines and Parquet, written whole and read back.

A new form is a class and a line in `TABLES`.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import pandas as pd

from imet_ray.errors import ConfigError
from imet_ray.storage.files import writing
from imet_ray.tagging.rows import COLUMNS, Row


class Table(Protocol):
    """A form of table."""

    def check(self) -> None:
        """Raise ConfigError if it cannot be written here."""

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        """Write all rows, atomically; raises StoreError where the disk is full."""

    def read(self, path: Path) -> list[Row]:
        """What `write` wrote; whatever it raises, the file is none of ours."""
        ...


class Csv:
    """A line per picture. Several labels stand in one cell, separated by |; a \\ stands before a | of a name."""

    def check(self) -> None:
        """Nothing is needed."""

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        with writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            write_csv(file, rows, header=True)

    def read(self, path: Path) -> list[Row]:
        csv.field_size_limit(sys.maxsize)  # a picture may have all labels there are
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != COLUMNS:
                raise ValueError("its columns are others")
            return [
                Row.of(
                    {
                        "path": path,
                        "labels": joined_names(labels),
                        "probabilities": probabilities.split("|") if probabilities else [],
                        "decided_by": decided_by,
                        "tagged_by": tagged_by,
                    }
                )
                for path, labels, probabilities, decided_by, tagged_by in reader
            ]


class JsonLines:
    """An object per picture."""

    def check(self) -> None:
        """Nothing is needed."""

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        with writing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{json_line(row.to_dict())}\n" for row in rows)

    def read(self, path: Path) -> list[Row]:
        with path.open(encoding="utf-8") as file:
            return [Row.of(json.loads(line)) for line in file]


class Parquet:
    """A row per picture, labels and probabilities as lists."""

    def check(self) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError(
                "--out: Parquet needs the package pyarrow: install it, or take .csv or .jsonl"
            ) from None

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = pa.list_(pa.string())
        types = (pa.string(), texts, pa.list_(pa.float64()), pa.string(), pa.string())
        schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
        with writing(path) as temporary:
            pq.write_table(pa.Table.from_pylist([row.to_dict() for row in rows], schema=schema), temporary)

    def read(self, path: Path) -> list[Row]:
        found: list[dict[str, Any]] = pd.read_parquet(path).to_dict("records")  # type: ignore[assignment]
        return [Row.of(row) for row in found]


def write_csv(file: TextIO, rows: Sequence[Row], *, header: bool) -> None:
    """Rows as CSV, wherever they go."""
    writer = csv.writer(file, lineterminator="\n")
    quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if header:
        writer.writerow(COLUMNS)
    for row in rows:
        labels = "|".join(re.sub(r"([\\|])", r"\\\1", name) for name in row.labels)
        probabilities = "|".join(map(str, row.probabilities))
        cells = [row.path, labels, probabilities, row.decided_by, row.tagged_by]
        returns = any(
            "\r" in cell for cell in cells
        )  # which Python takes for a line's end, and does not quote
        (quoting if returns else writer).writerow(cells)


def joined_names(cell: str) -> list[str]:
    """The names in a CSV cell."""
    if not cell:
        return []
    return [re.sub(r"\\(.)", r"\1", name, flags=re.DOTALL) for name in _split(cell)]


def _split(cell: str) -> Iterator[str]:
    for found in re.finditer(r"((?:[^\\|]|\\.)*)(\||$)", cell, re.DOTALL):
        yield found[1]
        if not found[2]:  # a name's own | stands in found[1]
            return


def json_line(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


TABLES: dict[str, Table] = {".csv": Csv(), ".jsonl": JsonLines(), ".parquet": Parquet()}
