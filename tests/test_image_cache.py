"""The decoded test pictures of a kernel."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from imet_ray.data.packed_images import build_pack
from imet_ray.data.views import VIEWS, apply_view
from kernel_builder.runtime.image_cache import ImageCache
from kernel_builder.runtime.inputs import TestPictures


def test_a_folder_that_cannot_be_removed_does_not_drop_what_was_decoded(tmp_path, monkeypatch, caplog):
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.png")
    cache = ImageCache(TestPictures(("a",), (tmp_path / "a.png",)), tmp_path / "scratch", 1)

    def busy(*args, **kwargs):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "rmdir", busy)
    pictures = cache.get(4, keep={4})
    assert caplog.messages == []
    assert np.array_equal(pictures[0], np.full((4, 8, 3), (255, 0, 0)))


def test_a_place_for_decoded_pictures_that_cannot_be_made_is_said_in_words(tmp_path, caplog):
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    (tmp_path / "scratch").write_text("a file")
    ImageCache(TestPictures(("a",), (picture,)), tmp_path / "scratch", 1).get(8, keep=())
    (said,) = caplog.messages
    assert said == f"cannot write {tmp_path / 'scratch'}: File exists; decoding for each checkpoint instead"


@pytest.mark.parametrize("packed", [True, False])
def test_a_kernel_sees_each_view_as_the_run_did(tmp_path, monkeypatch, packed):
    rng = np.random.default_rng(0)
    shapes = {"small": (20, 31), "long": (90, 400), "tall": (300, 70), "square": (80, 80)}
    files = [tmp_path / f"{name}.png" for name in shapes]
    for file, shape in zip(files, shapes.values(), strict=True):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(file)
    run = build_pack(files, list(shapes), short_side=64, path=tmp_path / "pack", workers=1)
    cache = ImageCache(TestPictures(tuple(shapes), tuple(files)), tmp_path / "scratch", 1)
    seen = cache.get(64, keep={64}) if packed else cache._decoded_each_time(64)
    for row in range(len(files)):
        for view in VIEWS:
            assert np.array_equal(apply_view(seen[row], view, 48), apply_view(run[row], view, 48))
