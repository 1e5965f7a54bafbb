"""What files hold: a digest of each, read once, and again whenever its bytes may be others."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imet_ray.data import contents as module
from imet_ray.data.check import check_data
from imet_ray.data.contents import contents
from imet_ray.data.formats import read_catalog
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.run_directory import Cache


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are read. Files that were just written are remembered, too."""
    names: list[str] = []

    def _read(path: Path) -> str:
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(module, "file_digest", _read)
    monkeypatch.setattr(module, "TICK_NS", 0)
    return names


@pytest.fixture
def files(tmp_path) -> list[Path]:
    found = [tmp_path / "train" / f"{i}.png" for i in range(3)]
    for file in found:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(file.name.encode() * 9)
    return found


def truth(files: list[Path]) -> dict[Path, str]:
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def other(file: Path) -> bytes:
    return bytes(byte ^ 1 for byte in file.read_bytes())


def in_place(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(other(file))


def in_place_with_its_mtime(file: Path) -> None:
    before = file.stat()
    in_place(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_another_file_with_its_mtime(file: Path) -> None:
    before, new = file.stat(), file.with_suffix(".new")
    new.write_bytes(other(file))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(file)


def by_a_link(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(other(file))
    file.unlink()
    file.symlink_to(new)


def test_a_file_that_stays_is_read_once(files, read, tmp_path):
    index = tmp_path / "index.json"
    assert contents(files, index) == contents(files, index) == truth(files)
    assert sorted(read) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    "change", [in_place, in_place_with_its_mtime, by_another_file_with_its_mtime, by_a_link]
)
def test_other_bytes_of_the_same_size_are_seen(files, read, tmp_path, change: Callable[[Path], None]):
    contents(files, tmp_path / "index.json")
    read.clear()
    change(files[1])
    assert contents(files, tmp_path / "index.json") == truth(files)
    assert read == ["1.png"]


def test_a_file_that_changed_within_a_tick_of_the_clock_is_read_again(files, tmp_path):
    index = tmp_path / "index.json"
    contents(files, index)
    assert not index.exists()  # its next change might give it the same times


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"FILE": []}', '{"FILE": null}', '{"FILE": "x"}'])
def test_an_index_that_is_damaged_is_made_again(files, read, tmp_path, text):
    index = tmp_path / "index.json"
    index.write_text(text.replace("FILE", str(files[0])))
    assert contents(files, index) == truth(files)
    read.clear()
    assert contents(files, index) == truth(files)
    assert read == []


def test_an_index_that_cannot_be_written_stops_nothing(files, read, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert contents(files, tmp_path / "file" / "index.json") == truth(files)
    assert "will be read again" in caplog.text


def test_what_was_read_before_an_interruption_is_remembered(files, read, tmp_path, monkeypatch):
    def interrupted(path: Path) -> str:
        if path.name == "2.png":
            raise KeyboardInterrupt
        return file_digest(path)

    monkeypatch.setattr(module, "file_digest", interrupted)
    monkeypatch.setattr(module, "CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        contents(files, tmp_path / "index.json")
    assert {Path(path).name for path in json.loads((tmp_path / "index.json").read_text())} == {
        "0.png",
        "1.png",
    }


def test_an_index_keeps_what_is_there_and_forgets_what_is_not(files, read, tmp_path):
    index = tmp_path / "index.json"
    contents(files, index)
    files[0].unlink()
    in_place(files[2])
    contents([files[2]], index)
    assert {Path(path).name for path in json.loads(index.read_text())} == {"1.png", "2.png"}


def test_of_many_indexes_the_newest_stay_and_nothing_else_goes(files, read, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    cache = Cache(tmp_path / "cache")
    (tmp_path / "cache/contents").mkdir(parents=True)
    (tmp_path / "cache/contents/notes.json").touch()
    indexes = [cache.contents(tmp_path / str(i)) for i in range(4)]
    for i, index in enumerate(indexes):
        contents(files, index)
        os.utime(index, (i, i))
    assert set((tmp_path / "cache/contents").iterdir()) == {
        *indexes[2:],
        tmp_path / "cache/contents/notes.json",
    }


def test_readers_that_share_an_index_at_one_time_each_find_what_is_right(files, read, tmp_path):
    index = tmp_path / "index.json"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: contents(files[i % 2 :], index), range(40)))
    assert found == [truth(files), truth(files[1:])] * 20
    assert json.loads(index.read_text()).keys() <= {str(file) for file in files}
    read.clear()
    assert contents(files[1:], index) == truth(files[1:])
    assert read == []


def test_what_cannot_be_read_is_left_out(files, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    missing = tmp_path / "missing.png"
    assert contents([*files, missing, tmp_path / "pipe.png", tmp_path]) == truth(files)


def test_a_name_that_is_no_utf8_is_remembered(files, read, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    shutil.copy(files[0], odd)
    index = tmp_path / "index.json"
    contents([odd], index)
    read.clear()
    assert contents([odd], index) == truth([odd])
    assert read == []


def test_a_directory_is_read_once_however_its_path_is_typed(tiny_root, read, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    monkeypatch.chdir(tiny_root.parent)
    (tmp_path / "link").symlink_to(tiny_root)
    first = check_data(Path(tiny_root.name), workers=1, cache=cache).catalog
    read.clear()
    for root in (tiny_root, tmp_path / "link", tiny_root / ".." / tiny_root.name):
        assert read_catalog(root, cache).train == first.train
    assert read == []
