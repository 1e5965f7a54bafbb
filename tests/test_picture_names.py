"""Names of picture files: which files are pictures, which one an id means, what is said of one that is missing."""

import sys
import unicodedata

import pytest
from data_directory import NO_PICTURES, TRAIN, make, picture, problems

from imet_ray.data.check import check_data
from imet_ray.data.formats import read_catalog
from imet_ray.errors import DataError


@pytest.mark.parametrize("suffix", ["tif", "gif", "bmp", "avif", "jp2", "JPG", "Png"])
def test_pictures_of_all_suffixes_are_found_whatever_their_case(tmp_path, suffix):
    kind = {"tif": "tiff", "jp2": "jpeg2000"}.get(suffix, suffix.lower())
    train = TRAIN.replace(b"b,1", f"b.{suffix.swapcase()},1".encode())
    root = make(tmp_path, **{"train/b.jpg": None, f"train/b.{suffix}": picture(kind.replace("jpg", "jpeg"))})
    assert problems(root) == []
    make(tmp_path, **{"train/b.jpg": None, "train.csv": train})
    assert read_catalog(root).train.files[1].name == f"b.{suffix}"


@pytest.mark.parametrize(("of_the_table", "of_the_file"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_whatever_its_unicode_form(tmp_path, of_the_table, of_the_file):
    id_, name = (unicodedata.normalize(form, "Käthe") for form in (of_the_table, of_the_file))
    train = TRAIN.replace(b"b,1", f"{id_},1".encode())
    root = make(tmp_path, **{"train/b.jpg": None, f"train/{name}.jpg": picture("jpg"), "train.csv": train})
    assert problems(root) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_systems_leave_beside_pictures_is_not_taken_for_one(tmp_path, split):
    left = ("._a.png", "._s.png", ".DS_Store", "._.DS_Store", "Thumbs.db", "desktop.ini", ".b.jpg")
    root = make(
        tmp_path, **{f"{split}/{name}": b"\0\5\x16\7" for name in left}, **{"sample_submission.csv": None}
    )
    assert problems(root) == []
    assert read_catalog(root).test.ids == ("s", "t", "u")


ELSEWHERE = [  # files of train/, what is said of them
    ({"train/b.psd": b"x", "train/e.psd": b"x"}, "2 files of train/ are .psd; pictures are .avif, .bmp"),
    ({"train/more/b.jpg": b"x"}, "train/ has folders, such as more/"),
    ({"train/b.gif": picture("gif")}, "no picture is called 'b.jpg', but b.gif is there"),
]


@pytest.mark.parametrize(("files", "words"), ELSEWHERE, ids=["suffix", "folder", "other suffix"])
def test_of_an_id_without_a_file_it_is_said_what_is_there(tmp_path, files, words):
    train = TRAIN.replace(b"b,1", b"b.jpg,1")
    report = check_data(make(tmp_path, **{"train/b.jpg": None, "train.csv": train}, **files), workers=1)
    assert words in report.text()
    assert report.forbids


def test_where_the_folder_of_pictures_has_another_name_that_is_said(tmp_path):
    root = make(tmp_path)
    (root / "train").rename(root / "Photos")
    with pytest.raises(DataError, match=r"there is no folder train/, but Photos/, test/; pictures are"):
        read_catalog(root)


def test_a_folder_of_files_that_are_no_pictures_says_so_in_one_line(tmp_path):
    root = make(tmp_path, **NO_PICTURES, **{f"train/{name}.psd": b"x" for name in "abc"})
    with pytest.raises(
        DataError, match=r"train.csv has 3 ids; 3 files of train/ are \.psd; pictures are \.avif"
    ) as caught:
        read_catalog(root)
    assert "id without a file" not in str(caught.value)


def test_heic_pictures_without_the_extra_are_one_problem(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    train = {"train.csv": TRAIN.replace(b"c.webp", b"c"), **{f"train/{name}.HEIC": b"x" for name in "abc"}}
    root = make(tmp_path, **NO_PICTURES, **train)
    (problem,) = check_data(root, workers=1).problems
    assert problem.where == "3 files of train/ are .HEIC"
    assert "uv sync --extra heic" in problem.text
