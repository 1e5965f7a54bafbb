"""The decoded test pictures of a kernel."""

import errno
import os

import numpy as np
from PIL import Image

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
