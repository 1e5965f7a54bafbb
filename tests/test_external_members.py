"""Other tools' predictions: brought into order, or refused in a line that says what to do."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imet_ray.blending.external_members import parse_member, read_member
from imet_ray.errors import ConfigError, DataError, ImetError, StoreError

IDS = ("b", "a", "d", "c")
PROBS = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], dtype=np.float32)


@pytest.fixture
def save(tmp_path):
    def _save(**changed) -> Path:
        arrays = {"ids": np.array(IDS), "probs": PROBS} | changed
        path = tmp_path / "mine.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return _save


def refusal(path: Path, kind: type[ImetError] = DataError, n_labels: int = 2) -> str:
    """The one line, which names the member, the file and the way out."""
    with pytest.raises(kind) as caught:
        read_member("mine", path, IDS, n_labels)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"member mine ({path}) ")
    return text


def test_rows_are_brought_into_the_order_of_train_csv(save):
    order = [2, 0, 3, 1]
    member = read_member("mine", save(ids=np.array(IDS)[order], probs=PROBS[order]), IDS, 2)
    assert np.array_equal(member.probs, PROBS)
    assert tuple(member.ids) == IDS


def test_rows_in_order_already_stay_as_they_are(save):
    assert np.array_equal(read_member("mine", save(), IDS, 2).probs, PROBS)


@pytest.mark.parametrize(("saved", "read"), [("f2", "f2"), ("f4", "f4"), ("f8", "f4"), (">f4", "f4")])
def test_numbers_are_float16_or_float32_of_this_machine(save, saved, read):
    probs = read_member("mine", save(probs=PROBS.astype(saved)), IDS, 2).probs
    assert probs.dtype == np.dtype(read)
    assert np.allclose(probs, PROBS, atol=1e-3)


@pytest.mark.parametrize("number", [1e300, np.nan, np.inf, -3.0, 1.5])
def test_numbers_that_are_no_probabilities_are_refused_out_of_fold_and_of_the_test_set(save, number):
    probs = PROBS.astype(np.float64)
    probs[1, 1] = number
    path = save(probs=probs)
    for whose in ("train.csv", "the test set"):
        with pytest.raises(
            DataError, match=r"member mine has (NaN or infinite|probabilities outside 0\.\.1)"
        ):
            read_member("mine", path, IDS, 2, whose=whose)


def test_ids_of_another_table_are_told_by_the_table_that_is_needed(save):
    with pytest.raises(DataError, match="1 ids that the test set lacks.*spell ids as the test set does"):
        read_member("mine", save(ids=np.array(["b", "a", "e", "c"])), IDS, 2, whose="the test set")


def test_what_is_known_of_a_member_comes_with_it(save):
    member = read_member("mine", save(folds_digest="abc", seconds=0.25, size=1000), IDS, 2)
    assert (member.folds_digest, member.seconds, member.size) == ("abc", 0.25, 1000)
    assert member.margins is False


def test_what_is_not_known_of_a_member_is_none(save):
    member = read_member("mine", save(), IDS, 2)
    assert (member.folds_digest, member.seconds, member.size) == (None, None, None)


def test_a_missing_picture_is_named(save):
    assert "lacks 1 of 4 pictures, the first is 'd'" in refusal(
        save(ids=np.array(["b", "a", "c"]), probs=PROBS[:3])
    )


def test_a_picture_that_comes_twice_is_named_with_its_rows(save):
    assert "has 'a' twice, in rows 1 and 3" in refusal(save(ids=np.array(["b", "a", "d", "a"])))


def test_an_unknown_picture_is_named(save):
    assert "has 1 ids that train.csv lacks, the first is 'd.png'" in refusal(
        save(ids=np.array(["b", "a", "d.png", "c"]))
    )


def test_another_number_of_labels_is_refused(save):
    assert "has 2 columns, but there are 3 labels" in refusal(save(), n_labels=3)


def test_ids_and_rows_must_be_as_many(save):
    assert "has 4 ids for 3 rows" in refusal(save(probs=PROBS[:3]))


@pytest.mark.parametrize("absent", ["ids", "probs"])
def test_a_missing_array_is_named(save, absent):
    assert f"lacks {absent}: write it with np.savez" in refusal(save(**{absent: None}))


@pytest.mark.parametrize("ids", [np.arange(4), np.array([IDS]), np.array([b"b", b"a", b"d", b"c"])])
def test_ids_that_are_no_list_of_strings_are_refused(save, ids):
    assert "must have ids (n,) str" in refusal(save(ids=ids))


@pytest.mark.parametrize("probs", [PROBS[:, 0], (PROBS > 0.5).astype(np.uint8), PROBS.astype(complex)])
def test_probs_that_are_no_table_of_floats_are_refused(save, probs):
    assert "must have probs (n, C) float16, float32 or float64" in refusal(save(probs=probs))


@pytest.mark.parametrize(
    "changed",
    [
        {"seconds": -1.0},
        {"seconds": np.nan},
        {"seconds": "1"},
        {"size": 1.5},
        {"size": [1, 2]},
        {"folds_digest": 7},
    ],
)
def test_a_remark_that_cannot_be_meant_is_refused_by_name(save, changed):
    assert next(iter(changed)) in refusal(save(**changed))


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickled_ids_are_refused_and_never_run(save, tmp_path):
    ids = np.array([*IDS[:3], Trap(tmp_path / "mark")], dtype=object)
    text = refusal(save(ids=ids), StoreError)
    assert "pickled" in text
    assert "ids=np.array(IDS, dtype=str)" in text
    assert not (tmp_path / "mark").exists()


def test_a_pickle_is_refused_and_never_run(tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    assert "is no .npz file" in refusal(path, StoreError)
    assert not (tmp_path / "mark").exists()


def test_an_npy_file_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", PROBS)
    assert "is no .npz file" in refusal(tmp_path / "mine.npy", StoreError)


def test_a_truncated_file_is_refused(save):
    path = save()
    path.write_bytes(path.read_bytes()[:-30])
    assert "only a part of one" in refusal(path, StoreError)


def test_a_damaged_file_is_refused(save):
    path = save()
    data = bytearray(path.read_bytes())
    place = data.index(PROBS.tobytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    assert "is damaged" in refusal(path, StoreError)


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ids", "b a d c")
        file.writestr("probs.csv", "0.5")
    assert "lacks ids and probs" in refusal(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "absent.npz", StoreError)


def test_a_directory_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path, StoreError)


def test_the_command_line_names_a_member_and_its_file():
    assert parse_member("2b.lgbm+tta=out/a=b.npz") == ("2b.lgbm+tta", Path("out/a=b.npz"))


def test_the_home_directory_is_found_where_the_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_member("2b=~/oof.npz") == ("2b", tmp_path / "oof.npz")


@pytest.mark.parametrize(
    "text", ["", "mine", "mine=", "=a.npz", ".a=a.npz", "a b=a.npz", "a\n=a.npz", "ä=a.npz"]
)
def test_a_member_that_is_not_name_and_file_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_member(text)
    assert "\n" not in str(caught.value)
