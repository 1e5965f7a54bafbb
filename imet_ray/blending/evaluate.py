"""What a blend is worth: its own score, and the nested one that does not flatter it.

Own: weights and thresholds fitted and scored on the same out-of-fold predictions. Nested: fitted on all folds but
one, scored on that one. Both decoders are scored. The weights for expected F2 are those fitted under the threshold
objective; under it a single member or uniform weights have nothing tuned, so their own score is their nested one.
What optimism is left: the choice of decoder and of uniform or fitted weights is the best nested one of four, and
whatever the caller remarks (hparams and epochs that were picked on the pictures that are scored).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imet_ray.blending.fit import uniform
from imet_ray.blending.scoring import (
    Candidates,
    bootstrap,
    by_expected_f2,
    by_threshold,
    nested_by_expected_f2,
    nested_by_threshold,
    tune,
)
from imet_ray.decode import Decoder
from imet_ray.errors import DataError

ROWS = 8192  # pictures a block of the checks


@dataclass(frozen=True)
class Member:
    """One variant's out-of-fold probabilities."""

    name: str
    probs: np.ndarray  # (N, C) float16, memory-mapped or not
    ids: Sequence[str] | None = None  # (N,) of the rows; where known they are compared


@dataclass(frozen=True)
class Score:
    """F2 of one way of blending, under one decoder."""

    own: float
    nested: float
    of: str  # fitted | uniform | the variant's name


@dataclass(frozen=True)
class Gain:
    """How far one is above another, nested: mean and bootstrap 95 % interval over pictures."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class BlendReport:
    """The blend and what it is worth."""

    names: tuple[str, ...]
    weights: tuple[float, ...]  # that the ensemble uses
    weights_are: str  # fitted | uniform
    weights_by_fold: tuple[tuple[float, ...], ...]  # fitted without each fold
    thresholds: tuple[float, ...]  # each member's own best
    decoder: Decoder
    scores: dict[str, dict[str, Score]]  # decoder -> fitted | uniform | single: the best one by its own score
    best_single: str  # under the decoder that suits it
    members: dict[str, dict[str, float]]  # each member's own F2 by decoder
    over_uniform: Gain  # fitted weights over uniform ones, under `decoder`
    remarks: tuple[str, ...]  # what still flatters the nested score
    over_single: Gain  # the blend over the best single variant, each under its better decoder

    @property
    def nested(self) -> float:
        """The honest estimate for what the ensemble will score."""
        return self.scores[self.decoder.name][self.weights_are].nested

    def to_dict(self) -> dict[str, Any]:
        """JSON's form, with the text beside it."""
        plain = asdict(self) | {"decoder": self.decoder.model_dump()}
        return plain | {"nested": self.nested, "text": self.text()}

    def text(self) -> str:
        """A table, and one honest sentence about it."""
        decoders = tuple(self.scores)
        single = " / ".join(dict.fromkeys(self.scores[decoder]["single"].of for decoder in decoders))
        titles = {
            "fitted": "blend, fitted weights",
            "uniform": "blend, uniform weights",
            "single": f"best single: {single}",
        }
        wide = max(len(title) for title in titles.values()) + 2
        lines = [
            " " * wide + "".join(f"{decoder:>20}" for decoder in decoders),
            " " * wide + f"{'own':>10}{'nested':>10}" * len(decoders),
        ]
        for kind, title in titles.items():
            found = [self.scores[decoder][kind] for decoder in decoders]
            lines.append(f"{title:<{wide}}" + "".join(f"{s.own:>10.4f}{s.nested:>10.4f}" for s in found))
        lines += [
            "own: fitted and scored on the same pictures; nested: fitted without the fold it is scored on",
            "the weights are fitted under the threshold decoder and used for both",
            "",
        ]
        for name, weight, threshold in zip(self.names, self.weights, self.thresholds, strict=True):
            lines.append(f"  {weight:6.3f}  {name}  (threshold {threshold:.3f})")
        lines.append(f"weights: {self.weights_are}; decoder: {self.decoder.name}")
        if len(self.names) > 1:
            lines.append(f"fitted weights over uniform ones: {self.over_uniform} (nested)")
        lines += [self.verdict(), *self.remarks]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether the blend is worth it, in one sentence, and what to expect of it."""
        if len(self.names) == 1:
            return f"one variant, nothing to blend\nits nested F2: {self.nested:.4f}"
        gain = self.over_single
        if gain.low > 0:
            beats = "beats the best single variant by"
        elif gain.mean > 0:
            beats = "is above the best single variant, though not beyond noise:"
        else:
            beats = "does NOT beat the best single variant:"
        return f"the blend {beats} {gain} (nested, 95 % over pictures)\nits nested F2: {self.nested:.4f}"


def evaluate(
    members: Sequence[Member],
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    seed: int,
    remarks: Sequence[str] = (),
) -> BlendReport:
    """Fit, score honestly, choose.

    The ensemble uses the decoder whose nested score is better, and fitted weights only where they beat uniform
    ones in the nested estimate.

    Args:
        members: M of them, in one order of rows.
        labels: (N, C) uint8.
        folds: (N,) int64, at least two of them.
        seed: of the bootstrap.
        remarks: what flatters the nested score all the same, for the report.

    Raises:
        DataError: naming the member whose predictions cannot be used.
    """
    check_members(members, labels)
    if folds.shape != labels.shape[:1] or len(np.unique(folds)) < 2:
        raise DataError(
            f"the nested estimate needs a fold a picture and two folds: got {folds.shape} for {len(labels)} "
            f"pictures, folds {np.unique(folds)[:5].tolist()}: train the variants on more folds"
        )
    probs = [member.probs for member in members]
    names = tuple(member.name for member in members)
    whole = tune(probs, labels)
    even = uniform(len(members))
    own, nested = {}, {}
    own["threshold"] = by_threshold(probs, labels, whole.cells, whole.weights)
    nested["threshold"], by_fold = nested_by_threshold(probs, labels, folds)
    own["expected-f2"] = Candidates(
        by_expected_f2(probs, labels, whole.weights),
        by_expected_f2(probs, labels, even),
        tuple(by_expected_f2([p], labels, np.ones(1)) for p in probs),
    )
    nested["expected-f2"] = Candidates(
        nested_by_expected_f2(probs, labels, folds, by_fold),
        own["expected-f2"].uniform,
        own["expected-f2"].singles,
    )
    best = {decoder: int(np.argmax([s.mean() for s in found.singles])) for decoder, found in own.items()}
    scores = {
        decoder: {
            "fitted": _score(own[decoder].fitted, nested[decoder].fitted, "fitted"),
            "uniform": _score(own[decoder].uniform, nested[decoder].uniform, "uniform"),
            "single": _score(own[decoder].singles[i], nested[decoder].singles[i], names[i]),
        }
        for decoder, i in best.items()
    }
    # of equals the first, so uniform
    name, weights_are = max(
        ((decoder, kind) for kind in ("uniform", "fitted") for decoder in scores),
        key=lambda choice: scores[choice[0]][choice[1]].nested,
    )
    weights = whole.weights if weights_are == "fitted" else even
    # the threshold of the blend's averaged probabilities: sum w (p - t) > 0 is sum w p > sum w t
    decoder_used = (
        Decoder(name="threshold", threshold=float(weights @ np.array(whole.thresholds)))
        if name == "threshold"
        else Decoder(name="expected-f2")
    )
    single_decoder = max(scores, key=lambda decoder: scores[decoder]["single"].nested)
    single = nested[single_decoder].singles[best[single_decoder]]
    chosen = nested[name].fitted if weights_are == "fitted" else nested[name].uniform
    rng = np.random.default_rng(seed)
    return BlendReport(
        names=names,
        weights=tuple(weights.tolist()),
        weights_are=weights_are,
        weights_by_fold=tuple(tuple(w.tolist()) for w in by_fold.values()),
        thresholds=whole.thresholds,
        decoder=decoder_used,
        scores=scores,
        best_single=scores[single_decoder]["single"].of,
        members={
            variant: {decoder: float(own[decoder].singles[i].mean()) for decoder in own}
            for i, variant in enumerate(names)
        },
        over_uniform=Gain(*bootstrap(nested[name].fitted - nested[name].uniform, rng)),
        remarks=tuple(remarks),
        over_single=Gain(*bootstrap(chosen - single, rng)),
    )


def _score(own: np.ndarray, nested: np.ndarray, of: str) -> Score:
    return Score(float(own.mean()), float(nested.mean()), of)


def check_members(members: Sequence[Member], labels: np.ndarray) -> None:
    """Refuse predictions that cannot be blended.

    Raises:
        DataError: naming the member and what is wrong with it.
    """
    if not members:
        raise DataError("no member to blend: train a variant on all folds first")
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
        if known is not None and member.ids is not None:
            _check_order(member, known)
        for start in range(0, len(labels), ROWS):
            block = member.probs[start : start + ROWS]
            if not np.isfinite(block).all():
                raise DataError(f"member {member.name} has NaN or infinite probabilities: predict it again")
            if (block < 0).any() or (block > 1).any():
                raise DataError(
                    f"member {member.name} has probabilities outside 0..1: are they logits? store them raw, "
                    "after the sigmoid"
                )


def _check_order(member: Member, known: Member) -> None:
    ids, wanted = np.asarray(member.ids), np.asarray(known.ids)
    if len(ids) != len(member.probs):
        raise DataError(f"member {member.name} has {len(ids)} ids for {len(member.probs)} rows")
    if len(ids) != len(wanted) or (ids != wanted).any():
        row = int(np.argmax(ids != wanted)) if len(ids) == len(wanted) else min(len(ids), len(wanted))
        raise DataError(
            f"member {member.name} has its pictures in another order than {known.name}: row {row} is "
            f"{str(ids[row])!r}, not {str(wanted[row])!r}"
        )
