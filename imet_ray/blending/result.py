"""The blend's findings as data, and as the table that a person reads."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from imet_ray.blending.calibrate import CalibrationFound
from imet_ray.blending.cross_fit import Gain
from imet_ray.blending.label_limits import LimitsFound
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.ensemble import Prefix
from imet_ray.prediction.level2 import Level2
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.pooling import Scale


@dataclass(frozen=True)
class Row:
    """One way of blending under one decoder, or one single member."""

    method: str  # or the member's name
    decoder: str
    is_single: bool
    transferred: bool  # weights fitted under the threshold, used under another decoder
    own: float
    nested: float
    over_uniform: Gain  # nested, under the same decoder
    over_single: Gain  # nested, over the best single member under its better decoder
    weights: tuple[float, ...]
    weights_by_fold: tuple[tuple[float, ...], ...]  # fitted without each fold
    thresholds: tuple[float, ...]  # of the blended probability, one or one per group; none without thresholds
    evaluations: int  # of the search for weights
    curve: tuple[float, ...]  # greedy: the score after each choice


@dataclass(frozen=True)
class Worth:
    """What one member adds to the chosen blend."""

    name: str
    without: float  # nested score without it
    gain: Gain  # of having it


@dataclass(frozen=True)
class Level2Row:
    """What a stacker is worth beside the blend, under one decoder."""

    kind: str  # of STACKERS
    decoder: str
    own: float
    nested: float
    over_best: Gain  # nested, over the best blend
    over_uniform: Gain  # over the best uniform blend; the interval holds for all candidates together
    over_single: Gain  # nested, over the best single member under its better decoder
    used: bool  # it is the ensemble


@dataclass(frozen=True)
class BlendReport:
    """The blend and what it is worth."""

    metric: str  # a key of `METRICS`
    names: tuple[str, ...]
    pictures: int
    n_folds: int
    scale: Scale  # on which members are averaged
    uniform_by_scale: dict[Scale, float]  # nested score of the uniform blend; empty where there was no choice
    rows: tuple[Row, ...]
    chosen: Row  # of the weights
    best: Row  # the best nested one, chosen or not
    best_over_uniform: Gain  # over the best uniform blend; the interval holds for all candidates together
    chosen_over_uniform: Gain  # likewise
    single: Row  # the best single member, under its better decoder
    thresholds: tuple[float, ...]  # of the members: where the search begins
    decoder: Decoder  # of what the ensemble predicts: probabilities, or margins where the members give these
    worth: tuple[Worth, ...]
    correlation: tuple[tuple[float, ...], ...]  # of the members' errors
    threshold_curve: tuple[tuple[float, float], ...]  # threshold of the blended probability, score
    groups: tuple[str, ...]
    disputed: float  # share of the cells
    seconds: tuple[float | None, ...]  # a test picture takes, by member
    prefixes: tuple[Prefix, ...]  # for whoever has no time for all members
    sizes: tuple[int | None, ...]
    remarks: tuple[str, ...]  # what still flatters the nested score
    level2: tuple[Level2Row, ...]
    model: Level2 | None  # the stacker that is the ensemble; None: the weights are
    forced: bool  # the method was asked for, not chosen
    limits: LimitsFound | None = None  # on the number of labels, where they were asked for
    calibration: CalibrationFound | None = (
        None  # of what the ensemble predicts; None where that are no probabilities
    )

    @property
    def nested(self) -> float:
        """The honest estimate for what the ensemble will score."""
        return (self.taken or self.chosen).nested

    @property
    def taken(self) -> Level2Row | None:
        """Of level 2, what the ensemble is."""
        return next((row for row in self.level2 if row.used), None)

    @property
    def weights(self) -> tuple[float, ...]:
        return self.chosen.weights

    def to_dict(self) -> dict[str, Any]:
        """JSON's form, with the text beside it."""
        plain = asdict(replace(self, model=None, calibration=None)) | {
            "decoder": self.decoder.model_dump(mode="json")
        }
        del plain["model"]  # it stands beside the report
        if self.limits is not None:
            plain["limits"] |= {"text": str(self.limits)}
        if self.calibration is not None:
            plain["calibration"] = self.calibration.to_dict()
        plain["prefixes"] = [
            {"members": prefix.members, "decoder": prefix.decoder.name, "own": prefix.score}
            for prefix in self.prefixes
        ]
        return plain | {"nested": self.nested, "verdict": self.verdict(), "text": self.text()}

    def text(self) -> str:
        """A table, and one honest sentence about it."""
        decoders = tuple(dict.fromkeys(row.decoder for row in self.rows))
        blends = [row for row in self.rows if not row.is_single]
        singles = [row for row in self.rows if row.is_single]
        lines = [*_table("method", blends, decoders), "", *_table("single member", singles, decoders)]
        lines.append(
            "own: fitted and scored on the same pictures; nested: fitted without the fold it is scored on"
        )
        if any(row.transferred for row in self.rows):
            lines.append("*: weights fitted under the threshold, used under this decoder")
        lines.append("")
        if len(self.names) > 1:
            lines.append("nested, over uniform weights and over the best single member (95 % over pictures):")
            wide = max(len(row.method) for row in blends) + 2
            for row in blends:
                over = "" if row.method == "uniform" else str(row.over_uniform)
                lines.append(f"  {row.method:<{wide}}{row.decoder:<18}{over:<28}{row.over_single}")
            lines.append("")
        lines += [
            f"level 2, {found.kind}, {found.decoder}: nested {found.nested:.4f}, over the best blend "
            f"{found.over_best}; {'used' if found.used else 'not used'}"
            for found in self.level2
        ]
        lines += [""] * bool(self.level2)
        if self.limits is not None:
            lines += [str(self.limits), ""]
        if self.calibration is not None:
            lines += [str(self.calibration), ""]
        return "\n".join([*lines, *self._weights(), self.verdict(), *self.remarks])

    def _weights(self) -> list[str]:
        lines = []
        wide = max(len(name) for name in self.names) + 2
        gains = {found.name: f"   adds {found.gain}" for found in self.worth}
        by_fold = zip(*self.chosen.weights_by_fold, strict=True)
        for name, weight, fitted in zip(self.names, self.weights, by_fold, strict=True):
            spread = f"{min(fitted):.3f}..{max(fitted):.3f} over folds"
            lines.append(f"  {weight:6.3f}  {name:<{wide}}{spread}{gains.get(name, '')}")
        decoder = self.prefixes[-1].decoder  # of the weights
        lines.append(f"weights: {self.chosen.method}; decoder: {decoder}; averaged as {self.scale}")
        if self.uniform_by_scale:
            scores = ", ".join(f"{score:.4f} as {scale}" for scale, score in self.uniform_by_scale.items())
            lines.append(f"uniform weights, nested, under their better decoder: {scores}")
        return lines

    def verdict(self) -> str:
        """Whether the blend is worth it, in a sentence or two, and what to expect of it."""
        words = ["one variant, nothing to blend"]
        if len(self.names) > 1:
            words = [*self._why(), self._beside_the_best_single()]
        words += self._why_level2()
        return "\n".join([*words, f"its nested {metric_named(self.metric).title}: {self.nested:.4f}"])

    def _why(self) -> list[str]:
        """Why this method was taken; nothing of uniform weights that nothing else came near."""
        chosen, best = self.chosen, self.best
        forced = self.forced and self.taken is None
        if forced and chosen.method == "uniform":
            return ["uniform weights were asked for"]
        if forced:
            return [
                f"{chosen.method} was asked for; over uniform weights under {chosen.decoder}: {chosen.over_uniform}"
            ]
        if chosen.method != "uniform":
            return [f"{chosen.method} beats the best uniform blend by {self.chosen_over_uniform}"]
        if best.method != "uniform":
            return [
                f"no weights beat uniform ones beyond noise ({best.method} under {best.decoder}: "
                f"{self.best_over_uniform}), so uniform ones it is"
            ]
        return []

    def _why_level2(self) -> list[str]:
        """Why level 2 is the ensemble, or is not."""
        if not self.level2:
            return []
        if self.taken is None:
            best = max(self.level2, key=lambda row: row.nested)
            name = f"{best.kind} under {best.decoder}: {best.over_uniform}"
            if self.forced:
                return [f"level 2 is not used, for {self.chosen.method} was asked for"]
            if best.over_uniform.low > 0:
                return [
                    f"level 2 is not better than these weights ({name} over uniform ones), so it is not used"
                ]
            return [f"level 2 does not beat uniform weights beyond noise ({name}), so it is not used"]
        found, why = self.taken, "was asked for" if self.forced else "is the ensemble"
        return [
            f"level 2, {found.kind} under {self.decoder}, {why}: over the best uniform blend {found.over_uniform}; "
            "the weights are for a kernel that runs out of time"
        ]

    def _beside_the_best_single(self) -> str:
        if self.taken is None and max(self.weights) == 1:
            return f"all the weight is on {self.names[self.weights.index(1)]}: there is nothing else in the blend"
        gain = (self.taken or self.chosen).over_single
        beats = "does NOT beat the best single variant:"
        if gain.low > 0:
            beats = "beats the best single variant by"
        elif gain.mean > 0:
            beats = "is above the best single variant, though not beyond noise:"
        what = "the blend" if self.taken is None else "level 2"
        return f"{what} {beats} {gain} (nested, 95 % over pictures)"


def _table(title: str, rows: Sequence[Row], decoders: Sequence[str]) -> list[str]:
    methods = tuple(dict.fromkeys(row.method for row in rows))
    wide = max(len(name) for name in (*methods, title)) + 2
    lines = [
        (" " * wide + "".join(f"{decoder:>20} " for decoder in decoders)).rstrip(),
        (f"{title:<{wide}}" + f"{'own':>10}{'nested':>10} " * len(decoders)).rstrip(),
    ]
    found = {(row.method, row.decoder): row for row in rows}
    for method in methods:
        line = f"{method:<{wide}}"
        for decoder in decoders:
            row = found[method, decoder]
            line += f"{row.own:>10.4f}{row.nested:>10.4f}{'*' if row.transferred else ' '}"
        lines.append(line.rstrip())
    return lines
