"""Label cells: which labels a cell of a table names.

Spaces, semicolons, bars, commas, tabs or line ends separate labels, or a cell is a list as Python and JSON write it.
All cells of a table are read in one way. Where labels.csv is there, it is the way that leaves no label unknown. Else
the cells tell: a separator that every row shows. What they leave in doubt is refused.
"""

import json
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SEPARATORS = {";": "';'", "|": "'|'", ",": "','", "\n": "a line end", "\t": "a tab"}  # as people call them
BRACKETS = "[({"
NO_LABEL = {"nan", "null", "none", "n/a", "na", "<na>", "#n/a", "nil"}  # what tools write of an empty cell
WAY_OUT = "separate labels by spaces or ';' in every row, or name all labels in labels.csv"
TOGETHER = 3  # pictures with two labels that never come alone, from which they are named

QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ITEM = re.compile(rf"{QUOTED}|-?[0-9]+")
LIST_CELL = re.compile(rf"[\[({{]\s*(?:(?:{ITEM.pattern})(?:\s*,\s*(?:{ITEM.pattern}))*\s*,?)?\s*[\])}}]")
TOKEN = re.compile(r'\\x([0-9a-fA-F]{2})|\\.|"', re.DOTALL)

Labels = list[str]  # of one cell
Split = Callable[[str], Labels | None]  # None where the cell is not written that way


@dataclass(frozen=True)
class Doubt:
    """Why a cell cannot be read."""

    cell: int  # its place in the column
    kind: str
    text: str


def read_cells(cells: Sequence[str], known: Mapping[str, str] | None) -> tuple[list[Labels], list[Doubt]]:
    """The labels that each cell names.

    Args:
        cells: stripped text; an empty cell names none.
        known: label ids, and their names if labels.csv gives names; None if only the cells tell.

    Returns:
        Labels as the cells write them, or ids where the cells hold the names, unknown ones among them; and what is
        in doubt.
    """
    cells = [cell.replace("\r\n", "\n").replace("\r", "\n") for cell in cells]
    return _by_evidence(cells) if known is None else _by_known(cells, known)


def as_cell(label_ids: Sequence[str]) -> Callable[[Iterable[str]], str]:
    """How a set of these labels is written: with spaces, or where labels have some as `read_cells` reads it back."""
    if all(label.split() == [label] for label in label_ids):
        return " ".join
    for mark in SEPARATORS:
        if not any(mark in label for label in label_ids):
            return mark.join
    return lambda labels: json.dumps(list(labels), ensure_ascii=False)


def always_together(labels: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Labels that have all their pictures in common, as text.

    Args:
        labels: (N, C) uint8.
        names: (C,)
    """
    columns: dict[bytes, list[int]] = {}
    for c in np.flatnonzero(labels.sum(axis=0, dtype=np.int64) >= TOGETHER):
        columns.setdefault(np.packbits(labels[:, c]).tobytes(), []).append(int(c))
    for same in columns.values():
        if len(same) > 1:
            pictures = int(labels[:, same[0]].sum(dtype=np.int64))
            yield f"{', '.join(repr(names[c]) for c in same)}: in the same {pictures:,} pictures"


def _by_known(cells: Sequence[str], known: Mapping[str, str]) -> tuple[list[Labels], list[Doubt]]:
    """Each way of reading is tried, by ids, then by names: one that leaves no part unknown is right."""
    names = list(known.values())
    by_name = {name: label for label, name in known.items() if name} if len(set(names)) == len(names) else {}
    ways = [[split(cell) for cell in cells] for split in _ways(cells, known)]
    for vocabulary in ({label: label for label in known}, by_name):
        fitting = [
            [[vocabulary[part] for part in found] for found in way if found is not None]
            for way in ways
            if all(found is not None and all(part in vocabulary for part in found) for found in way)
        ]
        for other in fitting[1:]:
            for i, (one, two) in enumerate(zip(fitting[0], other, strict=True)):
                if set(one) != set(two):
                    text = f"{cells[i]!r} is {one} or {two}, and all are known: rename a label"
                    return fitting[0], [Doubt(i, "labels in doubt", text)]
        if fitting:
            return fitting[0], []
    best = min(ways, key=lambda way: _unknown(way, known))
    return [[cell] if found is None else found for cell, found in zip(cells, best, strict=True)], []


def _unknown(way: Sequence[Labels | None], known: Collection[str]) -> int:
    """The cells that have a part that is not known."""
    return sum(found is None or any(part not in known for part in found) for found in way)


def _by_evidence(cells: Sequence[str]) -> tuple[list[Labels], list[Doubt]]:
    """The one way of reading that the cells leave."""
    filled = {i: cell for i, cell in enumerate(cells) if cell}
    found = [[cell] if cell else [] for cell in cells]
    doubts = [
        Doubt(
            i, "no label, or one of that name?", f"{cell!r}: leave the cell empty, or name it in labels.csv"
        )
        for i, cell in filled.items()
        if cell.casefold() in NO_LABEL
    ]
    for doubt in doubts:
        del filled[doubt.cell]
    way = _way(filled)
    if isinstance(way, Doubt):
        return found, [*doubts, way]
    for i, cell in filled.items():
        labels = way(cell)
        assert labels is not None
        found[i] = labels
        for label in labels:
            if not label.strip(string.punctuation + string.whitespace):
                doubts.append(Doubt(i, "labels in doubt", f"is {label!r} in {cell!r} a label? {WAY_OUT}"))
    return found, doubts


def _way(cells: Mapping[int, str]) -> Split | Doubt:
    """How cells that are not empty are separated, by what they show."""
    lists = {i for i, cell in cells.items() if cell[0] in BRACKETS + "\"'"}
    if lists:
        i = next((i for i, cell in cells.items() if _list(cell) is None), None)
        if i is None:
            return _list
        text = f'{cells[i]!r} is no list such as ["a", "b"], row for row: {WAY_OUT}'
        return Doubt(i, "labels in doubt", text)
    shown = {mark: [i for i, cell in cells.items() if mark in cell] for mark in SEPARATORS}
    shown = {mark: rows for mark, rows in shown.items() if rows}
    if not shown:
        return _by_spaces(cells)
    everywhere = [mark for mark, rows in shown.items() if len(rows) == len(cells)]
    marks = everywhere or list(shown)
    if len(marks) > 1:
        i = shown[marks[1]][0]
        text = f"{SEPARATORS[marks[0]]} or {SEPARATORS[marks[1]]} may separate {cells[i]!r}: {WAY_OUT}"
        return Doubt(i, "labels in doubt", text)
    mark = marks[0]
    split = _separated(mark)
    alone = {label for i in shown[mark] for label in split(cells[i])}
    for (
        i,
        cell,
    ) in cells.items():  # without the separator it is one label: one that is seen elsewhere, or a word
        if mark not in cell and cell not in alone and (mark == "," or len(cell.split()) > 1):
            text = (
                f"{SEPARATORS[mark]} separates {len(shown[mark]):,} cells, and {cell!r} has none: {WAY_OUT}"
            )
            return Doubt(i, "labels in doubt", text)
    return split


def _by_spaces(cells: Mapping[int, str]) -> Split | Doubt:
    """Spaces separate, unless each word comes in one company only, again and again: then it is a name with a space."""
    company: dict[str, set[str]] = {}
    times: dict[str, int] = {}
    for cell in cells.values():
        times[cell] = times.get(cell, 0) + 1
        for word in cell.split():
            company.setdefault(word, set()).add(cell)
    several = {i: cell for i, cell in cells.items() if len(cell.split()) > 1}
    lonely = all(len(company[word]) == 1 for cell in several.values() for word in cell.split())
    numbers = all(word.isdecimal() for cell in several.values() for word in cell.split())
    again = next((i for i, cell in several.items() if times[cell] > 1), None)
    if again is None or not lonely or numbers:
        return str.split
    text = f"{cells[again]!r} is one name or {len(cells[again].split())} labels: {WAY_OUT}"
    return Doubt(again, "labels in doubt", text)


def _ways(cells: Sequence[str], known: Mapping[str, str]) -> list[Split]:
    """All ways of reading these cells, spaces first, one label per cell last: 0.3 s each at iMet's size."""
    named = "".join([*known, *known.values()])
    shown = [
        _separated(mark, at_end=mark not in named)
        for mark in SEPARATORS
        if any(mark in cell for cell in cells)
    ]
    lists = [_list] if any(cell[0] in BRACKETS for cell in cells if cell) else []
    return [str.split, *shown, *lists, lambda cell: [cell] if cell else []]


def _separated(mark: str, *, at_end: bool = True) -> Callable[[str], Labels]:
    """Parts between marks; with `at_end` one mark more may follow. A part may be empty, and is then no label."""
    end = mark if at_end else ""
    return lambda cell: [part.strip() for part in cell.removesuffix(end).split(mark)] if cell else []


def _list(cell: str) -> Labels | None:
    """The items of a list as Python or JSON writes it; None if it is none."""
    if not cell:
        return []
    if cell[0] + cell[-1] not in ("[]", "()", "{}") or not LIST_CELL.fullmatch(cell):
        return None
    labels = []
    for item in ITEM.findall(cell):
        try:
            label = item if item[0] not in "\"'" else json.loads(_as_json(item), strict=False).strip()
            label.encode()  # half of a surrogate pair is no character
        except ValueError:
            return None
        labels.append(label)
    return labels


def _as_json(item: str) -> str:
    """A quoted string of Python as JSON's: other quotes, and \\xe9 as \\u00e9."""

    def token(found: re.Match[str]) -> str:
        return f"\\u00{found[1]}" if found[1] else {"\\'": "'", '"': '\\"'}.get(found[0], found[0])

    return f'"{TOKEN.sub(token, item[1:-1])}"'
