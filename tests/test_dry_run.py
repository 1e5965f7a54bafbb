"""How long a kernel takes for more pictures, predicted from a dry run."""

import json

import pytest

from imet_ray.storage.checked_read import read_model
from kernel_builder.dry_run import verdict
from kernel_builder.runtime.exit_status import Timing

TIMING = {  # 10 s of set-up; 0.6 s of decoding, 0.4 s of writing, and 2 + 2 + 6 s of checkpoints for 100 pictures
    "pictures": 100,
    "batches": 10,
    "elapsed": 21.0,
    "decoding": 0.6,
    "writing": 0.4,
    "left": 1200.0,
    "whole": True,
    "checkpoints": [("a", 0.02), ("a", 0.02), ("b", 0.06)],
}


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (100, "100 pictures would take 0:21 on this machine, of 20:00: fits"),
        (10_000, "10,000 pictures would take 18:30 on this machine, of 20:00: fits"),
        (
            20_000,
            "20,000 pictures would take 36:50 on this machine, of 20:00: does NOT fit; about 2 of 3 checkpoints",
        ),
        (200_000, "does NOT fit; about 0 of 3 checkpoints"),
    ],
)
def test_what_grows_with_the_pictures_is_scaled_and_the_set_up_is_not(images, expected):
    fits, text = verdict(Timing(**TIMING), images)
    assert expected in text
    assert fits == text.endswith("fits")


def test_a_timing_is_read_as_the_kernel_wrote_it(tmp_path):
    (tmp_path / "timing.json").write_text(json.dumps(TIMING))
    assert read_model(tmp_path / "timing.json", Timing) == Timing(**TIMING)
