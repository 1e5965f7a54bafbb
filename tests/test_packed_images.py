"""The pack: what is in it, and that a part of one is never taken for a whole one."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import imet_ray.data.packed_images
from imet_ray.data.images import read_rgb
from imet_ray.data.packed_images import Pack, build_pack
from imet_ray.errors import DataError, StoreError

SIZES = [(40, 60), (64, 48), (16, 16), (33, 100), (90, 31), (24, 25)]  # height, width
SHORT_SIDE = 24

# Builds the pack of a folder, so slowly that a test can do something meanwhile.
BUILDER = """
import sys, time
from pathlib import Path
import imet_ray.data.packed_images as pack
root, pause = Path(sys.argv[1]), float(sys.argv[2])
files = sorted((root / "images").iterdir())
read = pack.read_picture
def slow(path, *, short_side):
    with (root / "decoded").open("a") as file:
        file.write(path.name + "\\n")
    time.sleep(pause)
    return read(path, short_side=short_side)
pack.read_picture = slow
pack.build_pack(files, [f.stem for f in files], short_side=24, path=root / "pack", workers=1)
"""


def draw(root: Path, sizes: list[tuple[int, int]] = SIZES) -> list[Path]:
    """PNG files of random pixels."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(exist_ok=True)
    files = [root / "images" / f"image{i}.png" for i in range(len(sizes))]
    for file, (height, width) in zip(files, sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file)
    return files


def build(root: Path, files: list[Path], *, short_side: int = SHORT_SIDE) -> Pack:
    ids = [file.stem for file in files]
    return build_pack(files, ids, short_side=short_side, path=root / "pack", workers=2)


def start_builder(root: Path, pause: float) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", BUILDER, str(root), str(pause)]
    repository = Path(imet_ray.data.packed_images.__file__).parents[2]
    return subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE)


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(2000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen in 20 s")


def decoded(root: Path) -> list[str]:
    """Names of the files that slow builders have decoded."""
    return (root / "decoded").read_text().split() if (root / "decoded").exists() else []


def test_each_picture_is_what_decoding_its_file_gives(tmp_path: Path) -> None:
    files = draw(tmp_path)
    pack = build(tmp_path, files)
    assert len(pack) == len(files)
    assert pack.ids == tuple(file.stem for file in files)
    for i, file in enumerate(files):
        assert np.array_equal(pack[i], read_rgb(file, short_side=SHORT_SIDE))
        assert pack.shapes[i].min() == min(*SIZES[i], SHORT_SIDE)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    short_side=st.integers(1, 64),
    suffix=st.sampled_from(["png", "jpg"]),
)
def test_sizes_foretold_from_headers_are_those_of_the_pixels(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], short_side: int, suffix: str
) -> None:
    root = tmp_path_factory.mktemp("sizes")
    file = root / f"image.{suffix}"
    Image.new("RGB", (size[1], size[0]), (9, 99, 199)).save(file)
    pack = build_pack([file], ["image"], short_side=short_side, path=root / "pack", workers=1)
    assert pack[0].shape == read_rgb(file, short_side=short_side).shape


def test_pictures_are_read_only_and_not_copied(tmp_path: Path) -> None:
    pack = build(tmp_path, draw(tmp_path))
    assert not pack[1].flags.writeable
    assert np.shares_memory(pack[1], pack[1])
    with pytest.raises(IndexError):
        pack[len(SIZES)]


def test_a_pickled_pack_is_a_path(tmp_path: Path) -> None:
    pack = build(tmp_path, draw(tmp_path))
    data = pickle.dumps(pack)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.ids == pack.ids
    assert all(np.array_equal(again[i], pack[i]) for i in range(len(pack)))


def test_a_whole_pack_is_not_built_again(tmp_path: Path) -> None:
    files = draw(tmp_path)
    build(tmp_path, files)
    for file in files:
        file.unlink()
    assert len(build(tmp_path, files)) == len(files)


def test_a_pack_of_other_pictures_or_another_size_is_built_again(tmp_path: Path) -> None:
    files = draw(tmp_path)
    build(tmp_path, files)
    assert build(tmp_path, files[:2]).ids == ("image0", "image1")
    assert build(tmp_path, files[:2], short_side=8).shapes.min() == 8


def test_a_split_without_pictures_has_an_empty_pack(tmp_path: Path) -> None:
    assert len(build(tmp_path, [])) == 0


def cut(data: bytes) -> bytes:
    return data[:-1]


def cut_in_the_pixels(data: bytes) -> bytes:
    return data[: len(data) // 2]


def lose_the_middle(data: bytes) -> bytes:
    return data[:1000] + data[2000:]


def alter_the_index(data: bytes) -> bytes:
    return data.replace(b'"image3"', b'"image9"')


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("harm", [cut, cut_in_the_pixels, lose_the_middle, alter_the_index, empty])
def test_a_harmed_pack_is_refused_and_built_again(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    files = draw(tmp_path)
    build(tmp_path, files)
    path = tmp_path / "pack"
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    with pytest.raises(StoreError, match="is damaged"):
        Pack.open(path)
    build(tmp_path, files)
    assert path.read_bytes() == whole


def test_a_builder_killed_in_the_middle_leaves_nothing_that_is_taken_for_a_pack(
    tmp_path: Path,
) -> None:
    files = draw(tmp_path)
    process = start_builder(tmp_path, 0.3)
    wait_for(lambda: len(decoded(tmp_path)) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "pack").exists()
    assert list(tmp_path.glob(".pack.*.tmp"))
    pack = build(tmp_path, files)  # the dead one's lock is no obstacle
    assert np.array_equal(pack[5], read_rgb(files[5], short_side=SHORT_SIDE))
    assert not list(tmp_path.glob(".pack.*.tmp"))  # nor is its disk space lost


def test_two_builders_of_one_pack_decode_it_once(tmp_path: Path) -> None:
    files = draw(tmp_path)
    first, second = start_builder(tmp_path, 0.2), start_builder(tmp_path, 0.2)
    said = first.communicate()[1] + second.communicate()[1]
    assert said.startswith(b"waiting for another process")
    assert first.returncode == second.returncode == 0
    assert sorted(decoded(tmp_path)) == sorted(file.name for file in files)
    assert Pack.open(tmp_path / "pack").ids == tuple(file.stem for file in files)


def test_without_locks_a_pack_is_built_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("imet_ray.storage.locks.fcntl.lockf", refused)
    files = draw(tmp_path)
    assert build(tmp_path, files).ids == tuple(file.stem for file in files)


def test_all_files_that_cannot_be_decoded_are_in_one_report(tmp_path: Path) -> None:
    files = draw(tmp_path, [(40, 40)] * 40)
    for i in (3, 30):
        files[i].write_bytes(b"not a picture")
    files[17].unlink()
    with pytest.raises(DataError, match="3 of 40 images") as caught:
        build(tmp_path, files)
    assert all(f"image{i}.png" in str(caught.value) for i in (3, 17, 30))
    assert not list(tmp_path.glob("*pack*tmp"))


def test_files_whose_pixels_end_early_are_all_in_one_report(tmp_path: Path) -> None:
    files = draw(tmp_path)
    for i in (1, 4):  # whole headers, so only decoding finds out
        files[i].write_bytes(files[i].read_bytes()[:200])
    with pytest.raises(DataError, match="2 of 6 images") as caught:
        build(tmp_path, files)
    assert all(f"image{i}.png" in str(caught.value) for i in (1, 4))
    assert not (tmp_path / "pack").exists()


def test_a_picture_of_another_size_than_its_header_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = draw(tmp_path)
    monkeypatch.setattr(imet_ray.data.packed_images, "image_size", lambda path: (24, 24))
    with pytest.raises(DataError, match=r"image3\.png: its header says \(24, 24, 3\)"):
        build(tmp_path, files)


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = draw(tmp_path)
    usage = imet_ray.data.packed_images.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        imet_ray.data.packed_images.shutil, "disk_usage", lambda path: usage._replace(free=10_000)
    )
    monkeypatch.setattr(imet_ray.data.packed_images, "_decode", None)
    with pytest.raises(StoreError, match=r"needs 0 MB and 0 MB are free") as caught:
        build(tmp_path, files)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*pack*tmp"))


def test_a_quota_that_is_too_small_is_one_line_before_anything_is_decoded(
    tmp_path: Path,
) -> None:
    draw(tmp_path)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
    command = [sys.executable, "-c", limited + BUILDER, str(tmp_path), "0"]
    repository = Path(imet_ray.data.packed_images.__file__).parents[2]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert "StoreError: " in done.stderr.splitlines()[-1]
    assert not decoded(tmp_path)


def test_pictures_that_are_cut_off_a_little_are_packed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = draw(tmp_path)
    files[3].write_bytes(files[3].read_bytes()[:-500])
    build(tmp_path, files)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("1 of 6 pictures lack some pixels at their end: image3.png (")
