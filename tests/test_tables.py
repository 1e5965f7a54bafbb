"""Tables of any kind: right values, or one line for each thing that is wrong; never a traceback.

TABLES=20000 pytest -n 0 tests/test_tables.py     # so many tables of each test
"""

import csv
import io
import json
import os
import string
import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imet_ray.data.csv_tables import listed
from imet_ray.data.formats import read_directory

TABLES = settings(
    max_examples=int(os.environ.get("TABLES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
MARKS = ";|,\n\t"
LETTERS = "abcXYZ019éß漢😀"
WORDS = st.text(LETTERS, min_size=1, max_size=3)
PHRASES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
ANY_NAMES = (
    st.text(LETTERS + string.punctuation + " \n\t", min_size=1, max_size=8).map(str.strip).filter(bool)
)
IDS = st.text(LETTERS + " ;|,'\"", min_size=1, max_size=5).map(lambda text: f"p{text}".strip())
FORMS = {
    "spaces": " ".join,
    ";": ";".join,
    "; ": "; ".join,
    "|": "|".join,
    ", ": ", ".join,
    "lines": "\r\n".join,
    "python": repr,
    "json": json.dumps,
}
ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
TITLES = ["", "", "My collection\n", "sep=;\n\n", 'a "title, with\n']


@st.composite
def label_sets(draw):
    """Labels of each row, how they are separated, and labels.csv's rows (id, name), None without it."""
    form = draw(st.sampled_from(list(FORMS)))
    if draw(st.booleans()):
        names = draw(st.lists(draw(st.sampled_from([ANY_NAMES, WORDS])), min_size=1, max_size=5, unique=True))
        listing = [(name, "") for name in names]
        if draw(st.booleans()):
            ids = [f"#{i}" for i in range(len(names))]
            listing = list(zip(ids, names, strict=True))
    else:
        listing = None
        names = draw(st.lists(WORDS if form == "spaces" else PHRASES, min_size=1, max_size=5, unique=True))
    some = st.lists(st.sampled_from(names), max_size=3, unique=True)
    return draw(st.lists(some, min_size=1, max_size=6)), form, listing


class Directory(NamedTuple):
    """Tables, and what they say."""

    train: bytes
    labels: bytes | None  # labels.csv
    sets: dict[str, list[str]]  # labels by id
    told: bool  # where it is read, it says just this
    plain: bool  # there is no reason to refuse it


@st.composite
def directories(draw):
    sets, form, listing = draw(label_sets())
    ids = draw(st.lists(IDS, min_size=len(sets), max_size=len(sets), unique_by=lambda name: name.casefold()))
    order = draw(st.permutations(["id", "attribute_ids", "note"]))
    style = {
        "delimiter": draw(st.sampled_from(",,;\t|")),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n", "\r"])),
    }
    pad = draw(st.sampled_from(["", "", " ", "  "]))
    text = io.StringIO(newline="")
    writer = csv.writer(text, **style)
    writer.writerow([name + pad for name in order])
    for name, labels in zip(ids, sets, strict=True):
        row = {"id": name, "attribute_ids": FORMS[form](labels) if labels else "", "note": "x"}
        writer.writerow([pad + row[column] + pad for column in order])
    encoding = draw(st.sampled_from(ENCODINGS))
    title = draw(st.sampled_from(TITLES))
    table = (title + text.getvalue()).encode(encoding, "replace")
    if encoding == "cp1252" and b"?" in table:  # it lacks a letter of these
        table = text.getvalue().encode()
    plain = not title and encoding in ("utf-8", "utf-8-sig") and any(sets)
    plain &= all(
        " " not in label and label.strip(string.punctuation) == label for labels in sets for label in labels
    )
    if listing is None:
        told = {"spaces": True, "python": True, "json": True}.get(form, False)
        told |= all(" " not in label for labels in sets for label in labels)
        told |= any(len(labels) > 1 for labels in sets)
        plain &= form in ("python", "json")
        return Directory(table, None, dict(zip(ids, sets, strict=True)), told, plain)
    names = io.StringIO(newline="")
    csv.writer(names).writerows([("attribute_id", "attribute_name"), *listing])
    by_name = {name: label for label, name in listing if name}
    truth = [[by_name.get(label, label) for label in labels] for labels in sets]
    return Directory(table, names.getvalue().encode(), dict(zip(ids, truth, strict=True)), True, plain)


def read(train, labels=None, ids=(), **others):
    """A directory of these tables as it is read; each problem is one line with the table's name and a reason."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "train").mkdir()
        (root / "test").mkdir()
        for name in ids:
            (root / "train" / f"{name}.png").touch()
        (root / "test" / "t.png").touch()
        for name, data in {"train.csv": train, "labels.csv": labels, **others}.items():
            if data is not None:
                (root / name).write_bytes(data)
        reading = read_directory(root, negatives=True)
    assert (reading.catalog is None) == any(problem.forbids for problem in reading.problems)
    lines = list(listed(reading.problems))
    assert all(len(line.splitlines()) == 1 and len(line) < 500 for line in lines)
    return reading


@TABLES
@given(directories())
def test_a_table_that_is_read_says_what_was_written(case):
    catalog = read(case.train, case.labels, case.sets).catalog
    assert catalog is not None or not case.plain
    if catalog is not None and case.told:
        found = {
            name: {catalog.label_ids[c] for c in row.nonzero()[0]}
            for name, row in zip(catalog.train.ids, catalog.labels, strict=True)
        }
        assert found == {name: set(labels) for name, labels in case.sets.items()}


@TABLES
@given(directories(), st.data())
def test_a_damaged_table_is_no_traceback(case, data):
    place = data.draw(st.integers(0, len(case.train)))
    end = case.train[place + data.draw(st.integers(0, 4)) :]
    read(case.train[:place] + data.draw(st.binary(max_size=3)) + end, case.labels, case.sets)


@TABLES
@given(
    st.lists(
        st.sampled_from(
            ["id", "attribute_ids", "attribute_id", "attribute_name", "t", *MARKS, '"', "'", "[", "\0"]
        )
        | st.text(max_size=3),
        max_size=30,
    ).map("".join),
    st.sampled_from(ENCODINGS),
)
def test_any_text_is_no_traceback(text, encoding):
    data = text.encode(encoding, "replace")
    head = b"id,attribute_ids\n"
    read(data, data, sample_submission=None)
    read(head + data, None, **{"test.csv": head + data})
    read(head + b"t,1", b"attribute_id,attribute_name\n" + data, **{"sample_submission.csv": data})
