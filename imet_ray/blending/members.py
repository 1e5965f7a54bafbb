"""What is blended: the out-of-fold predictions of each member, checked before anything is fitted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imet_ray.errors import DataError
from imet_ray.prediction.metrics import FLOAT16_ONE

ROWS = 8192  # pictures per block of the checks


@dataclass(frozen=True)
class Member:
    """One variant's, or another tool's, out-of-fold predictions."""

    name: str
    probs: np.ndarray  # (N, C) float16 or float32, memory-mapped or not
    ids: Sequence[str] | None = None  # (N,) of the rows; where known they are compared
    margins: bool = False  # `probs` holds p - t in -1..1: the member's threshold is already subtracted
    folds_digest: str | None = None  # of the folds.csv that it was trained with, where known
    seconds: float | None = None  # a test picture takes, through all its checkpoints and views
    size: int | None = None  # bytes of its checkpoints
    trials: tuple[str, ...] = ()  # one per fold; none where another tool made the predictions
    checkpoints: tuple[str, ...] = ()  # sha256 of each one's weights


def check_members(
    members: Sequence[Member], labels: np.ndarray, folds: np.ndarray, folds_digest: str | None = None
) -> None:
    """Raise DataError, which names the member and what is wrong, where predictions cannot be blended.

    Args:
        labels: (N, C) uint8.
        folds: (N,) int64, at least two of them.
        folds_digest: of the folds that the blend is nested over.
    """
    if not members:
        raise DataError("no member to blend: train a variant on all folds first")
    if folds.shape != labels.shape[:1] or len(np.unique(folds)) < 2:
        raise DataError(
            f"the nested estimate needs a fold per picture and two folds: got {folds.shape} for {len(labels)} "
            f"pictures, folds {np.unique(folds)[:5].tolist()}: train the variants on more folds"
        )
    seen: set[str] = set()
    known = next((member for member in members if member.ids is not None), None)
    for member in members:
        if member.name in seen:
            raise DataError(f"member {member.name} comes twice: name each variant once")
        seen.add(member.name)
        if member.probs.shape != labels.shape:
            raise DataError(
                f"member {member.name} has predictions of shape {member.probs.shape}, labels are {labels.shape}"
            )
        if folds_digest and member.folds_digest and member.folds_digest != folds_digest:
            raise DataError(
                f"member {member.name} was trained with other folds than those given: its predictions are not out "
                "of fold here; use the folds.csv of its run"
            )
        if known is not None and member.ids is not None:
            _check_order(member, known)
        check_numbers(member)


def check_numbers(member: Member) -> None:
    """Raise DataError where a member has numbers that are no probabilities, or no margins."""
    for start in range(0, len(member.probs), ROWS):
        _check_block(member, member.probs[start : start + ROWS])


def _check_block(member: Member, block: np.ndarray) -> None:
    if block.dtype == np.float16 and not member.margins:
        bits = np.ascontiguousarray(block).view(np.uint16)  # fast: of numbers >= 0 they sort like the numbers
        if bits.max(initial=0) <= FLOAT16_ONE:
            return
    low = -1 if member.margins else 0
    if not np.isfinite(block).all():
        raise DataError(f"member {member.name} has NaN or infinite probabilities: predict it again")
    if block.min(initial=0) < low or block.max(initial=0) > 1:
        raise DataError(
            f"member {member.name} has probabilities outside {low}..1: are they logits? store them raw, "
            "after the sigmoid"
        )


def _check_order(member: Member, known: Member) -> None:
    ids, wanted = np.asarray(member.ids), np.asarray(known.ids)
    if len(ids) != len(member.probs):
        raise DataError(f"member {member.name} has {len(ids)} ids for {len(member.probs)} rows")
    if (ids != wanted).any():
        row = int(np.argmax(ids != wanted))
        raise DataError(
            f"member {member.name} has its pictures in another order than {known.name}: row {row} is "
            f"{str(ids[row])!r}, not {str(wanted[row])!r}"
        )
