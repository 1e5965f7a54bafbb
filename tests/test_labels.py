"""Label cells: what can be read without doubt is read, the rest is refused by name, and nothing is made up."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imet_ray.data.labels import always_together, as_cell, read_cells

OIL, RED = "oil painting", "red chalk"
READ = {  # cells that tell by themselves, and their labels
    "spaces": (["0 2", "1", "2  0", ""], [["0", "2"], ["1"], ["2", "0"], []]),
    "numbers that always come together": (["0 2", "0 2"], [["0", "2"], ["0", "2"]]),
    "words": (["sea tree", "tree sky", "tree"], [["sea", "tree"], ["tree", "sky"], ["tree"]]),
    "semicolon": (["oil painting;portrait", "portrait;red chalk"], [[OIL, "portrait"], ["portrait", RED]]),
    "semicolon, one label": (["a;b", "c", "b"], [["a", "b"], ["c"], ["b"]]),
    "semicolon, one label of two words": (["oil painting; b", "oil painting"], [[OIL, "b"], [OIL]]),
    "bar": (["a|b", "b|c"], [["a", "b"], ["b", "c"]]),
    "comma": (["a, b", "b, red chalk"], [["a", "b"], ["b", RED]]),
    "comma and semicolon": (["Hals, Frans;oil", "gold;oil"], [["Hals, Frans", "oil"], ["gold", "oil"]]),
    "lines": (["oil painting\r\nb", "b\nc"], [[OIL, "b"], ["b", "c"]]),
    "at the end, too": (["a;b;", "b;"], [["a", "b"], ["b"]]),
    "python": (["['oil painting', 'b']", "[]", "['b']"], [[OIL, "b"], [], ["b"]]),
    "python's quotes": ([r"""["it's", 'a"b', 'c\'d', '\xe9']"""], [["it's", 'a"b', "c'd", "é"]]),
    "tuple and set": (["('a',)", "{'b', 'a'}"], [["a"], ["b", "a"]]),
    "json": ([r'["oil painting", "\u00e9", "\ud83d\ude00"]', "[3, 10]"], [[OIL, "é", "😀"], ["3", "10"]]),
}
DOUBTFUL = {  # cells, and the place of the first that is in doubt
    "a name with a space": ([OIL, "portrait", OIL, RED], 0),
    "separators of two kinds": (["a;b", "a|b"], 1),
    "two in every row": (["a,b;c", "c,d;e"], 0),
    "spaces and semicolons": (["a b", "a;b"], 0),
    "a comma in some rows": (["Paris, France", "portrait"], 1),
    "lists and words": (["['a']", "b"], 1),
    "a list without quotes": (["[a, b]", "[b]"], 0),
    "numpy's lists": (["['a' 'b']", "['a']"], 0),
    "a dictionary": (["{'a': 1}"], 0),
    "a list that is cut off": (["['a', 'b'"], 0),
    "half a character": ([r"['\ud83d']"], 0),
    "NaN": (["a b", "NaN", "b"], 1),
    "None": (["None", "a"], 0),
    "a dash": (["a - b", "a"], 0),
}
KNOWN = {name: name for name in (OIL, "portrait", RED, "NaN", "a;b", "-")}


@pytest.mark.parametrize(("cells", "labels"), READ.values(), ids=READ)
def test_cells_that_leave_no_doubt_are_read(cells, labels):
    assert read_cells(cells, None) == (labels, [])


@pytest.mark.parametrize(("cells", "place"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_cells_in_doubt_are_named_with_what_to_do(cells, place):
    _, (doubt, *_) = read_cells(cells, None)
    assert doubt.cell == place
    assert "labels.csv" in doubt.text


@pytest.mark.parametrize("written", ["; ".join, ";".join, "|".join, ", ".join, "\n".join, repr])
def test_labels_csv_tells_how_cells_are_separated(written):
    sets = [[OIL, "portrait"], [RED], ["NaN", RED]]
    assert read_cells([written(labels) for labels in sets], KNOWN) == (sets, [])


@pytest.mark.parametrize("cell", [OIL, "a;b", "NaN", "-"])
def test_a_label_that_labels_csv_knows_is_one_whatever_it_looks_like(cell):
    assert read_cells([cell, "portrait"], KNOWN) == ([[cell], ["portrait"]], [])


def test_cells_may_hold_the_names_of_labels_csv():
    assert read_cells([f"{OIL};portrait", "portrait"], {"0": OIL, "1": "portrait"}) == (
        [["0", "1"], ["1"]],
        [],
    )


def test_a_cell_that_labels_csv_knows_in_two_ways_is_in_doubt():
    _, (doubt,) = read_cells(["a", "a b"], dict(zip(labels := ["a", "b", "a b"], labels, strict=True)))
    assert (doubt.cell, "'a b'" in doubt.text) == (1, True)


def test_one_unknown_label_does_not_change_how_the_others_are_read():
    found, doubts = read_cells([f"{OIL}|portrait", f"{RED}|of old"], KNOWN)
    assert (found, doubts) == ([[OIL, "portrait"], [RED, "of old"]], [])


NAMES = st.text(string.printable + "éß漢😀", min_size=1, max_size=6).map(
    lambda text: " ".join(text.split()) or "x"
)


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
def test_what_is_written_is_read_back(sets):
    known = sorted({label for labels in sets for label in labels})
    cell = as_cell(known)
    found, doubts = read_cells([cell(labels) for labels in sets], dict.fromkeys(known, ""))
    a_label_holds_another = any(one != other and one in other for one in known for other in known)
    assert found == sets or (doubts and a_label_holds_another)
    assert a_label_holds_another or not doubts


def test_labels_that_always_come_together_are_named_with_their_number_of_pictures():
    labels = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]], np.uint8)
    assert list(always_together(labels, ["oil", "painting", "c", "d"])) == [
        "'oil', 'painting': in the same 3 pictures"
    ]
