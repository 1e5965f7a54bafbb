"""Prediction against a clock: checkpoint by checkpoint, in the order of worth, as many as fit.

A submission of the labels' prior is there from the beginning, and is replaced after each checkpoint. So a slow machine
costs score, never the submission. This module knows nothing about models: it is given their batches. The watchdog
(`kernel_builder.runtime.watchdog`) ends what hangs for longer than a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.running_blend import RunningBlend

# A checkpoint is not begun if even this share of its expected time is too long: the times before may have had a stall.
CERTAIN_SHARE = 0.5
STALL = 3.0  # a batch is one if it took so many times as long as the second longest
WRITING = 1.5  # so many times a usual writing of the submission is kept free for the last one

# A call sets up a checkpoint, and the pictures if their size is new. Its batches then come in order, (b, C) float16.
Open = Callable[[KernelMember, Weights], Iterator[np.ndarray]]


class Deadline:
    """How much time is left."""

    def __init__(self, limit: float, reserve: float, clock: Callable[[], float], spent: float = 0.0) -> None:
        """
        Args:
            limit: seconds that the kernel may run.
            reserve: seconds of the limit that are kept back.
            clock: gives seconds that only rise.
            spent: seconds before now that count, too.
        """
        self.clock, self.start = clock, clock() - spent
        self.end = self.start + limit - reserve

    def elapsed(self) -> float:
        return self.clock() - self.start

    def left(self) -> float:
        return self.end - self.clock()


@dataclass
class Outcome:
    """How the run ended, or how far it is."""

    checkpoints: int = 0  # predicted for all pictures
    written: int | None = None  # those of them in the submission; None: there is no submission
    unwritten: str = ""  # why the last ones are not in the submission
    stopped: str = ""  # where the deadline stopped it
    failed: list[str] = field(default_factory=list)  # checkpoints, each with the reason
    dropped: list[str] = field(default_factory=list)  # members without a checkpoint
    # of each predicted checkpoint: its member, and its seconds per picture without the set-up
    picture_seconds: list[tuple[str, float]] = field(default_factory=list)
    batches: int = 0  # of the checkpoint with the fewest
    writing: float = 0.0  # seconds spent on writing the submission


class _LateError(Exception):
    """The checkpoint cannot be ready in time."""


class Schedule:
    """One run over all checkpoints."""

    def __init__(
        self,
        manifest: Manifest,
        n_pictures: int,
        deadline: Deadline,
        publish: Callable[[RunningBlend], None],
        log: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        """
        Args:
            publish: writes the submission.
            log: prints a line.
            note: remembers what is being done.
        """
        self.manifest, self.n = manifest, n_pictures
        self.deadline, self.publish, self.log, self.note = deadline, publish, log, note
        self.blend = RunningBlend(manifest, n_pictures)
        self.outcome = Outcome()
        self._writings: list[float] = []  # seconds of each

    def begin(self) -> None:
        """Write a submission of the labels' prior.

        Raises:
            Exception: if it cannot be written.
        """
        self._publish()

    def run(self, open_checkpoint: Open) -> Outcome:
        """Predict what fits, after `begin`. The submission is written when this returns."""
        assert self.outcome.written is not None
        try:
            self._predict_all(open_checkpoint)
            if self.outcome.unwritten:
                self._publish()  # the disk may have room again
        except Exception as error:  # such as too little memory: the written submission stays
            self.outcome.failed.append(f"all that would have followed: {_reason(error)}")
        return self.outcome

    def _predict_all(self, open_checkpoint: Open) -> None:
        for member in self.manifest.members:
            for weights in member.weights:
                try:
                    if not self._fits(CERTAIN_SHARE * self._expected_seconds(member)):
                        raise _LateError("would not fit")
                    self._predict(member, weights, open_checkpoint)
                except _LateError as late:
                    self.outcome.stopped = f"{weights.name}: {late}"
                    return
            if member.name not in self.blend.members:
                self.outcome.dropped.append(member.name)
            self.blend.close()

    def _predict(self, member: KernelMember, weights: Weights, open_checkpoint: Open) -> None:
        """Predict one checkpoint. One that fails is left out."""
        begun = self.outcome.checkpoints + len(self.outcome.failed) + 1
        name = f"checkpoint {begun} of {len(self.manifest.weights)} ({weights.name})"
        self.note(f"{name}: setting up")
        try:
            probs, times = self._collect(name, member, open_checkpoint(member, weights))
            if not np.isfinite(probs).all():
                raise ValueError("it predicts NaN")
        except _LateError:
            raise
        except Exception as error:  # of any kind: the others go on
            self.outcome.failed.append(f"{weights.name}: {_reason(error)}")
            self.log(f"left out: {self.outcome.failed[-1]}")
            return
        self.blend.add(member, probs)
        self.outcome.checkpoints += 1
        self.outcome.batches = min(self.outcome.batches or len(times), len(times))
        self.outcome.picture_seconds.append((member.name, steady_seconds(times) * len(times) / self.n))
        self._publish()

    def _collect(
        self, name: str, member: KernelMember, batches: Iterator[np.ndarray]
    ) -> tuple[np.ndarray, list[float]]:
        """The probabilities of all pictures, (n, C) float16, and the seconds of each batch."""
        probs = np.empty((self.n, len(self.manifest.label_ids)), np.float16)
        done, times, before = 0, [], self.deadline.clock()
        for batch in batches:
            probs[done : done + len(batch)] = batch
            done += len(batch)
            now = self.deadline.clock()
            times.append(now - before)
            before = now
            self.note(f"{name}, picture {done:,} of {self.n:,}")
            if done == self.n:
                self.log(f"{name}: {sum(times):.1f} s")
                return probs, times
            # The first checkpoint ends a batch early, so that its part can be published. A later one does not: giving
            # up earlier gains nothing, and a stall may be over.
            first = self.blend.checkpoints == 0
            if not self._fits(_second_longest(times) if first and len(times) > 1 else 0.0):
                late = f"reached after {done:,} of {self.n:,} pictures"
                if first and np.isfinite(probs[:done]).all():
                    probs[done:] = np.array(self.manifest.prior, np.float16)
                    self.blend.add(member, probs, whole=False)
                    self._publish()
                    late += ", the others by the prior"
                raise _LateError(late)
        raise RuntimeError(f"{done:,} of {self.n:,} pictures came")

    def _expected_seconds(self, member: KernelMember) -> float:
        """Of a member's next checkpoint; 0 if it is the first. Without the set-up: that of the pictures comes once."""
        known = [rate for name, rate in self.outcome.picture_seconds if name == member.name]
        return min(known, default=0.0) * self.n

    def _fits(self, seconds: float) -> bool:
        return seconds + WRITING * _second_longest(self._writings) < self.deadline.left()

    def _publish(self) -> None:
        """Write the submission. Once there is one, a failure is only noted."""
        began = self.deadline.clock()
        try:
            self.publish(self.blend)
            self.outcome.written, self.outcome.unwritten = self.outcome.checkpoints, ""
        except Exception as error:
            if self.outcome.written is None:
                raise
            self.outcome.unwritten = _reason(error)
            self.log(f"the submission stays as it was: {self.outcome.unwritten}")
        seconds = self.deadline.clock() - began
        self.outcome.writing += seconds
        self._writings.append(seconds)


def steady_seconds(times: Sequence[float]) -> float:
    """The mean seconds per batch, without the longest one if it is far from all others: a stall, or the start.

    Not the median: loader processes deliver their batches in bursts.
    """
    second, longest = sorted(times)[-2:] if len(times) > 1 else (times[0], times[0])
    if longest > STALL * second:
        return (sum(times) - longest) / (len(times) - 1)
    return sum(times) / len(times)


def _second_longest(times: Sequence[float]) -> float:
    """What the next one may take: a single stall is an exception, a wait before each burst of batches is not."""
    return sorted(times)[-2] if len(times) > 1 else times[0]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
