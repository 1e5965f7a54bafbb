"""Sidecars: keywords beside a picture, checked with exiftool; what others put there stays."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from imet_ray.errors import DataError
from imet_ray.tagging.sidecars import Sidecars

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
    xmp:Rating="4" darktable:xmp_version="5">
   <!-- kept -->
   <dc:subject>
    <rdf:Seq>
     <rdf:li>holiday</rdf:li>
    </rdf:Seq>
   </dc:subject>
   <dc:title><rdf:Alt><rdf:li xml:lang="x-default">A &amp; B</rdf:li></rdf:Alt></dc:title>
   <darktable:history><rdf:Seq><rdf:li darktable:num="0" darktable:operation="exposure"/></rdf:Seq></darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
ADOBE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"><photoshop:City>Lima</photoshop:City></rdf:Description>
<rdf:Description rdf:about="" xmlns:dublin="http://purl.org/dc/elements/1.1/"><dublin:subject><rdf:Bag><rdf:li>museum</rdf:li></rdf:Bag></dublin:subject></rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
MINIMAL = (
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/">{}</rdf:RDF>'
)
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
STEAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'


@pytest.fixture
def picture(tmp_path) -> Path:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"picture")
    return file


def sidecar(picture: Path) -> Path:
    return picture.with_name(f"{picture.name}.xmp")


def exiftool(path: Path) -> dict:
    command = ["exiftool", "-json", "-struct", "-G1", "-a", "-XMP:all", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)[0]


def subjects(path: Path) -> list[str]:
    """As exiftool reads them."""
    found = exiftool(path).get("XMP-dc:Subject", [])
    return [str(word) for word in (found if isinstance(found, list) else [found])]


@needs_exiftool
def test_exiftool_reads_the_labels_of_a_new_sidecar(picture):
    Sidecars().write(picture, ["culture::french", "a & b <c>", "snø 雪"], "k 1")
    assert subjects(sidecar(picture)) == ["culture::french", "a & b <c>", "snø 雪"]
    valid = subprocess.run(
        ["exiftool", "-validate", "-warning", sidecar(picture)], capture_output=True, text=True, check=True
    )
    assert "Validate                        : OK" in valid.stdout
    assert picture.read_bytes() == b"picture"
    assert Sidecars().tagged_by(picture) == "k 1"


@needs_exiftool
@pytest.mark.parametrize("text", [DARKTABLE, ADOBE], ids=["darktable", "adobe"])
def test_an_existing_sidecar_keeps_all_it_has(picture, text):
    sidecar(picture).write_text(text)
    before = exiftool(sidecar(picture))
    Sidecars("auto|").write(picture, ["dog", "cat"], "k 1")
    after = exiftool(sidecar(picture))
    assert subjects(sidecar(picture)) == [
        *(["holiday"] if text == DARKTABLE else ["museum"]),
        "auto|dog",
        "auto|cat",
    ]
    for key, value in before.items():
        if key not in ("XMP-dc:Subject", "SourceFile"):
            assert after[key] == value, key


def test_comments_prefixes_and_packets_stay_as_they_are(picture):
    sidecar(picture).write_text(DARKTABLE)
    Sidecars().write(picture, ["dog"], "k 1")
    text = sidecar(picture).read_text()
    for kept in (
        "<!-- kept -->",
        'darktable:operation="exposure"',
        "xmlns:darktable=",
        'xmp:Rating="4"',
        "A &amp; B",
    ):
        assert kept in text
    sidecar(picture).write_text(ADOBE)
    Sidecars().write(picture, ["dog"], "k 1")
    text = sidecar(picture).read_text()
    assert '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>' in text
    assert '<?xpacket end="w"?>' in text
    assert "<rdf:li>museum</rdf:li><rdf:li>dog</rdf:li>" in text


def test_labels_that_are_there_are_not_written_twice_and_stay_their_owners(picture):
    sidecar(picture).write_text(DARKTABLE)
    Sidecars().write(picture, ["holiday", "dog", "dog"], "k 1")
    assert words(picture) == ["holiday", "dog"]
    Sidecars().write(picture, ["cat"], "k 2")
    assert words(picture) == ["holiday", "cat"]


def words(picture: Path) -> list[str]:
    """As a slow reader sees them."""
    root = ElementTree.fromstring(sidecar(picture).read_bytes())
    rdf, dc = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}", "{http://purl.org/dc/elements/1.1/}"
    return [item.text or "" for subject in root.iter(f"{dc}subject") for item in subject.iter(f"{rdf}li")]


def test_another_ensembles_labels_replace_ours_and_nobody_elses(picture):
    one = Sidecars("auto:")
    one.write(picture, ["dog", "tree"], "k 1")
    by_hand = sidecar(picture).read_text().replace("<rdf:li>auto:dog</rdf:li>", "<rdf:li>by hand</rdf:li>", 1)
    sidecar(picture).write_text(by_hand)
    one.write(picture, ["tree", "cat"], "k 2")
    assert words(picture) == ["auto:tree", "by hand", "auto:cat"] or words(picture) == [
        "by hand",
        "auto:tree",
        "auto:cat",
    ]
    assert one.tagged_by(picture) == "k 2"
    one.write(picture, [], "k 3")
    assert words(picture) == ["by hand"]


def test_the_same_labels_again_change_nothing(picture):
    Sidecars().write(picture, ["dog"], "k 1")
    before = ElementTree.canonicalize(sidecar(picture).read_text())
    Sidecars().write(picture, ["dog"], "k 1")
    assert ElementTree.canonicalize(sidecar(picture).read_text()) == before


@settings(deadline=None)  # a busy disk takes longer
@given(st.lists(st.text(max_size=8), max_size=4), st.lists(st.text(max_size=8), max_size=4))
def test_any_labels_make_a_sidecar_that_is_read_again(first, second):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "a.jpg"
        for n, labels in enumerate((first, second)):
            Sidecars("p:").write(picture, labels, str(n))
            assert Sidecars().tagged_by(picture) == str(n)
            assert all(word.startswith("p:") for word in words(picture))
            assert len(words(picture)) <= len(set(labels))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "document type"),
        (STEAL, "document type"),
        ("<x/>", "no rdf:RDF"),
        ("", "no XML"),
        ("<x:xmpmeta>", "no XML"),
        ("no xml at all", "no XML"),
        ("<x>" * 3000 + "</x>" * 3000, "nested more than"),
    ],
)
def test_what_is_no_sidecar_is_refused_by_name_and_stays(picture, text, expected):
    sidecar(picture).write_text(text)
    for act in (lambda: Sidecars().write(picture, ["dog"], "k 1"), lambda: Sidecars().tagged_by(picture)):
        with pytest.raises(DataError, match=expected):
            act()
    assert sidecar(picture).read_text() == text


@pytest.mark.parametrize(
    "inside",
    [
        '<rdf:Description rdf:about="" dc:subject="old"/>',
        '<rdf:Description rdf:about=""><dc:subject>old</dc:subject></rdf:Description>',
        '<rdf:Description rdf:about=""><dc:subject/></rdf:Description>',
        "",
    ],
)
def test_subjects_in_an_unusual_form_are_kept(picture, inside):
    sidecar(picture).write_text(MINIMAL.format(inside))
    Sidecars().write(picture, ["dog"], "k 1")
    assert words(picture) == (["old", "dog"] if "old" in inside else ["dog"])


def test_adobes_sidecar_is_kept_up_where_it_can_be_of_no_other_picture(picture):
    assert Sidecars().path_of(picture) == sidecar(picture)
    adobe = picture.with_suffix(".xmp")
    adobe.write_text(ADOBE)
    assert Sidecars().path_of(picture) == adobe
    picture.with_suffix(".nef").touch()
    assert Sidecars().path_of(picture) == sidecar(picture)
    picture.with_suffix(".nef").unlink()
    sidecar(picture).write_text(DARKTABLE)
    assert Sidecars().path_of(picture) == sidecar(picture)


@needs_exiftool
def test_the_command_writes_sidecars_once_and_never_touches_a_picture(
    swept, trained, tiny_catalog, tmp_path, capsys, monkeypatch
):
    ensemble = str(trained.run.store.ensemble("k").root)
    for file in tiny_catalog.test.files[:3]:
        shutil.copy(file, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    bad = tmp_path / f"{min(before).name}.xmp"
    bad.write_text(BOMB)
    argv = ["--tag", str(tmp_path), "--with", ensemble, "--out", "xmp"]
    assert launch.main([*argv, "--prefix", "auto:"]) == 1
    assert "document type" in capsys.readouterr().err
    bad.unlink()
    assert launch.main([*argv, "--prefix", "auto:"]) == 0
    assert "1 picture tagged" in (said := capsys.readouterr().err)
    assert "2 were tagged before" in said
    assert launch.main(["--tag", str(tmp_path), "--with", ensemble, "--out", str(tmp_path / "t.jsonl")]) == 0
    for line in (tmp_path / "t.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert subjects(sidecar(Path(row["path"]))) == [f"auto:{label}" for label in row["labels"]]
    assert {file: file.read_bytes() for file in before} == before
    capsys.readouterr()
    assert launch.main([*argv, "--prefix", "auto:"]) == 0
    assert "all 3 pictures were tagged before" in capsys.readouterr().err
    assert launch.main(argv) == 0
    assert "3 pictures tagged" in capsys.readouterr().err
    one = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert subjects(sidecar(Path(one["path"]))) == one["labels"]


@pytest.mark.parametrize(
    "subject",
    [
        '<dc:subject rdf:parseType="Resource"><rdf:value>old</rdf:value></dc:subject>',
        '<dc:subject rdf:resource="urn:old"/>',
        "<dc:subject><rdf:Description><rdf:value>old</rdf:value></rdf:Description></dc:subject>",
    ],
)
def test_subjects_that_are_no_list_are_left_alone(picture, subject):
    text = MINIMAL.format(f'<rdf:Description rdf:about="">{subject}</rdf:Description>')
    sidecar(picture).write_text(text)
    with pytest.raises(DataError, match="neither a list nor a text"):
        Sidecars().write(picture, ["dog"], "k 1")
    assert sidecar(picture).read_text() == text


def test_texts_of_several_lines_stay_as_they_are(picture):
    note = 'q:note="a&#10;b&#9;c&#13;d"><q:more>e&#13;f</q:more>'
    sidecar(picture).write_text(
        MINIMAL.format(f'<rdf:Description rdf:about="" xmlns:q="urn:q" {note}</rdf:Description>')
    )
    for label in ("dog", "cat"):
        Sidecars().write(picture, [label], f"by {label}")
        found = ElementTree.parse(sidecar(picture)).getroot()
        [value] = [one.attrib["{urn:q}note"] for one in found.iter() if "{urn:q}note" in one.attrib]
        assert value == "a\nb\tc\rd"
        assert found.find(".//{urn:q}more").text == "e\rf"


def test_a_sidecar_that_is_read_only_is_left_alone(picture):
    sidecar(picture).write_text(DARKTABLE)
    sidecar(picture).chmod(0o444)
    with pytest.raises(DataError, match="read-only"):
        Sidecars().write(picture, ["dog"], "k 1")
    assert sidecar(picture).read_text() == DARKTABLE


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_sidecar(picture, make):
    make(sidecar(picture))
    with pytest.raises(DataError, match="it is no file"):
        Sidecars().tagged_by(picture)


def test_a_sidecar_that_is_a_link_stays_one(picture, tmp_path):
    (tmp_path / "there").write_text(DARKTABLE)
    sidecar(picture).symlink_to("there")
    Sidecars().write(picture, ["dog"], "k 1")
    assert sidecar(picture).is_symlink()
    assert words(picture) == ["holiday", "dog"]


@pytest.mark.parametrize("length", [238, 255])  # too long for a temporary file beside it, and for a sidecar
def test_a_name_that_is_too_long_for_a_sidecar_is_told_of_and_others_are_written(
    swept, trained, tiny_catalog, tmp_path, capsys, length
):
    ensemble = str(trained.run.store.ensemble("k").root)
    file = tiny_catalog.test.files[0]
    for stem in ("a", "b" * (length - len(file.suffix)), "c"):
        shutil.copy(file, tmp_path / f"{stem}{file.suffix}")
    assert launch.main(["--tag", str(tmp_path), "--with", ensemble, "--out", "xmp"]) == 1
    said = capsys.readouterr().err
    assert "2 pictures tagged" in said
    assert "File name too long" in said
    assert sorted(path.name[0] for path in tmp_path.glob("*.xmp")) == ["a", "c"]


def test_pictures_that_nobody_may_write_beside_are_refused_before_they_are_tagged(
    swept, trained, tiny_catalog, monkeypatch, capsys
):
    ensemble = str(trained.run.store.ensemble("k").root)
    monkeypatch.setattr("imet_ray.tagging.outputs.os.access", lambda *args: False)
    assert launch.main(["--tag", str(tiny_catalog.test.files[0]), "--with", ensemble, "--out", "xmp"]) == 1
    assert "cannot be written: choose --out tags.csv" in capsys.readouterr().err


def test_pictures_of_a_bucket_get_no_sidecars(swept, trained, monkeypatch, capsys):
    from imet_ray.tagging.pictures import Found

    ensemble = str(trained.run.store.ensemble("k").root)
    monkeypatch.setattr("imet_ray.commands.tag.find_pictures", lambda *args: [Found("s3://bucket/a.jpg")])
    assert launch.main(["--tag", "s3://bucket", "--with", ensemble, "--out", "xmp"]) == 1
    assert "lies in a bucket: choose --out tags.csv" in capsys.readouterr().err
