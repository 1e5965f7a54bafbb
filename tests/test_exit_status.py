"""A kernel's last line and exit code, for each way to end."""

import pytest
from simulated_machine import make_manifest

from kernel_builder.runtime.exit_status import summary
from kernel_builder.runtime.schedule import Outcome

WHOLE = {"checkpoints": 6, "written": 6}


@pytest.mark.parametrize(
    ("outcome", "unreadable", "warnings", "code", "on_kaggle", "said"),
    [
        (WHOLE, 0, [], 0, 0, "6 of 6 checkpoints, 20 pictures, 5.0 s"),
        (
            {"checkpoints": 0, "written": 0, "stopped": "a-f0"},
            0,
            [],
            64 + 1,
            0,
            "stopped by the limit at a-f0",
        ),
        (
            {"checkpoints": 4, "written": 4, "failed": ["b-f0: bad", "b-f1: bad"], "dropped": ["b"]},
            0,
            [],
            64 + 2,
            0,
            "2 checkpoints left out: b-f0: bad; b-f1: bad, members dropped: b",
        ),
        (
            WHOLE,
            3,
            [],
            64 + 4,
            0,
            "3 pictures could not be read and have the most frequent labels, such as 0",
        ),
        (WHOLE, 0, ["no GPU"], 64 + 8, 0, "5.0 s; no GPU"),
        (WHOLE | {"written": 4, "unwritten": "disk full"}, 0, [], 64 + 16, 0, "4 of 6 checkpoints"),
        ({"written": 0, "failed": ["a-f0: bad"]}, 0, [], 64 + 2, 64 + 2, "no checkpoint could be used"),
        (WHOLE | {"failed": ["a-f0: bad"]}, 1, ["no GPU"], 64 + 2 + 4 + 8, 0, "left out"),
    ],
)
def test_any_code_but_0_would_throw_the_submission_away_on_kaggle(
    monkeypatch, outcome, unreadable, warnings, code, on_kaggle, said
):
    for expected, variable in ((code, None), (on_kaggle, "Batch")):
        if variable:
            monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", variable)
        else:
            monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
        found, lines = summary(
            make_manifest(),
            Outcome(**outcome),
            pictures=20,
            unreadable=[str(row) for row in range(unreadable)],
            warnings=warnings,
            seconds=5.0,
        )
        assert found == expected
        assert said in lines[-1]


def test_the_seconds_of_each_member_are_told():
    outcome = Outcome(**WHOLE, picture_seconds=[("a", 0.001), ("a", 0.003), ("b", 0.01)])
    _, lines = summary(make_manifest(), outcome, pictures=20, unreadable=0, warnings=[], seconds=5.0)
    assert lines[:2] == [
        "a: 2.00 ms per picture and checkpoint",
        "b: 10.00 ms per picture and checkpoint",
    ]
