"""How a run ended: its last lines, and its exit code."""

import os
from statistics import mean

from kernel_builder.runtime.manifest import Manifest
from kernel_builder.runtime.schedule import Outcome

KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # set where Kaggle runs it
CUT, LEFT_OUT, UNREADABLE, FELL_BACK, BEHIND = 1, 2, 4, 8, 16
SOMETHING = 64  # is added to these


def told(
    manifest: Manifest, outcome: Outcome, *, pictures: int, unreadable: int, heard: list[str], seconds: float
) -> tuple[int, list[str]]:
    """The exit code, and the last lines; the very last one says all that went wrong.

    Args:
        unreadable: pictures.
        heard: what the prediction went on without.
        seconds: that the run took.
    """
    assert outcome.written is not None
    rates: dict[str, list[float]] = {}
    for name, rate in list(outcome.picture_seconds):  # another thread may add to it
        rates.setdefault(name, []).append(rate)
    lines = [f"{name}: {1000 * mean(found):.2f} ms a picture and checkpoint" for name, found in rates.items()]
    wrong = []
    if outcome.stopped:
        wrong.append(f"stopped by the limit at {outcome.stopped}")
    if outcome.failed:
        dropped = f", members dropped: {', '.join(outcome.dropped)}" if outcome.dropped else ""
        wrong.append(f"{len(outcome.failed)} checkpoints left out: {'; '.join(outcome.failed)}{dropped}")
    if unreadable:
        wrong.append(f"{unreadable:,} pictures could not be read and have the most frequent labels")
    wrong += heard
    if outcome.unwritten:
        wrong.append(f"what was predicted last could not be written: {outcome.unwritten}")
    useless = outcome.checkpoints == 0 and not outcome.stopped
    if useless:
        wrong.append("nothing but the most frequent labels: no checkpoint could be used")
    code = (
        CUT * bool(outcome.stopped)
        | LEFT_OUT * bool(outcome.failed)
        | UNREADABLE * bool(unreadable)
        | FELL_BACK * bool(heard)
        | BEHIND * bool(outcome.unwritten)
    )
    lines.append(
        f"submission.csv: {outcome.written} of {manifest.checkpoints} checkpoints, {pictures:,} pictures, "
        f"{seconds:.1f} s" + "".join(f"; {text}" for text in wrong)
    )
    return (exit_code(code) if not useless else SOMETHING + code), lines


def exit_code(wrong: int) -> int:
    """Of a run that left a submission: on Kaggle 0, for there any other code throws it away.

    Args:
        wrong: CUT, LEFT_OUT and so on, added up.
    """
    return 0 if wrong == 0 or os.environ.get(KAGGLE) else SOMETHING + wrong
