"""Folds: how evenly they fall, and what is refused in a folds file."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.data.folds import (
    count_folds,
    extend_folds,
    folds_digest,
    make_folds,
    read_folds,
    write_folds,
)
from imet_ray.errors import ConfigError, DataError, ImetError, StoreError

IDS = tuple(f"image{i}" for i in range(7))
FOLDS = np.array([0, 1, 2, 0, 1, 2, 0])


def long_tail(n: int, n_labels: int, seed: int) -> np.ndarray:
    """(n, n_labels) uint8 with about 3 labels per row, the rarest on a handful of rows."""
    rng = np.random.default_rng(seed)
    rate = 1 / np.arange(2, n_labels + 2) ** 1.3
    labels = rng.random((n, n_labels)) < np.minimum(0.6, 3 * rate / rate.sum())
    labels[rng.integers(n, size=n_labels), np.arange(n_labels)] = True
    return labels.astype(np.uint8)


def per_fold(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n_folds, C) pictures of each label in each fold."""
    return np.stack([labels[folds == fold].sum(0, dtype=int) for fold in range(folds.max() + 1)])


def unevenness(labels: np.ndarray, folds: np.ndarray) -> float:
    """Mean over labels of (most - fewest) / expected, over folds."""
    counts = per_fold(labels, folds)
    return float((np.ptp(counts, axis=0) / counts.mean(0)).mean())


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 60),
    n_labels=st.integers(1, 12),
    n_folds=st.integers(2, 6),
    density=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_every_row_has_a_fold_and_no_fold_is_empty(
    n: int, n_labels: int, n_folds: int, density: float, seed: int
) -> None:
    n_folds = min(n, n_folds)
    labels = (np.random.default_rng(seed).random((n, n_labels)) < density).astype(np.uint8)
    folds = make_folds(labels, n_folds=n_folds, seed=seed)
    assert folds.shape == (n,)
    assert folds.dtype == np.int64
    assert set(folds.tolist()) == set(range(n_folds))


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_of_nearly_one_size(seed: int) -> None:
    sizes = np.bincount(make_folds(long_tail(2000, 80, seed), n_folds=5, seed=seed))
    assert np.ptp(sizes) <= 40  # of 400; 23 at most over 40 seeds


@pytest.mark.parametrize("seed", range(4))
def test_even_rare_labels_fall_in_every_fold(seed: int) -> None:
    labels = long_tail(2000, 80, seed)
    total = labels.sum(0)
    assert total.min() < 10  # the data do have a tail
    counts = per_fold(labels, make_folds(labels, n_folds=5, seed=seed))
    assert (counts[:, total >= 5] > 0).all()
    away = np.abs(counts - total / 5).max(0)
    # Not always within one: some of a label's pictures were placed for the sake of rarer labels. Over 40 seeds
    # at least 95 % of the labels were within one, and the worst was 8 pictures off 39.
    assert (away <= 1).mean() > 0.9
    assert (away <= np.maximum(3, 0.25 * total / 5)).all()


def test_folds_are_much_more_even_than_a_random_split() -> None:
    labels = long_tail(2000, 80, 1)
    random = np.random.default_rng(0).permutation(2000) % 5
    assert unevenness(labels, make_folds(labels, n_folds=5, seed=0)) < 0.5 * unevenness(labels, random)


def test_one_seed_gives_the_same_folds_and_another_gives_others() -> None:
    labels = long_tail(300, 20, 2)
    first = make_folds(labels, n_folds=3, seed=7)
    assert np.array_equal(first, make_folds(labels, n_folds=3, seed=7))
    assert not np.array_equal(first, make_folds(labels, n_folds=3, seed=8))


def test_copies_share_a_fold_and_their_labels_count_as_one_pictures() -> None:
    labels = long_tail(300, 20, 3)
    rng = np.random.default_rng(0)
    copies = np.where(rng.random(300) < 0.2, rng.integers(0, 50, 300), np.arange(300))
    copies = np.minimum(copies, np.arange(300))
    copies = copies[copies]  # of copies of copies
    folds = make_folds(labels, n_folds=5, seed=0, copies=copies)
    assert (folds == folds[copies]).all()
    assert set(folds.tolist()) == set(range(5))
    assert np.ptp(np.bincount(folds[np.unique(copies)])) <= 15


def test_folds_without_copies_are_those_of_earlier_versions() -> None:
    labels = long_tail(300, 20, 3)
    labels[~labels.any(axis=1), 0] = 1
    folds = make_folds(labels, n_folds=5, seed=0)
    assert np.array_equal(folds, make_folds(labels, n_folds=5, seed=0, copies=np.arange(300)))
    assert folds_digest([str(i) for i in range(300)], folds)[:16] == "2183bde5f8b4c332"  # of version 0.1


@pytest.mark.parametrize(("n_folds", "message"), [(1, "at least 2"), (11, "number of images=10")])
def test_an_impossible_number_of_folds_is_refused(n_folds: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_folds(np.ones((10, 3), np.uint8), n_folds=n_folds, seed=0)


def test_a_folds_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    ids = ('a "quoted", id', *IDS[1:])
    write_folds(tmp_path / "folds.csv", ids, FOLDS)
    assert np.array_equal(read_folds(tmp_path / "folds.csv", ids), FOLDS)


def test_a_given_file_may_have_another_order_a_bom_crlf_and_more_columns(tmp_path: Path) -> None:
    lines = ["who,fold,id", *(f"me, {FOLDS[i]} ,{IDS[i]}" for i in reversed(range(7)))]
    path = tmp_path / "folds.csv"
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert np.array_equal(read_folds(path, IDS), FOLDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("image3,0\n", ""), "id 'image3' is missing"),
        (("image3,0\n", "image3,0\nother,1\n"), "row 6: id 'other' is not in the data"),
        (("image3,0", "image3,0\nimage3,1"), "row 6: id 'image3' is in row 5 already"),
        (("image3,0", "image3,0.5"), "row 5: fold of 'image3' must be .* got '0.5'"),
        (("image3,0", "image3,-1"), "row 5: fold of 'image3' must be .* got '-1'"),
        (("image3,0", "image3,"), "row 5: fold of 'image3' must be .* got ''"),
        (("image3,0", "image3"), "row 5: truncated row: 1 of 2 fields"),
        ((",2", ",7"), "no image in fold 2: number the folds 0..2"),
        (("id,fold", "id,part"), "row 1: missing column: fold; found id, part"),
    ],
)
def test_a_folds_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "folds.csv"
    write_folds(path, IDS, FOLDS)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=message):
        read_folds(path, IDS)


@pytest.mark.parametrize("content", [b"", b"id,fold\n", b"\xff\xfe\x00"])
def test_an_empty_or_binary_folds_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "folds.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"folds\.csv"):
        read_folds(tmp_path / "folds.csv", IDS)


def test_all_problems_of_a_folds_file_are_in_one_short_report(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("id,fold\n" + "".join(f"stranger{i},0\n" for i in range(1000)))
    with pytest.raises(DataError) as caught:
        read_folds(path, IDS)
    assert "row 2: id 'stranger0'" in str(caught.value)
    assert "and 987 more" in str(caught.value)
    assert str(caught.value).count("\n") == 21


@pytest.mark.parametrize(
    "text", ["fold,id\n{f},{i}\n", "id,fold,weight\n{i},{f},9\n", '"id","fold"\n"{i}","{f}"\n']
)
def test_folds_are_counted_whatever_the_columns(tmp_path: Path, text: str) -> None:
    header, row = text.splitlines()
    lines = [header, *(row.format(i=f"p{i}", f=i % 4) for i in range(8))]
    (tmp_path / "folds.csv").write_text("\n".join(lines) + "\n")
    assert count_folds(tmp_path / "folds.csv") == 4


def test_the_digest_tells_other_folds_and_other_ids() -> None:
    swapped = FOLDS[::-1].copy()
    swapped[:2] = [1, 0]
    digests = {
        folds_digest(IDS, FOLDS),
        folds_digest(IDS, swapped),
        folds_digest((*IDS[:-1], "other"), FOLDS),
    }
    assert len(digests) == 3
    assert folds_digest(list(IDS), FOLDS.astype(np.int32)) in digests


@pytest.mark.parametrize("seed", range(4))
def test_new_pictures_are_spread_like_old_ones_which_keep_their_folds(seed: int) -> None:
    labels = long_tail(2000, 80, seed)
    before = make_folds(labels[:1500], n_folds=5, seed=seed)
    folds = extend_folds(np.concatenate([before, np.full(500, -1)]), labels, np.arange(2000))
    assert np.array_equal(folds[:1500], before)
    assert set(folds.tolist()) == set(range(5))
    assert unevenness(labels, folds) < 1.25 * unevenness(labels, make_folds(labels, n_folds=5, seed=seed))


def test_a_new_copy_of_a_picture_joins_its_fold() -> None:
    labels = np.array([[1], [1], [1], [1], [0], [0]], np.uint8)
    folds = extend_folds(np.array([0, 1, -1, -1, -1, -1]), labels, np.array([0, 1, 1, 1, 4, 4]))
    assert folds[:4].tolist() == [0, 1, 1, 1]
    assert folds[4] == folds[5] == 0  # the smaller one


def test_a_folds_file_that_is_extended_may_lack_ids_and_have_others(tmp_path: Path) -> None:
    write_folds(tmp_path / "folds.csv", IDS, FOLDS)
    ids = [*IDS[2:], "new"]
    assert read_folds(tmp_path / "folds.csv", ids, extend=True).tolist() == [*FOLDS[2:], -1]
    with pytest.raises(DataError, match="no image in fold 1"):
        read_folds(tmp_path / "folds.csv", [IDS[0], IDS[2]], extend=True)


def test_pictures_without_labels_are_spread_evenly():
    rng = np.random.default_rng(0)
    labels = (rng.random((600, 12)) < 0.08).astype(np.uint8)
    without = ~labels.any(axis=1)
    folds = make_folds(labels, n_folds=5, seed=0)
    assert np.ptp(np.bincount(folds[without], minlength=5)) <= 2
    assert np.ptp(np.bincount(folds)) <= 12  # of 120


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint64, np.dtype(">i4")])
@pytest.mark.parametrize("suffix", ["npy", "NPY"])
def test_an_array_of_folds_is_read_in_the_order_of_the_pictures(tmp_path: Path, dtype, suffix: str) -> None:
    path = tmp_path / f"folds.{suffix}"
    with path.open("wb") as file:
        np.save(file, FOLDS.astype(dtype))
    assert read_folds(path, IDS).tolist() == FOLDS.tolist()
    assert read_folds(path, IDS).dtype == np.int64
    assert count_folds(path) == 3
    write_folds(tmp_path / "folds.csv", IDS, FOLDS)
    assert folds_digest(IDS, read_folds(path, IDS)) == folds_digest(
        IDS, read_folds(tmp_path / "folds.csv", IDS)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (FOLDS[:6], r"a fold for each of the 7 rows of train.csv, in their order, got an array of \(6,\)"),
        (FOLDS[:, None], r"got an array of \(7, 1\)"),
        (np.array(3), r"got an array of \(\)"),
        (np.zeros(0, int), r"got an array of \(0,\)"),
        (FOLDS - 1, r"whole numbers of at least 0, got int64, \[-1, 0, 1"),
        (FOLDS.astype(float), r"whole numbers of at least 0, got float64"),
        (FOLDS * np.nan, r"whole numbers of at least 0, got float64, \[nan"),
        (FOLDS > 0, "got bool"),
        (FOLDS.astype(str), "got <U"),
        (np.full(7, 2**64 - 1, np.uint64), "whole numbers of at least 0, got uint64"),
        (FOLDS * 2, r"no image in fold 1: number the folds 0\.\.2"),
        (FOLDS * 0, "at least 2 folds, got 1"),
    ],
)
def test_an_array_that_is_no_folds_of_these_pictures_is_one_line(tmp_path: Path, values, expected) -> None:
    np.save(tmp_path / "folds.npy", values)
    with pytest.raises(DataError, match=expected) as caught:
        read_folds(tmp_path / "folds.npy", IDS)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return self.mark.touch, ()


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x03\x00"])
)
def test_garbage_instead_of_an_array_is_one_line(data: bytes, head: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folds.npy"
        path.write_bytes(head + data)
        for read in (lambda: read_folds(path, IDS), lambda: count_folds(path)):
            with pytest.raises(ImetError) as caught:
                read()
            assert len(str(caught.value).splitlines()) == 1


def test_an_array_that_is_missing_cut_off_or_of_objects_is_refused_and_nothing_is_unpickled(
    tmp_path: Path,
) -> None:
    path, mark = tmp_path / "folds.npy", tmp_path / "mark"
    with pytest.raises(StoreError, match="folds.npy cannot be read"):
        read_folds(path, IDS)
    np.save(path, FOLDS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match="is damaged"):
        read_folds(path, IDS)
    np.save(path, np.array([Trap(mark)] * 7, dtype=object))
    with pytest.raises(StoreError, match="is damaged"):
        read_folds(path, IDS)
    assert not mark.exists()
