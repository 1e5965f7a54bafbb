"""OpenClipart from its packages: which words are labels, which pictures are kept, and that half of it is continued."""

import io
import struct
import zlib

import pytest
from PIL import Image

from imet_ray.data.formats import read_catalog, read_directory
from imet_ray.data.images import read_rgb
from imet_ray.data.sources import openclipart, resolve_data
from imet_ray.errors import ImetError


def contents(root):
    """Every file's bytes."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def svg(*words):
    """An SVG with a contributor's keywords, and an author who is none."""
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in words)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg"><metadata><rdf:RDF><cc:Work rdf:about="">'
        "<dc:title>a picture</dc:title>"
        f'<dc:subject id="s">\n  <rdf:Bag>{items}</rdf:Bag></dc:subject>'
        "<dc:creator><rdf:Bag><rdf:li>somebody</rdf:li></rdf:Bag></dc:creator>"
        "</cc:Work></rdf:RDF></metadata></svg>"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tree", "house"], ["tree", "house"]),
        (["TREE", "Tree", " tree\n"], ["tree"]),
        (["salt &amp; pepper", "caf&#233;", "&lt;x&gt;"], ["salt & pepper", "café", "<x>"]),
        (["fruit   and\n vegetables"], ["fruit and vegetables"]),
        (["hash", "Magick", "unsorted", "", " ", "tree"], ["tree"]),
        ([], []),
    ],
)
def test_keywords_are_the_contributors_words_in_lower_case_each_once(words, expected):
    assert openclipart.keywords(svg(*words)) == expected


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def plain(i, size=(9, 8)):
    return png(Image.new("RGB", size, (i, 255 - i, 7)))


def unpack(root, pictures):
    """The two packages as unpacked ones: name to PNG and keywords."""
    for name, (data, *words) in pictures.items():
        for kind, content in (("png", data), ("svg", svg(*words).encode())):
            file = root / "usr/share/openclipart" / kind / f"{name}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return root


PICTURES = {f"birds/b{i:02}": (plain(i), "Bird", "sea" if i % 3 else "land") for i in range(30)}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A tree of 30 pictures with three keywords."""
    monkeypatch.setattr(openclipart, "AT_LEAST", 3)
    return unpack(tmp_path / "source", PICTURES)


def fetched(root, source):
    openclipart.fetch(root, source=source)
    assert read_directory(root).problems == ()
    return read_catalog(root)


def test_openclipart_is_a_directory_whose_tenth_is_the_test_split(tmp_path, source):
    catalog = fetched(tmp_path / "clip", source)
    assert catalog.label_names == ("bird", "land", "sea")
    assert (len(catalog.train.ids), len(catalog.test.ids)) == (27, 3)
    assert set(catalog.train.ids + catalog.test.ids) == {name.replace("/", "-") for name in PICTURES}
    labels = dict(zip(catalog.train.ids, catalog.labels.tolist(), strict=True))
    labels |= dict(zip(catalog.test.ids, catalog.test_labels.tolist(), strict=True))
    assert all(labels[f"birds-b{i:02}"] == [1, int(i % 3 == 0), int(i % 3 > 0)] for i in range(30))


def test_rare_keywords_are_no_labels_and_pictures_without_labels_are_left_out(tmp_path, source):
    unpack(
        source,
        {"x/rare": (plain(1), "rare", "rarer"), "x/mixed": (plain(2), "sea", "rare"), "x/no": (plain(3),)},
    )
    catalog = fetched(tmp_path / "clip", source)
    assert "rare" not in catalog.label_names
    assert {name for name in catalog.train.ids + catalog.test.ids if name[0] == "x"} == {"x-mixed"}


def test_a_picture_that_cannot_be_used_is_left_out(tmp_path, source):
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + plain(1)[24:29]
    bomb = plain(1)[:12] + header + struct.pack(">I", zlib.crc32(header)) + plain(1)[33:]
    unpack(source, {"x/bomb": (bomb, "sea"), "x/cut": (plain(1)[:50], "sea"), "x/good": (plain(1), "sea")})
    catalog = fetched(tmp_path / "clip", source)
    assert {name for name in catalog.train.ids + catalog.test.ids if name[0] == "x"} == {"x-good"}


def test_pictures_have_at_most_160_pixels_on_the_short_side_and_stand_over_white(tmp_path, source):
    clear = png(Image.new("RGBA", (400, 320), (255, 0, 0, 0)))
    unpack(source, {"x/clear": (clear, "sea"), "x/small": (plain(9, (30, 20)), "sea")})
    catalog = fetched(tmp_path / "clip", source)
    files = dict(
        zip(catalog.train.ids + catalog.test.ids, catalog.train.files + catalog.test.files, strict=True)
    )
    assert read_rgb(files["x-clear"]).shape == (160, 200, 3)
    assert read_rgb(files["x-clear"]).min() > 250
    assert read_rgb(files["x-small"]).shape == (20, 30, 3)


def test_pictures_whose_names_differ_only_in_odd_characters_are_all_kept_apart(tmp_path, source):
    unpack(source, {f"x/{name}": (plain(9), "sea") for name in ("a b", "a_b", "a&b")})
    catalog = fetched(tmp_path / "clip", source)
    assert len(catalog.train.ids + catalog.test.ids) == 33


def test_a_whole_openclipart_is_not_made_again(tmp_path, source):
    root = resolve_data("openclipart", cache=tmp_path, source=source)
    before = contents(root)
    assert resolve_data("openclipart", cache=tmp_path, source=tmp_path / "gone") == root
    assert contents(root) == before


@pytest.mark.parametrize(("what", "after"), [("read_rgb", 11), *(("write_table", n) for n in range(4))])
def test_an_interrupted_conversion_goes_on_to_the_same_result(tmp_path, source, monkeypatch, what, after):
    fetched(tmp_path / "whole", source)
    do, calls = getattr(openclipart, what), []

    def broken(*args, **how):
        calls.append(args)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return do(*args, **how)

    monkeypatch.setattr(openclipart, what, broken)
    with pytest.raises(KeyboardInterrupt):
        openclipart.fetch(tmp_path / "clip", source=source, workers=1)
    assert not (tmp_path / "clip" / "sample_submission.csv").exists()
    fetched(tmp_path / "clip", source)
    assert contents(tmp_path / "clip") == contents(tmp_path / "whole")
    assert len(calls) <= {"read_rgb": len(PICTURES) + 1, "write_table": after + 5}[what]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Makes a program of that name; without one, PATH has no tools at all."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def _make(name, script):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return _make


def one_line(root, source=None):
    with pytest.raises(ImetError) as caught:
        openclipart.fetch(root, source=source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_apt_get_one_line_names_the_way_out(tmp_path, tool):
    said = one_line(tmp_path / "clip")
    assert "apt-get, which this machine lacks" in said
    assert "give --from DIR" in said


def test_a_download_that_fails_says_why_and_names_the_way_out(tmp_path, tool):
    tool("apt-get", "echo 'E: Unable to locate package openclipart-png' >&2; exit 100")
    tool("dpkg", "exit 0")
    said = one_line(tmp_path / "clip")
    for words in ("Unable to locate package", "`apt-get update`", "--from DIR"):
        assert words in said


def test_downloaded_packages_are_unpacked_converted_and_removed(tmp_path, source, tool):
    tool("apt-get", 'shift; for package in "$@"; do echo > "$package.deb"; done')
    tool("dpkg", f'mkdir -p "$3" && cp -r {source}/. "$3"')
    openclipart.fetch(tmp_path / "clip")
    fetched(tmp_path / "other", source)
    assert contents(tmp_path / "clip") == contents(tmp_path / "other")
    assert not (tmp_path / "clip" / "packages").exists()


def test_a_source_without_the_packages_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "openclipart/png and openclipart/svg" in one_line(tmp_path / "clip", tmp_path / "empty")
