"""The blend's findings as data, and as the table that a person reads."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imet_ray.blending.cross_fit import Gain
from imet_ray.blending.deadline_order import Step
from imet_ray.prediction.decode import Decoder
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
class Level2:
    """What stacking is worth beside the blend."""

    kind: str
    decoder: str
    own: float
    nested: float
    over_best: Gain  # nested, over the best blend


@dataclass(frozen=True)
class BlendReport:
    """The blend and what it is worth."""

    metric: str  # for people: "F2"
    names: tuple[str, ...]
    pictures: int
    n_folds: int
    scale: Scale  # on which members are averaged
    uniform_by_scale: dict[Scale, float]  # nested score of the uniform blend; empty where there was no choice
    rows: tuple[Row, ...]
    chosen: Row
    best: Row  # the best nested one, chosen or not
    best_over_uniform: Gain  # over the best uniform blend; the interval holds for all candidates together
    chosen_over_uniform: Gain  # likewise
    single: Row  # the best single member, under its better decoder
    thresholds: tuple[float, ...]  # of the members: where the search begins
    decoder: Decoder  # of probabilities, or of margins where the members give these
    worth: tuple[Worth, ...]
    correlation: tuple[tuple[float, ...], ...]  # of the members' errors
    threshold_curve: tuple[tuple[float, float], ...]  # threshold of the blended probability, score
    groups: tuple[str, ...]
    disputed: float  # share of the cells
    seconds: tuple[float | None, ...]  # a test picture takes, by member
    prefixes: tuple[Step, ...]  # for whoever has no time for all members
    sizes: tuple[int | None, ...]
    remarks: tuple[str, ...]  # what still flatters the nested score
    level2: tuple[Level2, ...]
    forced: bool  # the method was asked for, not chosen

    @property
    def nested(self) -> float:
        """The honest estimate for what the ensemble will score."""
        return self.chosen.nested

    @property
    def weights(self) -> tuple[float, ...]:
        return self.chosen.weights

    def to_dict(self) -> dict[str, Any]:
        """JSON's form, with the text beside it."""
        plain = asdict(self) | {"decoder": self.decoder.model_dump(mode="json")}
        plain["prefixes"] = [
            {"members": list(step.members), "decoder": step.decoder.name, "own": step.score}
            for step in self.prefixes
        ]
        return plain | {"nested": self.nested, "verdict": self.verdict(), "text": self.text()}

    def text(self) -> str:
        """A table, and one honest sentence about it."""
        decoders = tuple(dict.fromkeys(row.decoder for row in self.rows))
        blends = [row for row in self.rows if not row.is_single]
        lines = [
            *_table("method", blends, decoders),
            "",
            *_table("single member", [row for row in self.rows if row.is_single], decoders),
            "own: fitted and scored on the same pictures; nested: fitted without the fold it is scored on",
        ]
        if any(row.transferred for row in self.rows):
            lines.append("*: weights fitted under the threshold, used under this decoder")
        lines.append("")
        if len(self.names) > 1:
            lines += ["nested, over uniform weights and over the best single member (95 % over pictures):"]
            wide = max(len(row.method) for row in blends) + 2
            for row in blends:
                over = "" if row.method == "uniform" else str(row.over_uniform)
                lines.append(f"  {row.method:<{wide}}{row.decoder:<18}{over:<28}{row.over_single}")
            lines.append("")
        for found in self.level2:
            lines.append(
                f"level 2, {found.kind}, {found.decoder}: nested {found.nested:.4f}, over the best blend "
                f"{found.over_best}; never used by the ensemble"
            )
        if self.level2:
            lines.append("")
        lines += self._weights()
        lines += [self.verdict(), *self.remarks]
        return "\n".join(lines)

    def _weights(self) -> list[str]:
        lines = []
        wide = max(len(name) for name in self.names) + 2
        worth = {found.name: found for found in self.worth}
        for i, name in enumerate(self.names):
            by_fold = [weights[i] for weights in self.chosen.weights_by_fold]
            line = (
                f"  {self.weights[i]:6.3f}  {name:<{wide}}{min(by_fold):.3f}..{max(by_fold):.3f} over folds"
            )
            if name in worth:
                line += f"   adds {worth[name].gain}"
            lines.append(line)
        lines.append(f"weights: {self.chosen.method}; decoder: {self.decoder}; averaged as {self.scale}")
        if self.uniform_by_scale:
            scores = ", ".join(f"{score:.4f} as {scale}" for scale, score in self.uniform_by_scale.items())
            lines.append(f"uniform weights, nested, under their better decoder: {scores}")
        return lines

    def verdict(self) -> str:
        """Whether the blend is worth it, in a sentence or two, and what to expect of it."""
        ending = f"its nested {self.metric}: {self.nested:.4f}"
        if len(self.names) == 1:
            return f"one variant, nothing to blend\n{ending}"
        lines = []
        if self.forced and self.chosen.method == "uniform":
            lines.append("uniform weights were asked for")
        elif self.forced:
            lines.append(
                f"{self.chosen.method} was asked for; over uniform weights under {self.chosen.decoder}: "
                f"{self.chosen.over_uniform}"
            )
        elif self.best.method != "uniform" and self.chosen.method == "uniform":
            lines.append(
                f"no weights beat uniform ones beyond noise ({self.best.method} under {self.best.decoder}: "
                f"{self.best_over_uniform}), so uniform ones it is"
            )
        elif self.chosen.method != "uniform":
            lines.append(f"{self.chosen.method} beats the best uniform blend by {self.chosen_over_uniform}")
        gain = self.chosen.over_single
        if max(self.weights) == 1:
            only = self.names[self.weights.index(1)]
            return "\n".join(
                [*lines, f"all the weight is on {only}: there is nothing else in the blend", ending]
            )
        if gain.low > 0:
            beats = "beats the best single variant by"
        elif gain.mean > 0:
            beats = "is above the best single variant, though not beyond noise:"
        else:
            beats = "does NOT beat the best single variant:"
        lines += [f"the blend {beats} {gain} (nested, 95 % over pictures)", ending]
        return "\n".join(lines)


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
