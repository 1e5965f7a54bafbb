"""The tables of a data directory: what may be trained on, and every problem of what may not, by file and row."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_directory import HEAD, LABELS, NAMES, NO_PICTURES, SAMPLE, TRAIN, bomb, make, picture, problems

import launch
from imet_ray.data import contents
from imet_ray.data.check import check_data
from imet_ray.data.formats import read_catalog
from imet_ray.errors import DataError
from imet_ray.storage.checked_read import file_digest


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_a_good_directory_has_no_problem(tmp_path, end):
    tables = {"train.csv": TRAIN, "labels.csv": NAMES, "sample_submission.csv": SAMPLE}
    root = make(tmp_path, **{name: data.replace(b"\n", end) for name, data in tables.items()})
    assert problems(root) == []
    assert read_catalog(root).labels.tolist() == LABELS


def test_ids_with_and_without_extension_name_files_of_all_formats(tmp_path):
    catalog = read_catalog(make(tmp_path))
    assert catalog.train.ids == ("a", "b", "c.webp")
    assert [file.name for file in catalog.train.files] == ["a.png", "b.jpg", "c.webp"]
    assert catalog.label_names == ("culture::a", "tag::b", "tag::c")


GROUPS = [  # labels.csv, the groups
    (NAMES, ("culture", "tag", "tag")),
    (b"attribute_id,attribute_name,group\n0,culture::a,x\n1,tag::b,y\n2,tag::c,x\n", ("x", "y", "x")),
    (b"attribute_id,attribute_name,group\n0,culture::a,\n1,tag::b,y\n2,tag::c,\n", ("", "y", "")),
    (b"group,attribute_name,attribute_id\nx,a,0\ny,b,1\nx,c,2\n", ("x", "y", "x")),
    (
        b"attribute_id,attribute_name,group\n0,culture::a,\n1,tag::b,\n2,tag::c::d,\n",
        ("culture", "tag", "tag"),
    ),
    (b"attribute_id,attribute_name\n0,culture::a\n1,b\n2,tag::c\n", ("", "", "")),
    (b"attribute_id,attribute_name\n0,a\n1,b\n2,c\n", ("", "", "")),
    (None, ("", "", "")),
]


@pytest.mark.parametrize(("table", "groups"), GROUPS)
def test_labels_are_grouped_by_a_column_or_else_by_the_prefixes_of_their_names(tmp_path, table, groups):
    assert read_catalog(make(tmp_path, **{"labels.csv": table})).label_groups == groups


@pytest.mark.parametrize("n", [1, 2, 1103])
def test_any_number_of_classes(tmp_path, n):
    names = "attribute_id,attribute_name\n" + "".join(f"{i},n{i}\n" for i in range(n))
    train = HEAD + f"a,{n - 1}\nb,0\n".encode()
    labels = read_catalog(make(tmp_path, **{"labels.csv": names.encode(), "train.csv": train})).labels
    assert (labels.shape, labels.dtype, labels[0].argmax()) == ((2, n), np.uint8, n - 1)


@pytest.mark.parametrize("largest", ["100", "1" * 5000], ids=["short", "long"])
def test_without_labels_csv_labels_are_those_in_use_in_the_order_of_numbers(tmp_path, largest):
    train = HEAD + f"a,10 9\nb,{largest}\nc,9\n".encode()
    catalog = read_catalog(make(tmp_path, **{"labels.csv": None, "train.csv": train}))
    assert catalog.label_ids == catalog.label_names == ("9", "10", largest)
    assert catalog.labels.tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_the_test_order_is_that_of_sample_submission(tmp_path):
    table = HEAD + b"s,0\nt.jpg,1\nu,2 0\n"
    catalog = read_catalog(make(tmp_path, **{"test.csv": table}))
    assert catalog.test.ids == ("u", "s", "t.jpg")
    assert [file.name for file in catalog.test.files] == ["u.webp", "s.png", "t.jpg"]
    assert catalog.test_labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"test.csv": b"id\nt.jpg\ns\n"}, ("t.jpg", "s")),
        ({}, ("s", "t", "u")),
        ({"test/s.png": None, "test/t.jpg": None, "test/u.webp": None}, ()),
    ],
)
def test_the_test_split_needs_neither_labels_nor_tables_nor_pictures(tmp_path, files, ids):
    root = make(tmp_path, **{"sample_submission.csv": None}, **files)
    catalog = read_catalog(root)
    assert (catalog.test.ids, catalog.test_labels) == (ids, None)
    assert not check_data(root, workers=1).forbids


PROBLEMS = [  # file, what it now holds, what is wrong, and where
    ("train/b.jpg", b"not a picture", "picture cannot be used", "train.csv row 3"),
    ("train/a.png", picture("png")[:50], "picture cannot be used", "train.csv row 2"),
    ("train/a.png", bomb(), "picture cannot be used", "train.csv row 2"),
    ("test/s.png", b"", "picture cannot be used", "sample_submission.csv row 3"),
    ("train/a.jpg", picture("jpg"), "several files for an id", "train.csv row 2"),
    ("train.csv", TRAIN + b"e,1\n", "id without a file", "train.csv row 5"),
    ("train.csv", TRAIN + b"b,0\n", "duplicate id", "train.csv row 5"),
    ("train.csv", TRAIN + b"b.jpg,0\n", "duplicate id", "train.csv row 5"),  # as b it is there
    ("train.csv", TRAIN + b",0\n", "empty id", "train.csv row 5"),
    ("train.csv", TRAIN + b"../test/s,0\n", "id is a path", "train.csv row 5"),
    ("train.csv", TRAIN.replace(b"b,1", b"b,1 7"), "label that labels.csv lacks", "train.csv row 3"),
    ("train.csv", TRAIN.replace(b"0 2", b"0 2 0"), "repeated label", "train.csv row 2"),
    ("train.csv", TRAIN.replace(b"b,1", b"b, "), "row without labels", "train.csv row 3"),
    ("labels.csv", NAMES + b"1,again\n", "repeated label", "labels.csv row 5"),
    ("labels.csv", NAMES + b",nothing\n", "empty label id", "labels.csv row 5"),
    ("test.csv", HEAD + b"s,0\nt.jpg,7\nu,0\n", "label that labels.csv lacks", "test.csv row 3"),
    ("train.csv", b"", "empty file", "train.csv row None"),
    ("train.csv", HEAD, "empty table", "train.csv row None"),
    ("train.csv", None, "no such file", "train.csv row None"),
    ("train.csv", TRAIN + b"e", "truncated row", "train.csv row 5"),
    ("train.csv", TRAIN + b"e,1,2\n", "row with too many fields", "train.csv row 5"),
    ("train.csv", TRAIN.replace(b"b,1", b'b,"1'), "damaged CSV", "train.csv row 3"),
    ("train.csv", TRAIN.replace(b"b,1", b"b,\0"), "NUL byte", "train.csv row 3"),
    ("train.csv", TRAIN.replace(b"b,1", b"b,\xe9"), "not UTF-8", "train.csv row 3"),
    ("train.csv", TRAIN.replace(b"attribute_ids", b"labels"), "missing column", "train.csv row 1"),
    ("labels.csv", NAMES + b"\0", "NUL byte", "labels.csv row 5"),
    ("labels.csv", b"id,name\n0,a\n", "missing column", "labels.csv row 1"),
    ("sample_submission.csv", SAMPLE + b"\xff\n", "not UTF-8", "sample_submission.csv row 5"),
    ("test.csv", HEAD + b"s,\0\n", "NUL byte", "test.csv row 2"),
    ("train.csv", b"\xff\xfe" + TRAIN[:7], "not UTF-16", "train.csv row 1"),
]
ALSO_READ = {  # train.csv as people write it
    "semicolons": TRAIN.replace(b",", b";"),
    "tabs": TRAIN.replace(b",", b"\t"),
    "bars": TRAIN.replace(b",", b"|"),
    "UTF-16 without a mark": TRAIN.decode().encode("utf-16-le"),
    "UTF-16-BE without a mark": TRAIN.decode().encode("utf-16-be"),
    "quotes": b'"id";"attribute_ids"\n"a"; "0;2"\n"b";"1"\n"c.webp";"0"\n',
    "spaces": b"id , attribute_ids\n a , 0  2 \nb,1\nc.webp, 0\n",
    "a quote after a space": b'id, attribute_ids\na, "0,2"\nb, "1"\nc.webp, 0\n',
    "empty rows": TRAIN + b",\n\n , \n",
    "old Mac": TRAIN.replace(b"\n", b"\r"),
    "names": HEAD + b"a,culture::a;tag::c\nb,tag::b\nc.webp,culture::a\n",
}
NO_CSV = {  # what train.csv holds, and what it is called
    "an Excel workbook": b"PK\3\4" + b"\0" * 30 + b"xl/workbook.xml",
    "an old Excel workbook": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a zip archive": b"PK\3\4" + b"\0" * 30 + b"train.csv",
    "a gzip archive": b"\x1f\x8b\x08",
    "a web page": b"<!DOCTYPE html><html>",
}


@pytest.mark.parametrize("data", ALSO_READ.values(), ids=ALSO_READ)
def test_tables_as_people_write_them_are_read(tmp_path, data):
    root = make(tmp_path, **{"train.csv": data})
    assert problems(root) == []
    assert read_catalog(root).labels.tolist() == LABELS


@pytest.mark.parametrize(("name", "data"), NO_CSV.items(), ids=NO_CSV)
def test_what_is_no_csv_file_is_named_as_what_it_is(tmp_path, name, data):
    root = make(tmp_path, **{"train.csv": data})
    assert problems(root) == [("no CSV file", "train.csv row None", True)]
    assert f"train.csv: {name}" in check_data(root, workers=1).text()


@pytest.mark.parametrize("name", ["train.xlsx", "Train.csv", "train.tsv", "train.csv.gz"])
def test_a_table_of_another_name_is_named_where_train_csv_is_missing(tmp_path, name):
    root = make(tmp_path, **{"train.csv": None, name: TRAIN})
    assert f"train.csv: {name} is there" in check_data(root, workers=1).text()


def test_a_row_below_a_title_is_named_by_its_number_in_the_file(tmp_path):
    root = make(tmp_path, **{"train.csv": b"a title\n" + TRAIN.replace(b"b,1", b"b,7")})
    assert ("label that labels.csv lacks", "train.csv row 4", True) in problems(root)


def test_a_row_with_several_faults_names_all_of_them(tmp_path):
    found = problems(make(tmp_path, **{"train.csv": TRAIN + b"b,0 7 0\n,\n../x,8\n"}))
    row5 = {("duplicate id", True), ("label that labels.csv lacks", True), ("repeated label", True)}
    assert {(kind, forbids) for kind, where, forbids in found if where == "train.csv row 5"} == row5
    assert {kind for kind, where, _ in found if where == "train.csv row 7"} == {
        "id is a path",
        "label that labels.csv lacks",
    }


def test_two_scans_of_one_name_are_told_apart_by_their_suffixes(tmp_path):
    two = {"train/b.png": picture(colour=50), "test/t.png": picture(colour=60)}
    root = make(tmp_path, **two, **{"sample_submission.csv": None})
    assert problems(root) == [("several files for an id", "train.csv row 3", True)]
    train = TRAIN.replace(b"b,1", b"b.jpg,1\nb.png,2")
    catalog = read_catalog(make(tmp_path, **two, **{"sample_submission.csv": None, "train.csv": train}))
    assert catalog.train.ids == ("a", "b.jpg", "b.png", "c.webp")
    assert catalog.test.ids == ("s", "t.jpg", "t.png", "u")


def test_a_test_picture_that_no_table_names_is_blamed_on_its_folder(tmp_path):
    root = make(tmp_path, **{"sample_submission.csv": None, "test/s.png": b"no picture"})
    assert problems(root) == [("picture cannot be used", "test row None", True)]


def test_an_empty_cell_of_test_csv_leaves_the_other_test_labels(tmp_path):
    root = make(tmp_path, **{"test.csv": HEAD + b"s,0\nt,\n"})
    assert problems(root) == [("test labels are incomplete", "test.csv row None", False)]
    catalog = read_catalog(root)  # u, s, t.jpg
    assert catalog.test_labelled.tolist() == [False, True, False]
    assert catalog.test_labels[1].tolist() == [1, 0, 0]


def test_ids_of_test_csv_may_be_spelled_otherwise_than_in_the_sample_submission(tmp_path):
    catalog = read_catalog(make(tmp_path, **{"test.csv": HEAD + b"t,1\ns.png,0\nu,2\n"}))
    assert catalog.test_labels.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_a_picture_with_two_rows_in_test_csv_is_named(tmp_path):
    root = make(tmp_path, **{"test.csv": HEAD + b"s,0\nt,1\nu,2\ns,1\n"})
    assert problems(root) == [("duplicate id", "test.csv row 5", True)]


def test_labels_that_always_come_together_are_warned_of(tmp_path):
    train = HEAD + b"a,oil painting x\nb,oil painting\nc,y oil painting x\n"
    root = make(tmp_path, **{"train.csv": train, "labels.csv": None})
    assert problems(root) == [("labels that always come together", "train.csv row None", False)]
    assert "'oil', 'painting': in the same 3 pictures" in check_data(root, workers=1).text()


def test_negatives_need_some_picture_with_a_label(tmp_path):
    root = make(tmp_path, **{"train.csv": HEAD + b"a,\nb,\nc,\n"})
    report = check_data(root, workers=1, negatives=True)
    assert [problem.kind for problem in report.problems] == ["no labels"]


def test_with_negatives_an_empty_cell_of_test_csv_says_that_there_is_no_label(tmp_path):
    root = make(tmp_path, **{"train.csv": HEAD + b"a,0 2\nb,\nc,1\n", "test.csv": HEAD + b"s,0\nt,\nu,1\n"})
    catalog = read_catalog(root, negatives=True)
    assert catalog.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert catalog.test_labelled.all()
    assert catalog.test_labels.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


WARNINGS = [
    ("train/d.png", picture(), "files without an id", "train row None"),
    ("train.csv", b"\xef\xbb\xbf" + TRAIN, "byte-order mark", "train.csv row 1"),
    ("train.csv", TRAIN.decode().encode("utf-16"), "byte-order mark", "train.csv row 1"),
    ("train.csv", b"\xfe\xff" + TRAIN.decode().encode("utf-16-be"), "byte-order mark", "train.csv row 1"),
    ("train.csv", b"The collection, 2019\n\n" + TRAIN, "title above the header", "train.csv row 1"),
    ("train.csv", b'"unpaired\n' + TRAIN, "title above the header", "train.csv row 1"),
    ("train.csv", b"sep=;\n" + TRAIN.replace(b",", b";"), "title above the header", "train.csv row 1"),
    ("test.xlsx", b"PK", "table in another form", "test.xlsx row None"),
    ("test.csv", HEAD + b"s,0\n", "test labels are incomplete", "test.csv row None"),
    ("train.csv", TRAIN.replace(b"\n", b",9\n"), "stray column", "train.csv row 1"),
    ("train.csv", TRAIN.replace(b"\n", b",1\n").replace(b"s,1", b"s,id"), "stray column", "train.csv row 1"),
]


@pytest.mark.parametrize(("file", "data", "kind", "where"), PROBLEMS, ids=[case[2] for case in PROBLEMS])
def test_a_problem_is_the_only_one_named_with_its_row_and_forbids_training(tmp_path, file, data, kind, where):
    assert problems(make(tmp_path, **{file: data})) == [(kind, where, True)]


@pytest.mark.parametrize(("file", "data", "kind", "where"), WARNINGS, ids=[case[2] for case in WARNINGS])
def test_what_does_no_harm_is_warned_of(tmp_path, file, data, kind, where):
    root = make(tmp_path, **{file: data})
    assert problems(root) == [(kind, where, False)]
    assert read_catalog(root).labels.tolist() == LABELS


def test_a_folder_without_pictures_is_one_problem(tmp_path):
    assert problems(make(tmp_path, **NO_PICTURES)) == [("no pictures", "train row None", True)]


def test_all_rows_with_too_many_fields_are_named(tmp_path):
    train = HEAD + b"a,0\nb,0,1,2\nc.webp,0\nd,1,2\n\n" + b'"e\ne",1\nf\n'
    found = problems(make(tmp_path, **{"train.csv": train}))
    wide, narrow = "row with too many fields", "truncated row"
    expected = {(wide, "train.csv row 3"), (wide, "train.csv row 5"), (narrow, "train.csv row 9")}
    assert expected | {("id without a file", "train.csv row 7")} == {
        (kind, where) for kind, where, _ in found
    }


def test_a_label_that_only_test_pictures_have_is_not_blamed_on_a_file_that_is_not_there(tmp_path):
    root = make(tmp_path, **{"labels.csv": None, "test.csv": HEAD + b"s,0\nt.jpg,1\nu,7\n"})
    assert "labels.csv" not in check_data(root, workers=1).text()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dangling_link_forbids_training_and_is_no_traceback(tmp_path, split):
    train = TRAIN + b"d,1\n" if split == "train" else TRAIN
    root = make(tmp_path, **{"sample_submission.csv": None, "train.csv": train})
    (root / split / "d.png").symlink_to("nowhere.png")
    assert check_data(root, workers=1).forbids


def test_a_file_name_that_is_not_utf8_is_no_traceback(tmp_path, capsys):
    root = make(tmp_path, **{"sample_submission.csv": None})
    Path(os.fsdecode(os.fsencode(root / "test") + b"/\xe9.png")).write_bytes(b"no picture")
    assert launch.main(["--check-data", str(root)]) == 1
    assert "not a picture" in capsys.readouterr().out


MANY = {
    "train.csv": TRAIN.replace(b"b,1", b"b,7").replace(b"0 2", b"0 0") + b"a,1\ne,1\nf\n",
    "labels.csv": NAMES + b"2,c\n",
    "sample_submission.csv": b"id\nu\nu\nx\n",
    "train/c.webp": picture("webp")[:30],
    "train/z.png": bomb(),
}
FORBIDDING = {
    *(f"train.csv row {row}" for row in (2, 3, 4, 5, 6, 7)),
    *("labels.csv row 5", "sample_submission.csv row 3", "sample_submission.csv row 4"),
}


def test_all_problems_stand_in_one_report(tmp_path, capsys):
    root = make(tmp_path, **MANY)
    found = problems(root)
    assert {where for _, where, forbids in found if forbids} == FORBIDDING
    assert ("unused picture cannot be decoded", "train/z.png row None", False) in found
    assert launch.main(["--check-data", str(root)]) == 1
    out = capsys.readouterr().out
    assert all(f"    {where}: " in out for where in FORBIDDING)


def test_read_catalog_refuses_with_all_problems_but_those_of_pixels(tmp_path):
    with pytest.raises(DataError, match="must not be trained on") as caught:
        read_catalog(make(tmp_path, **MANY))
    assert all(f"    {where}: " in str(caught.value) for where in FORBIDDING - {"train.csv row 4"})


def test_problems_of_other_tables_are_reported_when_train_csv_cannot_be_read(tmp_path):
    found = problems(make(tmp_path, **{"train.csv": b"\0", "sample_submission.csv": SAMPLE + b"v,0\n"}))
    assert {where for _, where, _ in found} == {"train.csv row 1", "sample_submission.csv row 5"}


def test_check_data_exits_with_0_where_nothing_or_only_little_is_wrong(tmp_path, capsys):
    root = make(tmp_path, **{"train.csv": b"\xef\xbb\xbf" + TRAIN})
    assert launch.main(["--check-data", str(root)]) == 0
    out = capsys.readouterr().out
    for words in ("train.csv row 1: read without it", "short sides   4 to 4 px", "may be trained on"):
        assert words in out


@pytest.mark.parametrize(
    "change",
    [
        {"train.csv": TRAIN.replace(b"b,1", b"b,2")},
        {"train.csv": TRAIN.replace(b"\nb,", b"\nb.jpg,")},
        {"train.csv": TRAIN.replace(b"b,1\n", b"") + b"b,1\n"},
        {"labels.csv": NAMES.replace(b"1,", b"8,").replace(b"2,", b"1,").replace(b"8,", b"2,")},
        {"train/b.jpg": picture("jpg") + b" "},
        {"train/b.jpg": picture("jpg")[:-1] + b" "},  # of the same size
    ],
)
def test_the_digest_changes_with_labels_ids_and_bytes(tmp_path, change):
    digest = read_catalog(make(tmp_path / "one")).digest
    assert read_catalog(make(tmp_path / "two", **change)).digest != digest


def test_the_test_digest_changes_with_the_bytes_of_test_pictures(tmp_path):
    before = read_catalog(make(tmp_path / "one"))
    after = read_catalog(make(tmp_path / "two", **{"test/t.jpg": picture("jpg")[:-1] + b" "}))
    assert after.digest == before.digest
    assert after.test_digest != before.test_digest


def test_the_digest_stays_when_the_directory_moves_and_files_are_renamed(tmp_path):
    before = read_catalog(make(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "there/train/b.jpg").rename(tmp_path / "there/train/b.png")
    after = read_catalog(tmp_path / "there")
    assert (after.digest, after.test_digest) == (before.digest, before.test_digest)


def test_a_catalog_knows_copies_by_their_contents(tmp_path):
    catalog = read_catalog(
        make(tmp_path, **{"train/b.jpg": picture("png", 0), "test/s.png": picture("webp", 20)})
    )
    digests = dict(zip(catalog.train.ids, catalog.train.contents, strict=True))
    assert digests["a"] == digests["b"] != digests["c.webp"]
    assert digests["c.webp"] == catalog.test.contents[catalog.test.ids.index("s")]


def test_a_picture_that_cannot_be_read_is_named_with_its_row(tmp_path, monkeypatch):
    def read(path):
        if path.name == "b.jpg":
            raise PermissionError
        return file_digest(path)

    monkeypatch.setattr(contents, "file_digest", read)
    with pytest.raises(DataError, match=r"train\.csv row 3: train/b\.jpg: it cannot be read"):
        read_catalog(make(tmp_path))


def test_the_digest_is_the_same_in_every_process(tmp_path):
    train = HEAD + b"a,1 01\nb,001 0001\nc,00001 000001\n"  # equal numbers, unequal labels
    root = make(tmp_path, **{"train.csv": train, "labels.csv": None})
    code = f"from imet_ray.data.formats import *; print(read_catalog(Path({str(root)!r})).digest)"
    command, cwd = [sys.executable, "-c", code], Path(launch.__file__).parent
    digests = [subprocess.check_output(command, cwd=cwd, env={"PYTHONHASHSEED": seed}) for seed in "123"]
    assert len(set(digests)) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train.csv": None, "metadata.csv": TRAIN}, "metadata.csv is there: save it as train.csv"),
        (
            {"train.csv": None, "readme.txt": b"pictures"},
            "write one with the columns id (names of pictures) and attribute_ids",
        ),
        (
            {"train.csv": None, "cat/x.png": picture()},
            "names of folders, such as cat/, are not read as labels",
        ),
        ({"train.csv": None, "train/cat/x.png": picture()}, "names of folders, such as cat/, are not read"),
        ({"train.csv": b"file,tags\na,0\n"}, "found file, tags: name the columns so in the first row"),
        ({"train.csv": HEAD + b"new/a,0\n"}, "write the file's name alone, 'a'"),
        ({"train.csv": HEAD + b"new\\a.png,0\n"}, "write the file's name alone, 'a.png'"),
        ({"train.csv": HEAD + b"a,0\na,1\n"}, "write all its labels in one row"),
        ({"train.csv": HEAD + b"7,0\n", "train/007.png": picture()}, "called '7', but 007.png is there"),
        ({"train.csv": HEAD + b"A,0\n"}, "called 'A', but a.png is there"),
        ({"train/a.jpg": picture("jpg")}, "train/a.jpg, train/a.png: give each its own name"),
    ],
)
def test_another_layout_is_refused_in_one_line_that_says_what_to_do(tmp_path, files, expected):
    told = [p.text for p in check_data(make(tmp_path, **files), workers=1).problems if p.forbids]
    assert len(told) == 1
    assert expected in told[0]


def test_a_missing_picture_says_nothing_false_of_folders_that_are_read(tmp_path):
    moved = NO_PICTURES | {
        f"train_images/{name}": picture(colour=i) for i, name in enumerate(("a.png", "b.png"))
    }
    for name, files in {
        "another": moved,
        "below": {name.replace("images/", "images/hall/"): data for name, data in moved.items()},
    }.items():
        assert [kind for kind, _, _ in problems(make(tmp_path / name, **files))] == ["id without a file"]


def test_a_row_whose_picture_is_a_link_to_nowhere_is_told_once(tmp_path):
    root = make(tmp_path, **{"train/a.png": None})
    (root / "train" / "a.png").symlink_to(tmp_path / "nowhere.png")
    assert problems(root) == [("not a file", "train.csv row 2", True)]
