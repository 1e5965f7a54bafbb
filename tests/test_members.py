"""What can be blended, and what is refused by its member's name."""

from dataclasses import replace

import numpy as np
import pytest

from imet_ray.blending.members import Member, check_members
from imet_ray.errors import DataError

LABELS, FOLDS = np.array([[0, 1], [1, 0]], np.uint8), np.array([0, 1])
GOOD = Member("good", np.full((2, 2), 0.5, np.float16))


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[0.5, np.nan]] * 2, "bad has NaN"),
        ([[0.5, np.inf]] * 2, "bad has NaN or infinite"),
        ([[-0.5, 0.5]] * 2, r"bad has probabilities outside 0\.\.1"),
        ([[1.5, 0.5]] * 2, r"bad has probabilities outside 0\.\.1"),
        ([[0.5]], r"bad has predictions of shape \(1, 1\), labels are \(2, 2\)"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_predictions_that_cannot_be_blended_are_refused_by_name(probs, message, dtype):
    with pytest.raises(DataError, match=message):
        check_members([GOOD, Member("bad", np.array(probs, dtype))], LABELS, FOLDS)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 6e-8])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_all_numbers_from_0_to_1_are_probabilities(value, dtype):
    check_members([Member("a", np.full((2, 2), value, dtype))], LABELS, FOLDS)


@pytest.mark.parametrize("row", [0, 8191, 8192, 9999])
def test_a_number_that_is_none_is_found_in_any_row(row):
    probs = np.full((10_000, 2), 0.5, np.float16)
    probs[row, 1] = np.nan
    with pytest.raises(DataError, match="bad has NaN"):
        check_members([Member("bad", probs)], np.ones((10_000, 2), np.uint8), np.arange(10_000) % 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, name="bad", folds_digest="other"), "bad was trained with other folds"),
        (
            replace(GOOD, name="bad", ids=["y", "x"]),
            "bad has its pictures in another order.*row 0 is 'y', not 'x'",
        ),
        (replace(GOOD, name="bad", ids=["x"]), "bad has 1 ids for 2 rows"),
        (GOOD, "good comes twice"),
    ],
)
def test_members_that_do_not_belong_together_are_refused_by_name(bad, message):
    good = replace(GOOD, ids=["x", "y"], folds_digest="folds")
    with pytest.raises(DataError, match=message):
        check_members([good, bad], LABELS, FOLDS, "folds")


def test_margins_below_minus_1_are_refused():
    with pytest.raises(DataError, match=r"bad has probabilities outside -1\.\.1"):
        check_members([Member("bad", np.full((2, 2), -1.5, np.float16), margins=True)], LABELS, FOLDS)


@pytest.mark.parametrize("folds", [np.zeros(2, np.int64), np.array([0]), np.array([0, 1, 2])])
def test_folds_that_are_missing_or_too_few_are_refused(folds):
    with pytest.raises(DataError, match="a fold per picture and two folds"):
        check_members([GOOD], LABELS, folds)


def test_no_member_is_refused():
    with pytest.raises(DataError, match="no member to blend"):
        check_members([], LABELS, FOLDS)
