"""Copies: which packed pictures have the same pixels, and that folds keep them together."""

import shutil

import numpy as np
import pytest
from PIL import Image

from imet_ray.commands.plan import Request, make_plan
from imet_ray.commands.setup import start
from imet_ray.data.copies import first_copies
from imet_ray.data.packed_images import build_pack
from imet_ray.data.training_data import prepare
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import runs_at

RNG = np.random.default_rng(0)
A, B = RNG.integers(0, 256, (2, 90, 70, 3), np.uint8)
ALMOST_A = A.copy()
ALMOST_A[0, 0] ^= 1  # far from the middle
PLAIN = np.zeros((90, 70, 3), np.uint8)


def packed(tmp_path, pictures, short_side=70):
    files = [tmp_path / f"{i}.{suffix}" for i, (_, suffix) in enumerate(pictures)]
    for file, (pixels, _) in zip(files, pictures, strict=True):
        Image.fromarray(pixels).save(file)
    ids = [file.name for file in files]
    return build_pack(files, ids, short_side=short_side, path=tmp_path / "pack", workers=1)


def test_the_first_copy_of_each_picture_is_found_whatever_its_format(tmp_path):
    turned = np.ascontiguousarray(PLAIN.swapaxes(0, 1))  # of the same bytes in another shape
    kinds = [
        (A, "png"),
        (B, "png"),
        (A, "bmp"),
        (ALMOST_A, "png"),
        (PLAIN, "png"),
        (turned, "png"),
        (A, "tif"),
    ]
    assert first_copies(packed(tmp_path, kinds)).tolist() == [0, 1, 0, 3, 4, 5, 0]


def test_no_pictures_have_no_copies(tmp_path):
    assert first_copies(packed(tmp_path, [])).tolist() == []


@pytest.fixture
def prepared(tiny_catalog, tmp_path):
    def prepared(name, copies, given=None):
        store, cache = RunDirectory(tmp_path / name), Cache(tmp_path / "cache")
        return prepare(tiny_catalog, store, cache, n_folds=3, seed=0, given_folds=given, find_copies=copies)

    return prepared


def test_folds_keep_copies_together_and_say_so(tiny_catalog, prepared, caplog):
    rows = np.arange(len(tiny_catalog.train.ids))
    plain = prepared("plain", lambda: rows)
    assert caplog.messages == []
    assert np.array_equal(plain.folds, prepared("without", None).folds)
    copies = np.where(rows < 6, 0, rows)
    folds = prepared("copies", lambda: copies).folds
    assert len(set(folds[:6].tolist())) == 1
    assert caplog.messages[0].startswith(f"5 of {len(rows)} pictures are copies of others and share a fold")


def test_given_folds_that_part_copies_are_taken_with_a_warning(tiny_catalog, prepared, caplog):
    rows = np.arange(len(tiny_catalog.train.ids))
    given = rows % 3
    copies = np.where(rows < 6, 0, rows)  # two of the first six lie in fold 0
    assert np.array_equal(prepared("given", lambda: copies, given).folds, given)
    assert caplog.messages[0].startswith(f"4 of {len(rows)} pictures are in another fold than a copy")


def test_folds_that_a_run_has_stay_and_no_copies_are_looked_for(prepared):
    before = prepared("run", None)
    assert np.array_equal(prepared("run", lambda: 1 / 0).folds, before.folds)


def test_fewer_different_pictures_than_folds_are_a_warning(tiny_catalog, prepared, caplog):
    rows = np.arange(len(tiny_catalog.train.ids))
    assert np.array_equal(prepared("few", lambda: rows % 2).folds, prepared("plain", None).folds)
    assert caplog.messages[0].startswith(f"only 2 of {len(rows)} pictures differ")


def test_a_new_run_keeps_byte_copies_with_other_labels_in_one_fold(tmp_path):
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    rows = ["id,attribute_ids"]
    for i in range(12):
        pixels = RNG.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"a{i}.png")
        shutil.copy(root / "train" / f"a{i}.png", root / "train" / f"b{i}.png")
        rows += [f"a{i},{i % 3}", f"b{i},{(i + 1) % 3}"]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    cache = Cache(tmp_path / "cache")
    request = Request(
        space=None,
        data=str(root),
        source=None,
        negatives=False,
        name="copies",
        runs=runs_at(str(tmp_path / "runs"), cache),
        cache=cache,
        folds="3",
        overrides={},
        fresh=False,
        extend=False,
    )
    folds = start(make_plan(request)).data.folds
    assert np.array_equal(folds[::2], folds[1::2])
    assert np.ptp(np.bincount(folds)) <= 4
