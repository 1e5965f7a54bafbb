"""Level-1 files of 2019: assembled in train.csv's order, or refused by name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from folder2019 import FOLDS, LABELS, MODEL, Folder, N, margins

from imet_ray.blending.imet2019_files import read_weights_2019, write_2019
from imet_ray.blending.members import check_members
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.storage.run_directory import RunDirectory


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_folds_are_assembled_in_the_order_of_train_csv(folder):
    found = folder.read(folder.add())
    assert np.array_equal(found.members[0].probs, margins())
    assert found.members[0].ids == ("p0", "p1", "p2", "p3", "p4", "p5")
    assert found.folds.tolist() == FOLDS.tolist()
    assert found.folds.dtype == np.int64


def test_members_are_margins_named_as_the_model(folder):
    found = folder.read(folder.add(), folder.add("v6.0.3_f2_mix.up", margins(1)))
    assert [member.name for member in found.members] == [MODEL, "v6.0.3_f2_mix.up"]
    assert all(member.margins for member in found.members)
    check_members(found.members, found.labels, found.folds)


def test_any_fold_may_be_named_and_all_files_are_known_by_fold(folder):
    folder.add()
    assert folder.read(folder.file(2)).files == ((folder.file(0), folder.file(1), folder.file(2)),)


def test_a_relative_name_finds_the_files_beside_it(folder, monkeypatch):
    file = folder.add()
    monkeypatch.chdir(folder.root)
    assert folder.read(Path(file.name)).files[0][1] == Path(folder.file(1).name)


def test_models_may_lie_in_different_directories(folder, tmp_path):
    other = tmp_path / "level1_train_old_f9_e9_0.5.npy"  # a directory of such a name confuses nothing
    other.mkdir()
    second = Folder(other).add("4f", margins(1))
    found = folder.read(folder.add(), second)
    assert np.array_equal(found.members[1].probs, margins(1))


def test_a_model_whose_name_begins_like_anothers_is_another(folder):
    folder.add(f"{MODEL}_f1_tta", margins(1))
    assert np.array_equal(folder.read(folder.add()).members[0].probs, margins())


@pytest.mark.parametrize(("saved", "read"), [("f2", "f2"), ("f4", "f4"), ("f8", "f4"), (">f4", "f4")])
def test_numbers_are_float16_or_float32_of_this_machine(folder, saved, read):
    probs = folder.read(folder.add(values=margins().astype(saved))).members[0].probs
    assert probs.dtype == np.dtype(read)
    assert np.allclose(probs, margins(), atol=1e-3)


def test_labels_are_the_columns_of_their_numbers(folder):
    found = folder.read(folder.add())
    assert found.label_ids == ("0", "1", "2", "3")
    assert [np.flatnonzero(row).tolist() for row in found.labels] == [[0, 2], [1], [3], [0], [2], [1, 3]]
    assert found.labels.dtype == np.uint8


def test_labels_are_read_with_a_byte_order_mark_and_crlf(folder):
    folder.write_labels(LABELS, start="\ufeffid,attribute_ids\r\n", end="\r\n")
    assert folder.read(folder.add()).members[0].ids[0] == "p0"


@pytest.mark.parametrize("label", ["4", "-1", "x", "1.0", "²", "9" * 5000])
def test_an_attribute_that_is_no_column_is_named_with_its_row(folder, label):
    folder.write_labels([*LABELS[:3], f"0 {label}", *LABELS[4:]])
    assert f"train.csv row 5: attribute '{label[:40]}' is no column" in folder.refusal(
        DataError, folder.add()
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,attribute_ids\n", "has no rows"),
        ("id,labels\np0,1\n", "row 1: missing column, attribute_ids"),
        ("id,attribute_ids\np0,1\np1\n", "row 3: truncated row"),
        ("id,attribute_ids\np0,1\np0,1\n", "row 3: 'p0' was in row 2 already"),
        ("id,attribute_ids\n,1\n", "row 2: the id is empty"),
        (
            "id,attribute_ids\n" + "".join(f"p{i},{'1' if i else ''}\n" for i in range(N)),
            "row 2: 'p0' has no labels",
        ),
    ],
)
def test_a_wrong_train_csv_is_refused_by_row(folder, text, problem):
    folder.labels.write_text(text)
    assert f"train.csv {problem}" in folder.refusal(DataError, folder.add())


def test_a_missing_train_csv_is_refused_by_name(folder):
    folder.labels.unlink()
    assert "train.csv: no such file" in folder.refusal(DataError, folder.add())


def test_a_missing_fold_is_refused_by_name(folder):
    file = folder.add()
    folder.file(1).unlink()
    assert f"model {MODEL} lacks fold 1" in folder.refusal(DataError, file)


def test_two_files_of_a_fold_are_refused_by_name(folder):
    file = folder.add()
    twin = folder.root / f"level1_train_{MODEL}_f1_e30_0.6000.npy"
    np.save(twin, margins()[FOLDS == 1])
    text = folder.refusal(DataError, file)
    assert f"model {MODEL} has two files of fold 1" in text
    assert str(twin) in text


def test_a_file_of_a_fold_that_there_is_not_is_refused_by_name(folder):
    file = folder.add()
    np.save(folder.file(7), margins()[:2])
    assert "is of fold 7, which" in folder.refusal(DataError, file)


def test_a_file_that_may_be_a_fold_but_has_no_such_name_is_refused(folder):
    file = folder.add()
    copy = folder.root / f"level1_train_{MODEL}_f1_e01_0.5910 (copy).npy"
    np.save(copy, margins()[FOLDS == 1])
    assert f"{copy} may be of model {MODEL}" in folder.refusal(DataError, file)


@pytest.mark.parametrize(
    "name",
    [
        "level1_test_2b_f0_e14_0.5975.npy",
        "level1_train_2b_f0_e14.npy",
        "level1_train_f0_e14_0.5975.npy",
        "level1_train_2b_e14_0.5975.npy",
        "level1_train_2b_f0_e14_0.5975.npz",
        "level1_train_2\nb_f0_e14_0.5975.npy",
        "oof.npy",
        "",
    ],
)
def test_a_name_that_does_not_fit_is_refused(folder, name):
    assert "a level-1 file is called" in folder.refusal(ConfigError, folder.root / name)


def test_a_model_that_is_named_twice_is_refused(folder):
    file = folder.add()
    assert f"model {MODEL} comes twice" in folder.refusal(ConfigError, file, folder.file(1))


def test_no_file_at_all_is_refused(folder):
    assert "no level-1 file" in folder.refusal(ConfigError)


def test_a_named_file_that_is_missing_is_refused_by_name(folder):
    folder.add()
    absent = folder.root / f"level1_train_{MODEL}_f0_e14_0.6.npy"
    assert f"{absent} is missing" in folder.refusal(StoreError, absent)


def test_a_missing_directory_is_refused_by_name(folder):
    absent = folder.root / "absent" / folder.file(0).name
    assert f"{absent} cannot be read" in folder.refusal(StoreError, absent)


def test_a_wrong_number_of_rows_is_refused_by_name(folder):
    file = folder.add()
    np.save(folder.file(2), margins()[:2])
    assert f"{folder.file(2)} has 2 rows, but its fold has 1 pictures" in folder.refusal(DataError, file)


def test_another_number_of_columns_is_refused_by_name(folder):
    second = folder.add("4f", margins()[:, :3])
    assert f"{second} has 3 columns, but {folder.file(0)} has 4" in folder.refusal(
        DataError, folder.add(), second
    )


@pytest.mark.parametrize("values", [margins() > 0, margins()[:, 0], margins().astype(np.int32)])
def test_an_array_that_is_no_table_of_floats_is_refused_by_name(folder, values):
    assert f"{folder.file(0)} must have a row per picture" in folder.refusal(
        DataError, folder.add(values=values)
    )


def test_a_truncated_file_is_refused_by_name(folder):
    file = folder.add()
    folder.file(1).write_bytes(folder.file(1).read_bytes()[:-8])
    assert f"{folder.file(1)} is damaged" in folder.refusal(StoreError, file)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("bare", [True, False])
def test_a_pickled_file_is_refused_and_never_run(folder, bare):
    file, mark = folder.add(), folder.root / "mark"
    if bare:
        folder.file(1).write_bytes(pickle.dumps(Trap(mark)))
    else:
        np.save(folder.file(1), np.array([Trap(mark)] * 3, dtype=object))
    assert f"{folder.file(1)} is damaged" in folder.refusal(StoreError, file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("folds", "problem"),
    [
        (FOLDS[:5], "must have a fold for each of the 6 rows"),
        (FOLDS[:, None], "must have a fold for each of the 6 rows"),
        (FOLDS - 1, "must have whole numbers"),
        (FOLDS / 2, "must have whole numbers"),
    ],
)
def test_folds_that_are_none_of_these_pictures_are_refused(folder, folds, problem):
    np.save(folder.folds, folds)
    assert f"folds.npy {problem}" in folder.refusal(DataError, folder.add())


def test_a_written_ensemble_is_read_back(folder, tmp_path):
    found = folder.read(folder.add(), folder.add("4f", margins(1)))
    place = RunDirectory(tmp_path / "runs" / "2019").ensemble("E")
    path = write_2019(place, 0.5, found, (0.25, 0.75))
    assert read_weights_2019(path) == {MODEL: 0.25, "4f": 0.75}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "- 3",
        "- {predicts: [level1_train_a_f0_e1_0.5.npy], weight: much}",
        "- {predicts: [level1_train_a_f0_e1_0.5.npy], weight: -1}",
        "- {predicts: [level1_train_a_f0_e1_0.5.npy, level1_train_b_f1_e1_0.5.npy], weight: 1}",
        "- {predicts: [], weight: 1}",
        "- {weight: 1}",
        "- &a {predicts: [level1_train_a_f0_e1_0.5.npy], weight: 1}\n- *a",
        "[",
        "\x00",
    ],
)
def test_what_is_no_ensemble_of_2019_is_one_line(tmp_path, text):
    (tmp_path / "e.yml").write_text(text)
    with pytest.raises(DataError, match="e.yml is no ensemble of the 2019 solution"):
        read_weights_2019(tmp_path / "e.yml")
