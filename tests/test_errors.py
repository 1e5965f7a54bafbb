"""Errors of libraries, told in one line."""

import pytest
import torch

from imet_ray.errors import telling_line

LOADER = (
    'Caught OSError in worker process 0.\nTraceback (most recent call last):\n  File "a.py"\nOSError: gone\n'
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "CUDA error: no kernel image\nCUDA kernel errors might be reported later",
            "CUDA error: no kernel image",
        ),
        (LOADER, "OSError: gone"),
        ("\n\n  only this\n", "only this"),
        ("", "RuntimeError"),
    ],
)
def test_the_line_that_tells_is_the_first_unless_that_only_announces(text, told):
    assert telling_line(RuntimeError(text)) == told


def test_of_weights_that_do_not_fit_torch_tells_which():
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())
    assert telling_line(caught.value).startswith("size mismatch for bias")
