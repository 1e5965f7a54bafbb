"""Prediction against a clock: checkpoint by checkpoint, in the order of worth, as many as fit.

A submission is there from the beginning (the labels' prior) and is replaced after each checkpoint, so a machine that is
too slow costs score, never the submission. Knows nothing of models: batches come from outside. What hangs for longer
than a batch is `kernel_builder.runtime.watchdog`'s business.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.running_blend import Tally

SURELY = 0.5  # of a foretold time must be too long before a checkpoint is not begun: a stall may be over
STALL = 3.0  # times the second longest batch
WRITING = 1.5  # times the longest writing of the submission is kept free for the last one

# Sets a checkpoint up when it is called, with pictures of a new size; its batches then come in order, (b, C) float16.
Open = Callable[[KernelMember, Weights], Iterator[np.ndarray]]


class Deadline:
    """The time that is left."""

    def __init__(self, limit: float, reserve: float, clock: Callable[[], float], spent: float = 0.0) -> None:
        """
        Args:
            limit: seconds that the kernel may run.
            reserve: seconds of it that are kept back.
            clock: seconds, rising.
            spent: seconds before now that count.
        """
        self.clock, self.end = clock, clock() - spent + limit - reserve
        self.start = clock() - spent

    def elapsed(self) -> float:
        return self.clock() - self.start

    def left(self) -> float:
        return self.end - self.clock()


@dataclass
class Outcome:
    """How it ended, or how far it is."""

    checkpoints: int = 0  # predicted whole
    written: int | None = None  # of these, in the submission; None: there is no submission
    unwritten: str = ""  # why the submission is behind
    stopped: str = ""  # by the deadline: where
    failed: list[str] = field(default_factory=list)  # checkpoints, with their reasons
    dropped: list[str] = field(default_factory=list)  # members without any checkpoint left
    # of each checkpoint that was predicted: its member, and seconds a picture without the set-up
    picture_seconds: list[tuple[str, float]] = field(default_factory=list)
    batches: int = 0  # of the checkpoint that had the fewest
    writing: float = 0.0  # seconds of all writing of the submission


class _LateError(Exception):
    """The checkpoint would not be ready in time."""


class Run:
    """One run over all checkpoints."""

    def __init__(
        self,
        manifest: Manifest,
        n_pictures: int,
        open_checkpoint: Open,
        deadline: Deadline,
        publish: Callable[[Tally], None],
        say: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        """
        Args:
            publish: writes the submission.
            say: prints a line.
            tell: takes note of what is being done.
        """
        self.manifest, self.n = manifest, n_pictures
        self.open, self.deadline = open_checkpoint, deadline
        self.publish, self.say, self.tell = publish, say, tell
        self.tally = Tally(manifest, n_pictures)
        self.outcome = Outcome()
        self._writings: list[float] = []  # seconds of each
        self._pace: dict[str, float] = {}  # of a member's fastest checkpoint: seconds a picture
        self._set_up: float | None = None  # seconds of the fastest, of a size that was there
        self._sizes: set[int] = set()

    def begin(self) -> None:
        """Write a submission of the labels' prior.

        Raises:
            Exception: where it cannot be written.
        """
        self._publish()

    def __call__(self) -> Outcome:
        """Predict what fits, after `begin`; the submission is written when this returns."""
        assert self.outcome.written is not None
        try:
            self._predict_all()
            if self.outcome.unwritten:
                self._publish()  # what was in the way may be gone
        except Exception as error:  # such as too little memory: what is written stays
            self.outcome.failed.append(f"all that would have followed: {_reason(error)}")
        return self.outcome

    def _predict_all(self) -> None:
        for member in self.manifest.members:
            for weights in member.weights:
                if self._hopeless(self._foretold(member)):
                    self.outcome.stopped = f"{weights.plain.name}: would not fit"
                    return
                try:
                    self._predict(member, weights)
                except _LateError as late:
                    self.outcome.stopped = f"{weights.plain.name}: {late}"
                    return
            if member.name not in self.tally.members:
                self.outcome.dropped.append(member.name)
            self.tally.close()

    def _predict(self, member: KernelMember, weights: Weights) -> None:
        """One checkpoint; one that fails is left out."""
        try:
            probs, times = self._collect(member, weights, self._opened(member, weights))
            if not np.isfinite(probs).all():
                raise ValueError("it predicts NaN")
        except _LateError:
            raise
        except Exception as error:  # whatever a checkpoint dies of, the others go on
            self.outcome.failed.append(f"{weights.plain.name}: {_reason(error)}")
            self.say(f"left out: {self.outcome.failed[-1]}")
            return
        self.tally.add(member, probs)
        self.outcome.checkpoints += 1
        self.outcome.batches = min(self.outcome.batches or len(times), len(times))
        seconds = steady(times) * len(times) / self.n
        self.outcome.picture_seconds.append((member.name, seconds))
        self._pace[member.name] = min(seconds, self._pace.get(member.name, seconds))
        self._publish()

    def _opened(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        began, new = self.deadline.clock(), member.pack_short_side not in self._sizes
        self.tell(f"{self._which(weights)}: {'pictures and model' if new else 'model'}")
        batches = self.open(member, weights)
        self._sizes.add(member.pack_short_side)
        seconds = self.deadline.clock() - began
        if not new:
            self._set_up = seconds if self._set_up is None else min(seconds, self._set_up)
        return batches

    def _collect(
        self, member: KernelMember, weights: Weights, batches: Iterator[np.ndarray]
    ) -> tuple[np.ndarray, list[float]]:
        """All pictures' probabilities, (n, C), and the seconds of each batch."""
        probs = np.empty((self.n, len(self.manifest.label_ids)), np.float16)
        done, times, before = 0, [], self.deadline.clock()
        for batch in batches:
            probs[done : done + len(batch)] = batch
            done += len(batch)
            now = self.deadline.clock()
            times.append(now - before)
            before = now
            self.tell(f"{self._which(weights)}, picture {done:,} of {self.n:,}")
            if done == self.n:
                self.say(f"{self._which(weights)}: {sum(times):.1f} s")
                return probs, times
            if self.tally.checkpoints == 0:
                if not self._fits(_longest_but_one(times) if len(times) > 1 else 0.0):
                    self._publish_part(member, probs, done)
                    raise _LateError(
                        f"reached after {done:,} of {self.n:,} pictures, the others by the prior"
                    )
            elif not self._fits(0.0):  # before, nothing is gained by giving up: a stall may be over
                raise _LateError(f"reached after {done:,} of {self.n:,} pictures")
        raise RuntimeError(f"{done:,} of {self.n:,} pictures came")

    def _publish_part(self, member: KernelMember, probs: np.ndarray, done: int) -> None:
        """Better some pictures than none."""
        if np.isfinite(probs[:done]).all():
            probs[done:] = np.array(self.manifest.prior, np.float16)
            self.tally.add(member, probs)
            self._publish()

    def _foretold(self, member: KernelMember) -> float:
        """Seconds of a member's next checkpoint, as fast as its others were; of a new member nothing is known."""
        pace = self._pace.get(member.name)
        return 0.0 if pace is None else (self._set_up or 0.0) + pace * self.n

    def _fits(self, seconds: float) -> bool:
        return seconds + WRITING * _longest_but_one(self._writings) < self.deadline.left()

    def _hopeless(self, seconds: float) -> bool:
        return not self._fits(SURELY * seconds)

    def _publish(self) -> None:
        """Write the submission; once there is one, a failure is kept for the end."""
        began = self.deadline.clock()
        try:
            self.publish(self.tally)
            self.outcome.written, self.outcome.unwritten = self.outcome.checkpoints, ""
        except Exception as error:
            if self.outcome.written is None:
                raise
            self.outcome.unwritten = _reason(error)
            self.say(f"the submission stays as it was: {self.outcome.unwritten}")
        seconds = self.deadline.clock() - began
        self.outcome.writing += seconds
        self._writings.append(seconds)

    def _which(self, weights: Weights) -> str:
        begun = self.outcome.checkpoints + len(self.outcome.failed) + 1
        return f"checkpoint {begun} of {self.manifest.checkpoints} ({weights.plain.name})"


def steady(times: Sequence[float]) -> float:
    """Seconds a batch, in the mean; a longest one far from all others, a stall or a start, is not counted.

    Not the median: loader processes bring their batches in bursts.
    """
    second, longest = sorted(times)[-2:] if len(times) > 1 else (times[0], times[0])
    if longest > STALL * second:
        return (sum(times) - longest) / (len(times) - 1)
    return sum(times) / len(times)


def _longest_but_one(times: Sequence[float]) -> float:
    """What the next may take: one stall is not the rule, a burst of batches after a wait is."""
    return sorted(times)[-2] if len(times) > 1 else times[0]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
