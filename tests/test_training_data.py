"""A split ready for training: its pack holds the pixels of the files that are there, whatever their names and sizes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imet_ray.data import packed_images
from imet_ray.data.formats import read_catalog
from imet_ray.data.images import read_picture
from imet_ray.data.training_data import SplitData, training_split
from imet_ray.data.training_data import test_split as pictures_of_test
from imet_ray.errors import DataError
from imet_ray.storage.run_directory import Cache

ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path) -> Path:
    """Four photographs on their side in each split."""
    root = tmp_path / "data"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{i}.jpg", exif=exif)
    (root / "train.csv").write_text("id,attribute_ids\n0,a\n1,b\n2,a\n3,b\n")
    return root


def turn(file: Path) -> None:
    """Correct the orientation from 6 to 1 in place; the file keeps its size."""
    data = file.read_bytes()
    tag = (
        b"\x01\x12\x00\x03\x00\x00\x00\x01\x00" if b"MM\x00*" in data else b"\x12\x01\x03\x00\x01\x00\x00\x00"
    )
    at = data.index(tag) + len(tag)
    file.write_bytes(data[:at] + data[at : at + 1].replace(b"\x06", b"\x01") + data[at + 1 :])
    assert file.stat().st_size == len(data)
    assert file.read_bytes() != data


def split_of(root: Path, cache: Cache, split: str) -> SplitData:
    return {"train": training_split, "test": pictures_of_test}[split](read_catalog(root, cache), cache)


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_that_changed_in_place_get_a_pack_of_their_own(root, tmp_path, split):
    cache = Cache(tmp_path / "cache")
    before = split_of(root, cache, split)
    assert before.pack(16).shapes.tolist() == [[24, 16]] * 4
    for file in before.files:
        turn(file)
    after = split_of(root, cache, split)
    assert after.pack(16).shapes.tolist() == [[16, 24]] * 4
    assert after.digest != before.digest


def test_pictures_that_change_while_they_are_packed_are_refused(root, tmp_path, monkeypatch):
    split = split_of(root, Cache(tmp_path / "cache"), "train")

    def read(path: Path, *, short_side: int) -> tuple[np.ndarray, float]:
        found = read_picture(path, short_side=short_side)
        if path == split.files[2]:
            turn(path)
        return found

    monkeypatch.setattr(packed_images, "read_picture", read)
    with pytest.raises(DataError, match=rf"1 of 4 pictures are others now.*the first is {split.files[2]}"):
        split.pack(16)
    assert [path.suffix for path in (tmp_path / "cache/packs").iterdir()] == [".lock"]


def test_a_node_whose_files_are_others_makes_no_pack_of_them(root, tmp_path):
    split = split_of(root, Cache(tmp_path / "driver"), "train")
    turn(split.files[0])  # as they lie on the node
    there = SplitData(**(vars(split) | {"cache": Cache(tmp_path / "node")}))
    with pytest.raises(DataError, match="or on this machine"):
        there.pack(16)
