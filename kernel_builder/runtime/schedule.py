"""Prediction against a clock: checkpoint by checkpoint, in the order of worth, as many as fit.

A submission is there from the beginning (the labels' prior) and is replaced after each checkpoint, so a machine that is
too slow costs score, never the submission. Knows nothing of models: batches come from outside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from imet_ray.durations import clock
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.tally import Tally

FIRST_BATCHES = 5  # of a checkpoint, before its end is foretold
WRITING = 1.5  # times the longest writing of the submission is kept free for the last one
SAY_EVERY = 60.0  # seconds

Batches = Callable[[KernelMember, Weights], Iterator[np.ndarray]]  # (b, C) float16 each, in order


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
    """How it ended."""

    checkpoints: int = 0  # predicted whole
    stopped: str = ""  # by the deadline: where
    failed: list[str] = field(default_factory=list)  # checkpoints, with their reasons
    dropped: list[str] = field(default_factory=list)  # members without any checkpoint left
    picture_seconds: dict[str, float] = field(
        default_factory=dict
    )  # a member's checkpoint takes for a picture


class _LateError(Exception):
    """The checkpoint would not be ready in time."""


class Run:
    """One run over all checkpoints."""

    def __init__(
        self,
        manifest: Manifest,
        n_pictures: int,
        batches: Batches,
        deadline: Deadline,
        publish: Callable[[Tally], None],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            publish: writes the submission.
            say: prints a line.
        """
        self.manifest, self.n = manifest, n_pictures
        self.batches, self.deadline = batches, deadline
        self.publish, self.say = publish, say
        self.tally = Tally(manifest, n_pictures)
        self.outcome = Outcome()
        self._writing = 0.0  # seconds of the longest
        self._slowness: float | None = None  # measured seconds over those of the out-of-fold pass
        self._said = deadline.clock()

    def __call__(self) -> Outcome:
        """Predict what fits; the submission is written when this returns."""
        self._publish()
        for member in self.manifest.members:
            known: float | None = None  # seconds a picture, of this member's checkpoints
            for weights in member.weights:
                expected = known if known is not None else self._foretold(member)
                if expected is not None and not self._fits(expected * self.n):
                    return self._stop(weights, "would not fit")
                try:
                    known = self._predict(member, weights) or known
                except _LateError as late:
                    return self._stop(weights, str(late))
            if member.name not in self.tally.members:
                self.outcome.dropped.append(member.name)
            self.tally.close()
        return self.outcome

    def _predict(self, member: KernelMember, weights: Weights) -> float | None:
        """One checkpoint; seconds a picture, or None where it failed."""
        began = self.deadline.clock()
        try:
            probs, times = self._collect(member, weights)
        except _LateError:
            raise
        except Exception as error:  # whatever a checkpoint dies of, the others go on
            self._fail(weights, f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None
        if not np.isfinite(probs).all():
            self._fail(weights, "it predicts NaN")
            return None
        self.tally.add(member, probs)
        self.outcome.checkpoints += 1
        whole = self.deadline.clock() - began
        a_picture = min(whole, median(times) * len(times)) / self.n  # a stall is not the rule
        self.outcome.picture_seconds[member.name] = a_picture
        if member.seconds:
            self._slowness = a_picture * len(member.weights) / member.seconds
        self._publish()
        return a_picture

    def _collect(self, member: KernelMember, weights: Weights) -> tuple[np.ndarray, list[float]]:
        """All pictures' probabilities, (n, C), and the seconds of each batch."""
        probs = np.empty((self.n, len(self.manifest.label_ids)), np.float16)
        done, times, before = 0, [], self.deadline.clock()
        for batch in self.batches(member, weights):
            probs[done : done + len(batch)] = batch
            done += len(batch)
            now = self.deadline.clock()
            times.append(now - before)
            before = now
            self._progress(member, weights, done)
            if done == self.n:
                break
            rest = (self.n - done) / len(batch) * median(times)
            late = not self._fits(median(times))  # the next batch
            if self.tally.checkpoints == 0:
                if late:  # better some pictures than none
                    probs[done:] = np.array(self.manifest.prior, np.float16)
                    self.tally.add(member, probs)
                    self._publish()
                    raise _LateError(
                        f"reached after {done:,} of {self.n:,} pictures, the others by the prior"
                    )
            elif late or (len(times) >= FIRST_BATCHES and not self._fits(rest)):
                raise _LateError(f"would not fit, as {done:,} of {self.n:,} pictures showed")
        if done < self.n:
            raise RuntimeError(f"{done:,} of {self.n:,} pictures came")
        return probs, times

    def _foretold(self, member: KernelMember) -> float | None:
        """Seconds a picture of one checkpoint of a member that has not begun, if anything is known."""
        if self._slowness is None or not member.seconds:
            return None
        return self._slowness * member.seconds / len(member.weights)

    def _fits(self, seconds: float) -> bool:
        return seconds + WRITING * self._writing < self.deadline.left()

    def _publish(self) -> None:
        began = self.deadline.clock()
        self.publish(self.tally)
        self._writing = max(self._writing, self.deadline.clock() - began)

    def _stop(self, weights: Weights, why: str) -> Outcome:
        self.outcome.stopped = f"{weights.plain.name}: {why}"
        return self.outcome

    def _fail(self, weights: Weights, why: str) -> None:
        self.outcome.failed.append(f"{weights.plain.name}: {why}")
        self.say(f"left out: {self.outcome.failed[-1]}")

    def _progress(self, member: KernelMember, weights: Weights, done: int) -> None:
        now = self.deadline.clock()
        if now - self._said < SAY_EVERY and done < self.n:
            return
        self._said = now
        begun = self.outcome.checkpoints + len(self.outcome.failed) + 1
        self.say(
            f"{clock(self.deadline.elapsed())}  checkpoint {begun} of {self.manifest.checkpoints} "
            f"({weights.plain.name}), picture {done:,} of {self.n:,}; {clock(self.deadline.left())} left"
        )
