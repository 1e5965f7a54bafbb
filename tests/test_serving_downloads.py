"""What a person has chosen on the page, as files: a table, or sidecars, as `--tag` writes them."""

import io
import zipfile
from urllib.parse import unquote

import pytest
from served import LABELS, SMALL, asking, refused, served

from imet_ray.serving.app import make_app
from imet_ray.serving.downloads import Chosen, sidecars
from imet_ray.tagging.sidecars import Sidecars
from imet_ray.tagging.tables import TABLES

CHOSEN = {
    "pictures": [
        {"name": "a.jpg", "labels": [{"name": "red", "probability": 0.9}, {"name": "x|y", "probability": 0}]},
        {"name": "b/a.jpg", "labels": [{"name": LABELS[2], "probability": 0.5}], "edited": True},
        {"name": "c.png", "labels": []},
    ]
}


@pytest.fixture(scope="module")
def ask():
    with asking(make_app(served(), limits=SMALL)) as client:
        yield client


def test_what_was_chosen_becomes_the_table_that_tag_writes(ask, tmp_path):
    answer = ask.post("/csv", json=CHOSEN)
    assert "tags.csv" in answer.headers["content-disposition"]
    (tmp_path / "tags.csv").write_bytes(answer.content)
    rows = TABLES[".csv"].read(tmp_path / "tags.csv")
    assert [row.path for row in rows] == ["a.jpg", "a.jpg", "c.png"]
    assert [row.labels for row in rows] == [("red", "x|y"), (LABELS[2],), ()]
    assert rows[0].probabilities == (0.9, 0.0)
    assert [row.decided_by for row in rows] == ["brightness", "brightness, edited by hand", "brightness"]
    assert {row.tagged_by for row in rows} == {served().tagged_by}
    moved = ask.post("/csv", json=CHOSEN | {"decided_by": "probability at least 0.3"})
    assert moved.text.count("probability at least 0.3") == 3


def test_what_was_chosen_becomes_sidecars_that_tag_leaves_alone(ask, tmp_path):
    answer = ask.post("/xmp", json=CHOSEN)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["a.jpg.xmp", "a-2.jpg.xmp", "c.png.xmp"]
        archive.extractall(tmp_path)
    for name in ("a.jpg", "a-2.jpg", "c.png"):
        assert Sidecars().tagged_by(tmp_path / name) == served().tagged_by
    assert "&lt;script&gt;" in (tmp_path / "a-2.jpg.xmp").read_text()


def test_a_single_sidecar_has_its_pictures_name_whatever_that_is(ask):
    for name in ('é "x".jpg', "\N{CAT FACE}\r\nSet-Cookie: a=b.jpg"):
        answer = ask.post("/xmp", json={"pictures": [{"name": name, "labels": []}]})
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
        shown = unquote(answer.headers["content-disposition"].partition("UTF-8''")[2])
        assert shown == "".join(letter for letter in name if letter.isprintable()) + ".xmp"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"{", "body"),
        (b"{}", "pictures"),
        (b'{"pictures": [{"name": "a", "labels": [{"name": "x", "probability": 2}]}]}', "probability"),
        (b'{"pictures": [{"name": "a", "labels": [], "color": 1}]}', "color"),
    ],
)
def test_what_cannot_be_downloaded_is_refused(ask, sent, expected):
    assert expected in refused(ask.post("/csv", content=sent), 422)
    assert expected in refused(ask.post("/xmp", content=sent), 422)


def test_downloads_have_limits_as_pictures_have(ask):
    assert "in one request" in refused(ask.post("/csv", content=b" " * 5001), 413)


def test_many_pictures_of_one_name_have_sidecars_of_their_own():
    names = ("a.jpg", "a-2.jpg", "a.jpg", "a.jpg", "a.jpg")
    found = sidecars(Chosen(pictures=[{"name": name, "labels": []} for name in names]), "x")
    assert list(found) == ["a.jpg.xmp", "a-2.jpg.xmp", "a-3.jpg.xmp", "a-4.jpg.xmp", "a-5.jpg.xmp"]
