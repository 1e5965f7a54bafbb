"""Tables on terminals of any width."""

import pytest
from rich.console import Console

from imet_ray.reporting.terminal_table import terminal_table

COLUMNS = ("variant", "best hparams", "F2 per fold", "mean", "expected-F2")
ROWS = [
    [
        "tf_efficientnet_lite0-light",
        "batch_size=32 loss_weight=2.85",
        "0.5865 0.5801 0.5838",
        "0.5834",
        "0.5594",
    ],
    ["a", "batch_size=16 loss_weight=1.25", "0.1234 (2 missing)", "0.1234", ""],
]


def printed(width: int) -> list[str]:
    console = Console(width=width, markup=False)
    with console.capture() as capture:
        console.print(terminal_table(COLUMNS, ROWS, width=width, texts=2, title="leaderboard"))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [24, 40, 60, 70, 80, 100, 140])
def test_no_number_is_broken_at_any_width(width):
    lines = printed(width)
    words = " ".join(lines).split()
    for row in ROWS:
        assert set(" ".join(row[1:]).split()) <= set(words)
    assert width < 30 or max(map(len, lines)) <= width


@pytest.mark.parametrize(("width", "narrow"), [(40, True), (140, False)])
def test_a_narrow_terminal_gets_a_line_per_figure(width, narrow):
    assert ("  mean: 0.5834" in printed(width)) == narrow
