"""`--tag` that is killed or interrupted at moments that are drawn, beside itself, and on a disk that is really full."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import killed_tag
import pandas as pd
import pytest
from test_sidecars import ADOBE, DARKTABLE, exiftool, needs_exiftool

from imet_ray.tagging.tables import TABLES

KINDS = (*TABLES, "xmp")
KILLED, INTERRUPTED = -9, 130
SEED, KILLS = 1, 6
TEMPORARY = re.compile(r"\..*\.tmp|.*\.partial")


def mounts() -> bool:
    """True if a process may have mounts of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return not subprocess.run(command, check=False, capture_output=True).returncode


@pytest.fixture(scope="module")
def story(swept, trained, tiny_catalog, tmp_path_factory) -> dict[str, Any]:
    """What `killed_tag` did, by kind of output."""
    root = tmp_path_factory.mktemp("killed")
    pictures = root / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for i, file in enumerate(tiny_catalog.test.files[:7]):
        shutil.copy(file, pictures / ("deep" if i > 4 else "") / f"{i}{file.suffix}")
    (pictures / "3bad.png").write_bytes(b"no picture")
    names = sorted(file.name for file in pictures.iterdir() if file.is_file())
    (pictures / f"{names[0]}.xmp").write_text(DARKTABLE)
    (pictures / names[1]).with_suffix(".xmp").write_text(ADOBE)
    asked = {
        "root": str(root),
        "pictures": str(pictures),
        "ensemble": str(trained.run.store.ensemble("k").root),
        "seed": SEED,
        "kills": KILLS,
        "disks": mounts(),
    }
    command = [sys.executable, killed_tag.__file__, json.dumps(asked)]
    if asked["disks"]:
        command = ["unshare", "-rm", *command]
    environment = {"PYTHONPATH": str(Path(killed_tag.__file__).parents[1]), "NO_ALBUMENTATIONS_UPDATE": "1"}
    found = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return told


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def after(place: dict[str, Any], call: int) -> dict[str, bytes]:
    """What lay there after a command."""
    number = range(len(place["calls"]))[call]
    return contents(Path(place["root"]) / str(number))


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_moment_it_ends_with_the_bytes_of_a_quiet_one(story, kind):
    of_quiet = after(story[kind]["quiet"], -1)
    assert not any(TEMPORARY.fullmatch(Path(name).name) for name in of_quiet)
    for place in story[kind]["stopped"]:
        assert after(place, -1) == of_quiet, place["calls"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_was_killed_and_interrupted_and_says_one_line(story, kind):
    calls = [call for place in story[kind]["stopped"] for call in place["calls"][1:]]
    codes = [call["code"] for call in calls]
    assert KILLED in codes
    assert INTERRUPTED in codes
    for call in calls:
        if call["code"] == KILLED:
            assert call["printed"] == ""
        if call["code"] == INTERRUPTED:
            assert call["printed"].splitlines()[-1] == "interrupted: the same command continues", call
        assert "Traceback" not in call["printed"]


@pytest.mark.parametrize("kind", TABLES)
def test_at_each_kill_the_table_is_the_old_one_or_the_new_one(story, kind):
    name = f"tags{kind}"
    for place in story[kind]["stopped"]:
        for number in range(len(place["calls"])):
            found = after(place, number)[name]
            assert found in (after(place, 0)[name], after(place, -1)[name])


def test_at_each_kill_every_sidecar_is_whole_and_has_what_it_had(story):
    for place in story["xmp"]["stopped"]:
        for number in range(len(place["calls"])):
            for name, data in after(place, number).items():
                if name.endswith(".xmp"):
                    ElementTree.fromstring(data)
            texts = b"".join(after(place, number).values())
            assert b"holiday" in texts
            assert b"museum" in texts


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_kept_before_the_kill_is_not_tagged_again(story, kind):
    for place in story[kind]["stopped"]:
        kept = kept_in(after(place, -2), kind)
        assert re.search(rf"\b{kept} (pictures )?were tagged before", place["calls"][-1]["printed"]), place


def kept_in(found: dict[str, bytes], kind: str) -> int:
    """How many pictures have tags."""
    if kind == "xmp":
        return sum(b"TaggedBy" in data for name, data in found.items() if name.endswith(".xmp"))
    partial = found.get(f"tags{kind}.partial", b"").split(b"\n")[1:-1]
    kept = {row["path"] for line in partial for row in json.loads(line)["rows"]}
    return len(kept | rows_of(found, kind))


def rows_of(found: dict[str, bytes], kind: str) -> set[str]:
    if kind == ".parquet":
        return set(pd.read_parquet(io.BytesIO(found["tags.parquet"])).path)
    lines = found[f"tags{kind}"].decode().splitlines()
    if kind == ".csv":
        return {line.partition(",")[0] for line in lines[1:]}
    return {json.loads(line)["path"] for line in lines}


@needs_exiftool
def test_exiftool_reads_all_sidecars_in_the_end(story):
    place = story["xmp"]["stopped"][0]
    folder = Path(place["root"]) / str(len(place["calls"]) - 1)
    found = [exiftool(path) for path in sorted(folder.rglob("*.xmp"))]
    assert len(found) == 7
    assert all("XMP-dc:Subject" in one for one in found)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_full_disk_it_says_one_line_and_goes_on_when_there_is_room(story, kind):
    if story[kind]["full"] is None:
        pytest.skip("no disk can be mounted here")
    last = story[kind]["full"][-1]
    whole = after(last, -1)
    assert last["calls"][0]["printed"].startswith("7 pictures tagged")
    assert len(story[kind]["full"]) > 3
    for place in story[kind]["full"][:-1]:
        disk_full, again = place["calls"]
        assert disk_full["code"] == 1
        assert re.fullmatch(
            r"error: disk full while writing \S+: free some space, [^\n]+\n", disk_full["printed"]
        )
        assert not any(name.endswith(".tmp") for name in after(place, 0))
        assert again["code"] == 1  # of the picture that is none
        assert after(place, -1) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_can_be_written_it_says_so_in_one_line(story, kind):
    place = story[kind]["read-only"]
    if place is None:
        pytest.skip("no disk can be mounted here")
    assert place["calls"][0]["code"] == 1
    said = "pictures cannot be written: choose" if kind == "xmp" else "Read-only file system"
    assert re.fullmatch(rf"error: [^\n]*{said}[^\n]*\n", place["calls"][0]["printed"])


@pytest.mark.parametrize("kind", KINDS)
def test_two_at_the_same_time_end_with_the_bytes_of_one(story, kind):
    place = story[kind]["twice"]
    for call in place["calls"][1:3]:
        refused = "another process tags into tags" in call["printed"]
        assert (
            refused
            or call["printed"].count("could not be tagged:\n  pictures/3bad.png: not a picture\n") == 1
        )
    assert after(place, -1) == after(story[kind]["quiet"], -1)
