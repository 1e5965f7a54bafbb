"""The submission file: order and form of the sample."""

import numpy as np
import pytest

from imet_ray.prediction.submission import write_submission


def test_rows_stand_in_the_samples_order_with_space_separated_labels(tmp_path):
    decoded = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
    write_submission(tmp_path / "s.csv", ["b", "a"], ["7", "8", "x"], decoded)
    assert (tmp_path / "s.csv").read_text() == "id,attribute_ids\nb,7 x\na,8\n"


def test_the_header_is_the_samples(tmp_path):
    write_submission(tmp_path / "s.csv", ["a"], ["7"], np.ones((1, 1), dtype=bool), header=("id", "labels"))
    assert (tmp_path / "s.csv").read_text() == "id,labels\na,7\n"


def test_a_picture_without_a_label_has_an_empty_cell(tmp_path):
    write_submission(tmp_path / "s.csv", ["a"], ["7"], np.zeros((1, 1), dtype=bool))
    assert (tmp_path / "s.csv").read_text() == "id,attribute_ids\na,\n"


@pytest.mark.parametrize(
    ("labels", "cell"),
    [(["oil paint", "b"], "oil paint;b"), (["a ;", "b|"], '"a ;,b|"'), (["c", "d;"], "c d;")],
)
def test_labels_with_spaces_are_separated_by_what_none_of_them_has(tmp_path, labels, cell):
    write_submission(tmp_path / "s.csv", ["a"], labels, np.ones((1, 2), dtype=bool))
    assert (tmp_path / "s.csv").read_text() == f"id,attribute_ids\na,{cell}\n"
