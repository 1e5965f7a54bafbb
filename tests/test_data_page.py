"""The page of a data directory: whole, of anything that can be read, and nothing on it comes from elsewhere."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from data_directory import HEAD, NO_PICTURES, make, picture
from html_page import Page
from PIL import Image

import launch
from imet_ray.data.check import check_data
from imet_ray.data.sources import demo
from imet_ray.reporting.data_figures import FIGURES, DataOnPage
from imet_ray.reporting.data_page import _small, write_data_page
from imet_ray.reporting.pages import draw_sections


def page_of(root, tmp_path) -> Page:
    path = tmp_path / "page.html"
    write_data_page(path, check_data(root, workers=2))
    return Page(path.read_text())


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Page:
    root = tmp_path_factory.mktemp("good")
    demo.generate(root / "data", n_images=60, n_test=5, seed=2)
    assert launch.main(["--check-data", str(root / "data"), "--report", str(root / "page.html")]) == 0
    return Page((root / "page.html").read_text())


def test_a_page_has_every_figure_and_examples_of_common_and_rare_labels(good):
    assert good.headings[:5] == [
        "Label frequencies",
        "Labels per picture",
        "The commonest labels together",
        "Resolutions",
        "Aspects",
    ]
    assert "The commonest labels" in good.headings
    assert "The rarest labels" in good.headings
    assert "they may be trained on" in good.text
    assert good.elements.count("figure") >= 8 * 6


def test_a_page_needs_nothing_else(good):
    assert good.loaded
    assert all(place.startswith("data:image/") for place in good.loaded)


def test_labels_are_counted_over_training_pictures(tmp_path):
    page = page_of(make(tmp_path / "d"), tmp_path)
    assert ["culture::a", "2", "0.6667"] in page.rows
    assert "at most 2; 0 pictures have none" in page.text
    assert ["culture::a", "tag::c", "1", "0.5000", "1.0000"] in page.rows
    assert ["5 x 4", "6"] in page.rows  # width first, training and test pictures


def test_a_label_has_its_own_pictures_under_it_with_their_other_labels(tmp_path):
    page = page_of(make(tmp_path / "d"), tmp_path)
    assert [" ".join(text.split()) for text in page.headings if "::" in text] == [
        "culture::a 2 pictures",
        "tag::b 1 picture",
        "tag::c 1 picture",
    ]
    assert page.captions == ["tag::ca", "c.webp", "b", "culture::aa"]


def test_at_most_six_pictures_of_a_label_are_shown(tmp_path):
    rows = "".join(f"p{i},0\n" for i in range(20)).encode()
    pictures = {f"train/p{i}.png": picture(colour=i) for i in range(20)}
    root = make(tmp_path / "d", **NO_PICTURES, **pictures, **{"train.csv": HEAD + rows})
    assert page_of(root, tmp_path).captions == [f"p{i}" for i in (0, 3, 7, 11, 15, 19)]


def test_labels_without_a_picture_are_named(tmp_path):
    names = b"attribute_id,attribute_name\n0,a\n1,b\n2,c\n3,d\n4,e\n"
    text = page_of(make(tmp_path / "d", **{"labels.csv": names}), tmp_path).text
    assert "2 labels have no picture: d, e." in text


def test_broken_data_get_a_page_of_what_can_be_read_and_its_problems(tmp_path):
    broken = {"train.csv": HEAD + b"a,0 2\nb,1\nc.webp,0\nd,0\nb,9\n", "train/b.jpg": b"garbage" * 9}
    page = page_of(make(tmp_path / "d", **broken), tmp_path)
    assert "they must not be trained on: see the problems" in page.text
    for said in ("no picture is called 'd'", "label that labels.csv lacks", "train/b.jpg: not a picture"):
        assert said in page.text
    assert ["culture::a", "2", "0.6667"] in page.rows
    assert "None of them can be read." in page.text  # of label b
    assert ["5 x 4", "5"] in page.rows


@pytest.mark.parametrize(
    "files",
    [
        {"train.csv": b"\x00\xff garbage"},
        {"train.csv": HEAD},
        {"train.csv": None, "labels.csv": None},
        NO_PICTURES,
        {f"train/{name}": b"x" for name in ("a.png", "b.jpg", "c.webp")},
        {"labels.csv": b"attribute_id,attribute_name\n0,\n1,  \n2,\x07<script>\n"},
    ],
    ids=["garbage", "no rows", "no tables", "no pictures", "no picture is one", "names of nothing"],
)
def test_whatever_lies_there_gets_a_page(tmp_path, files):
    page = page_of(make(tmp_path / "d", **files), tmp_path)
    assert "trained on" in page.text
    assert page.elements.count("script") == 1  # the page's own


def test_no_directory_gets_a_page_that_says_so(tmp_path):
    assert "no such directory" in page_of(tmp_path / "nowhere", tmp_path).text


def test_names_stand_as_they_are_written(tmp_path):
    long = "a very long name " * 20
    names = f"attribute_id,attribute_name\n0,<b>$x$\n1,{long}\n2,c\n".encode()
    page = page_of(make(tmp_path / "d", **{"labels.csv": names}), tmp_path)
    assert ["<b>$x$", "2", "0.6667"] in page.rows
    assert any(long.strip() in row[0] for row in page.rows)


def test_a_panorama_is_shown_by_its_middle(tmp_path):
    Image.new("RGB", (9000, 90)).save(tmp_path / "a.png")
    assert _small(tmp_path / "a.png").shape == (90, 270, 3)


def test_ticks_of_few_labels_and_of_very_different_sizes_are_numbers(tmp_path):
    wide = BytesIO()
    Image.new("RGB", (900, 90)).save(wide, "PNG")
    page = page_of(make(tmp_path / "d", **{"train/a.png": wide.getvalue()}), tmp_path)
    figures = [b64decode(place.partition(",")[2]) for place in page.loaded if "svg+xml" in place]
    assert len(figures) >= 4
    assert not any(b"mathdefault" in figure for figure in figures)


def test_a_page_of_a_large_data_set_stays_small():
    rng = np.random.default_rng(0)
    n, c = 20_000, 3000
    data = DataOnPage(
        names=tuple(f"label {i}" for i in range(c)),
        groups=tuple("ab"[i % 2] for i in range(c)),
        ids=tuple(map(str, range(n))),
        files=(),
        labels=(labels := (rng.random((n, c), np.float32) < 0.001).astype(np.uint8)),
        readable=np.ones(n, bool),
        counts=labels.sum(0, dtype=np.int64),
        sizes=rng.integers(100, 3000, (n, 2)),
        n_test=0,
    )
    sections = draw_sections(FIGURES, data)
    assert len(sections) == len(FIGURES)
    assert sum(len(section["picture"]) for section in sections) < 1_000_000
    assert len(sections[0]["table"].rows) == 2000


@pytest.mark.parametrize("where", ["", "nowhere/page.html"])
def test_a_place_that_cannot_have_a_page_is_refused_before_anything_is_decoded(tmp_path, capsys, where):
    root = make(tmp_path / "d")
    argv = ["--check-data", str(root), "--report", str(tmp_path / where), "--cache", str(tmp_path / "c")]
    assert launch.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --report takes a file in a folder that is there, such as page.html")


def test_without_a_directory_to_check_a_report_has_no_meaning(capsys):
    assert launch.main(["--status", "--report", "page.html"]) == 1
    assert "--report has no meaning for --status: it is for --check-data" in capsys.readouterr().err
