"""How a run ended: its last lines, its exit code, and what took how long."""

import os
from collections.abc import Sequence
from statistics import mean
from typing import Annotated

from pydantic import Field

from imet_ray.specs import Frozen
from kernel_builder.runtime.manifest import Manifest
from kernel_builder.runtime.schedule import Outcome

ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # this variable is set there
STOPPED, LEFT_OUT, UNREADABLE, FELL_BACK, BEHIND = 1, 2, 4, 8, 16
SOMETHING_WRONG = 64  # is added to these


class Timing(Frozen):
    """What a kernel writes to its `--timing` file."""

    pictures: int
    batches: int  # per checkpoint
    elapsed: float  # seconds of the whole run
    decoding: float  # seconds of it spent on decoding all pictures
    writing: float  # seconds of it spent on writing the submission, again and again
    left: float  # seconds that the run could have taken: limit minus reserve
    whole: bool  # every checkpoint was predicted
    # member, seconds per picture; in the order of prediction
    checkpoints: list[Annotated[tuple[str, float], Field(strict=False)]]


def summary(
    manifest: Manifest,
    outcome: Outcome,
    *,
    pictures: int,
    unreadable: Sequence[str],
    warnings: Sequence[str],
    seconds: float,
) -> tuple[int, list[str]]:
    """The exit code, and the last lines. The very last line names all that went wrong.

    Args:
        unreadable: ids of pictures that could not be read.
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
    wrong: list[tuple[int, str]] = []
    if outcome.stopped:
        wrong.append((STOPPED, f"stopped by the limit at {outcome.stopped}"))
    if outcome.failed:
        dropped = f", members dropped: {', '.join(outcome.dropped)}" if outcome.dropped else ""
        text = f"{len(outcome.failed)} checkpoints left out: {'; '.join(outcome.failed)}{dropped}"
        wrong.append((LEFT_OUT, text))
    if manifest.level2 is not None and 0 < len(rates) < len(manifest.members):
        text = f"level 2 ({manifest.level2.stacker}) needs all members, so the weights of those predicted were used"
        wrong.append((0, text))
    if unreadable:
        text = f"{len(unreadable):,} pictures could not be read and have the most frequent labels"
        wrong.append((UNREADABLE, f"{text}, such as {unreadable[0]}"))
    wrong += [(FELL_BACK, text) for text in warnings]
    if outcome.unwritten:
        wrong.append((BEHIND, f"the last predictions could not be written: {outcome.unwritten}"))
    useless = outcome.checkpoints == 0 and not outcome.stopped
    if useless:
        wrong.append((0, "nothing but the most frequent labels: no checkpoint could be used"))
    code = 0
    for bit, _ in wrong:
        code |= bit
    lines.append(
        f"submission.csv: {outcome.written} of {len(manifest.weights)} checkpoints, {pictures:,} pictures, "
        f"{seconds:.1f} s" + "".join(f"; {text}" for _, text in wrong)
    )
    return (SOMETHING_WRONG + code if useless else exit_code_with_submission(code)), lines


def exit_code_with_submission(wrong: int) -> int:
    """The exit code of a run that left a submission. On Kaggle 0: any other code throws the submission away."""
    return 0 if wrong == 0 or os.environ.get(ON_KAGGLE) else SOMETHING_WRONG + wrong
