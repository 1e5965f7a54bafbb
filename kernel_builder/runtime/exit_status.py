"""How a run ended: its last lines, and its exit code."""

import os
from collections.abc import Sequence
from statistics import mean

from kernel_builder.runtime.manifest import Manifest
from kernel_builder.runtime.schedule import Outcome

ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # this variable is set there
STOPPED, LEFT_OUT, UNREADABLE, FELL_BACK, BEHIND = 1, 2, 4, 8, 16
SOMETHING_WRONG = 64  # is added to these


def summary(
    manifest: Manifest,
    outcome: Outcome,
    *,
    pictures: int,
    unreadable: int,
    warnings: Sequence[str],
    seconds: float,
) -> tuple[int, list[str]]:
    """The exit code, and the last lines. The very last line names all that went wrong.

    Args:
        unreadable: the number of pictures that could not be read.
        warnings: what the prediction went on without.
        seconds: the time of the whole run.
    """
    assert outcome.written is not None
    rates: dict[str, list[float]] = {}
    for name, rate in list(outcome.picture_seconds):  # another thread may add to it
        rates.setdefault(name, []).append(rate)
    lines = [
        f"{name}: {1000 * mean(times):.2f} ms per picture and checkpoint" for name, times in rates.items()
    ]
    wrong = []
    if outcome.stopped:
        wrong.append(f"stopped by the limit at {outcome.stopped}")
    if outcome.failed:
        dropped = f", members dropped: {', '.join(outcome.dropped)}" if outcome.dropped else ""
        wrong.append(f"{len(outcome.failed)} checkpoints left out: {'; '.join(outcome.failed)}{dropped}")
    if unreadable:
        wrong.append(f"{unreadable:,} pictures could not be read and have the most frequent labels")
    wrong += warnings
    if outcome.unwritten:
        wrong.append(f"the last predictions could not be written: {outcome.unwritten}")
    useless = outcome.checkpoints == 0 and not outcome.stopped
    if useless:
        wrong.append("nothing but the most frequent labels: no checkpoint could be used")
    code = (
        STOPPED * bool(outcome.stopped)
        | LEFT_OUT * bool(outcome.failed)
        | UNREADABLE * bool(unreadable)
        | FELL_BACK * bool(warnings)
        | BEHIND * bool(outcome.unwritten)
    )
    lines.append(
        f"submission.csv: {outcome.written} of {manifest.checkpoints} checkpoints, {pictures:,} pictures, "
        f"{seconds:.1f} s" + "".join(f"; {text}" for text in wrong)
    )
    return (SOMETHING_WRONG + code if useless else exit_code_with_submission(code)), lines


def exit_code_with_submission(wrong: int) -> int:
    """The exit code of a run that left a submission. On Kaggle 0: any other code throws the submission away.

    Args:
        wrong: STOPPED, LEFT_OUT and so on, added up.
    """
    return 0 if wrong == 0 or os.environ.get(ON_KAGGLE) else SOMETHING_WRONG + wrong
