"""What a blend is worth: its own score, and the nested one that does not flatter it.

Own: weights and thresholds fitted and scored on the same out-of-fold predictions. Nested: fitted on all folds but
one, scored on that one. Both decoders are scored; the weights for expected F2 are those fitted under the threshold
objective.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imet_ray.blending.cells import DisputedCells
from imet_ray.blending.fit import fit_weights, uniform
from imet_ray.decode import Decoder, at_least_one, decode_expected_f2
from imet_ray.errors import DataError
from imet_ray.metrics import best_threshold, f2_per_image

ROWS = 8192  # pictures a block
RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Member:
    """One variant's out-of-fold probabilities."""

    name: str
    probs: np.ndarray  # (N, C) float16, in the order of train.csv


@dataclass(frozen=True)
class Score:
    """F2 of one way of blending, under one decoder."""

    own: float
    nested: float


@dataclass(frozen=True)
class Gain:
    """How much the blend is above something else, nested: mean and bootstrap 95 % interval over pictures."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BlendReport:
    """The blend and what it is worth."""

    names: tuple[str, ...]
    weights: tuple[float, ...]  # that the ensemble uses
    weights_are: str  # fitted | uniform
    weights_by_fold: tuple[tuple[float, ...], ...]  # fitted without each fold
    thresholds: tuple[float, ...]  # each member's own best
    decoder: Decoder
    scores: dict[str, dict[str, Score]]  # decoder -> fitted | uniform | best single
    best_single: str
    members: dict[str, dict[str, float]]  # each member's own F2 by decoder
    over_uniform: Gain
    over_single: Gain

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
        lines = [
            f"{'':<34}{'threshold':^20}{'expected-F2':^20}",
            f"{'':<34}" + f"{'own':>9} {'nested':>9} " * 2,
        ]
        for kind, title in (
            ("fitted", "blend, fitted weights"),
            ("uniform", "blend, uniform weights"),
            ("single", f"best single: {self.best_single}"[:33]),
        ):
            row = "".join(
                f"{self.scores[decoder][kind].own:>9.4f} {self.scores[decoder][kind].nested:>9.4f} "
                for decoder in ("threshold", "expected-f2")
            )
            lines.append(f"{title:<34}{row}")
        lines.append(
            "own: fitted and scored on the same pictures; nested: fitted without the fold it is scored on"
        )
        lines.append("")
        for name, weight, threshold in zip(self.names, self.weights, self.thresholds, strict=True):
            lines.append(f"  {weight:6.3f}  {name}  (threshold {threshold:.3f})")
        lines.append(f"weights: {self.weights_are}; decoder: {self.decoder.name}")
        lines.append(self.verdict())
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether the blend is worth it, in one sentence."""
        gain = self.over_single
        interval = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        if len(self.names) == 1:
            return f"one variant, nothing to blend: nested F2 {self.nested:.4f}"
        if gain.low > 0:
            beats = "beats the best single variant by"
        elif gain.mean > 0:
            beats = "is above the best single variant, though not beyond noise:"
        else:
            beats = "does NOT beat the best single variant:"
        return f"the blend {beats} {interval} (nested, 95 % over pictures): nested F2 {self.nested:.4f}"


def evaluate(members: Sequence[Member], labels: np.ndarray, folds: np.ndarray, *, seed: int) -> BlendReport:
    """Fit, score honestly, choose.

    The ensemble uses the decoder whose nested score is better, and fitted weights only where they beat uniform
    ones in the nested estimate.

    Args:
        labels: (N, C) uint8.
        folds: (N,) int64.
        seed: of the bootstrap.

    Raises:
        DataError: naming the member whose predictions cannot be used.
    """
    check_members(members, labels)
    probs = [member.probs for member in members]
    thresholds = [best_threshold(p, labels)[0] for p in probs]
    cells = DisputedCells.build(probs, thresholds, labels)
    fitted = fit_weights(cells).weights
    even = uniform(len(members))
    own_threshold = {
        "fitted": cells.f2_per_image(fitted),
        "uniform": cells.f2_per_image(even),
        **{m.name: cells.f2_per_image(np.eye(len(members))[i]) for i, m in enumerate(members)},
    }
    own_expected = {
        "fitted": _expected(probs, fitted, labels),
        "uniform": _expected(probs, even, labels),
        **{m.name: _expected([m.probs], np.ones(1), labels) for m in members},
    }
    nested, by_fold = _nested(members, labels, folds)
    best = {
        decoder: max(members, key=lambda m, own=own: own[m.name].mean()).name  # type: ignore[misc]
        for decoder, own in (("threshold", own_threshold), ("expected-f2", own_expected))
    }
    scores: dict[str, dict[str, Score]] = {}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for decoder, own in (("threshold", own_threshold), ("expected-f2", own_expected)):
        if decoder == "threshold":
            honest = nested
        else:  # nothing is tuned for one member or uniform weights; fitted weights come from the other folds
            honest = own_expected | {"fitted": _expected_nested(probs, by_fold, labels, folds)}
        pictures[decoder] = {
            "fitted": honest["fitted"],
            "uniform": honest["uniform"],
            "single": honest[best[decoder]],
        }
        scores[decoder] = {
            kind: Score(float(own[best[decoder] if kind == "single" else kind].mean()), float(found.mean()))
            for kind, found in pictures[decoder].items()
        }
    name, weights_are = max(
        ((decoder, kind) for decoder in scores for kind in ("uniform", "fitted")),
        key=lambda choice: scores[choice[0]][choice[1]].nested,
    )
    weights = fitted if weights_are == "fitted" else even
    # the threshold of the blend's averaged probabilities: sum w (p - t) > 0 is sum w p > sum w t
    decoder_used = Decoder(
        name="threshold" if name == "threshold" else "expected-f2",
        threshold=float(weights @ np.array(thresholds)) if name == "threshold" else None,
    )
    single_decoder = max(scores, key=lambda decoder: scores[decoder]["single"].nested)
    rng = np.random.default_rng(seed)
    blended = pictures[name][weights_are]
    return BlendReport(
        names=tuple(member.name for member in members),
        weights=tuple(weights.tolist()),
        weights_are=weights_are,
        weights_by_fold=tuple(tuple(w.tolist()) for w in by_fold.values()),
        thresholds=tuple(thresholds),
        decoder=decoder_used,
        scores=scores,
        best_single=best[single_decoder],
        members={
            m.name: {
                "threshold": float(own_threshold[m.name].mean()),
                "expected-f2": float(own_expected[m.name].mean()),
            }
            for m in members
        },
        over_uniform=_bootstrap(blended - pictures[name]["uniform"], rng),
        over_single=_bootstrap(blended - pictures[single_decoder]["single"], rng),
    )


def blended_probs(probs: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The weighted mean of M arrays (n, C): float32."""
    total = np.float32(weights[0]) * probs[0].astype(np.float32)
    for p, weight in zip(probs[1:], weights[1:], strict=True):
        total += np.float32(weight) * p.astype(np.float32)
    return np.asarray(total)


def check_members(members: Sequence[Member], labels: np.ndarray) -> None:
    """Refuse predictions that cannot be blended.

    Raises:
        DataError: naming the member and what is wrong with it.
    """
    if not members:
        raise DataError("no member to blend")
    for member in members:
        if member.probs.shape != labels.shape:
            raise DataError(
                f"member {member.name} has predictions of shape {member.probs.shape}, labels are {labels.shape}"
            )
        for start in range(0, len(labels), ROWS):
            block = member.probs[start : start + ROWS]
            if not np.isfinite(block).all():
                raise DataError(f"member {member.name} has NaN or infinite probabilities")
            if (block < 0).any() or (block > 1).any():
                raise DataError(f"member {member.name} has probabilities outside 0..1")


def _expected(probs: Sequence[np.ndarray], weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F2 of each picture, decoded by expected F2: (N,) float64."""
    parts = []
    for start in range(0, len(labels), ROWS):
        block = slice(start, start + ROWS)
        mixed = blended_probs([p[block] for p in probs], weights)
        parts.append(f2_per_image(at_least_one(mixed, decode_expected_f2(mixed)), labels[block]))
    return np.concatenate(parts)


def _expected_nested(
    probs: Sequence[np.ndarray], by_fold: dict[int, np.ndarray], labels: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    scores = np.zeros(len(labels))
    for fold, weights in by_fold.items():
        rows = np.flatnonzero(folds == fold)
        scores[rows] = _expected([p[rows] for p in probs], weights, labels[rows])
    return scores


def _nested(
    members: Sequence[Member], labels: np.ndarray, folds: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """F2 of each picture with thresholds and weights fitted without its fold, and the weights of each fold.

    The first is by `fitted`, `uniform` and the members' names.
    """
    probs, n_members = [member.probs for member in members], len(members)
    found = {kind: np.zeros(len(labels)) for kind in ("fitted", "uniform", *(m.name for m in members))}
    weights: dict[int, np.ndarray] = {}
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        thresholds = [best_threshold(p[outside], labels[outside])[0] for p in probs]
        fitted = fit_weights(DisputedCells.build([p[outside] for p in probs], thresholds, labels[outside]))
        weights[int(fold)] = fitted.weights
        cells = DisputedCells.build([p[inside] for p in probs], thresholds, labels[inside])
        found["fitted"][inside] = cells.f2_per_image(fitted.weights)
        found["uniform"][inside] = cells.f2_per_image(uniform(n_members))
        for i, member in enumerate(members):
            found[member.name][inside] = cells.f2_per_image(np.eye(n_members)[i])
    return found, weights


def _bootstrap(differences: np.ndarray, rng: np.random.Generator) -> Gain:
    """Mean of (N,) differences, with its 95 % interval over resampled pictures."""
    n = len(differences)
    means = np.array([differences[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Gain(float(differences.mean()), float(low), float(high))
