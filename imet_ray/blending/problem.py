"""What a blend is asked: its members and the truth about them, and what of it a fit needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.members import Member, check_members
from imet_ray.blending.options import BY_HAND, BlendOptions
from imet_ray.blending.threshold_range import Sample, ThresholdRange, single_cells
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.pooling import Scale

SAMPLE = 4096  # pictures for sample decoders and for where thresholds are searched
ONE = np.ones(1)  # the weights of a single member


@dataclass(frozen=True)
class BlendProblem:
    """All that a blend is fitted and judged on."""

    members: Sequence[Member]  # M of them, in one order of rows
    labels: np.ndarray  # (N, C) uint8
    folds: np.ndarray  # (N,) int64, at least two of them
    metric: str  # a key of `METRICS`
    seed: int = 0  # of the searches, the sample and the bootstrap
    label_groups: Sequence[str] = ()  # (C,) names; without two of them there are no group thresholds
    folds_digest: str | None = None
    images: int = 0  # test pictures
    remarks: Sequence[str] = ()  # what flatters the nested score all the same, for the report

    def check(self) -> None:
        """Raise DataError where `check_members` refuses a member."""
        check_members(self.members, self.labels, self.folds, self.folds_digest)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def values(self) -> list[np.ndarray]:
        """M arrays (N, C)."""
        return [member.probs for member in self.members]

    @property
    def margins(self) -> bool:
        """The members' thresholds are subtracted already."""
        return self.members[0].margins

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The names of the label groups; none where there are no two."""
        names = sorted(set(self.label_groups))
        return tuple(names) if len(names) > 1 else ()

    @cached_property
    def groups(self) -> np.ndarray:
        """(C,) int, the group of each label; all 0 where there are no groups."""
        if not self.group_names:
            return np.zeros(self.labels.shape[1], dtype=np.int64)
        return np.array([self.group_names.index(name) for name in self.label_groups])

    @cached_property
    def mean_labels(self) -> float:
        """Labels per picture."""
        return float(self.labels.sum() / len(self.labels))

    @cached_property
    def fold_numbers(self) -> list[int]:
        return [int(fold) for fold in np.unique(self.folds)]

    @cached_property
    def sample(self) -> Sample:
        return self.sample_of(SAMPLE)

    def sample_of(self, pictures: int) -> Sample:
        """So many pictures; all of them, where there are fewer."""
        rows = np.sort(np.random.default_rng(self.seed).permutation(len(self.labels))[:pictures])
        probs = np.stack([np.asarray(value[rows]) for value in self.values])
        return Sample(rows, probs, self.labels[rows], self.folds[rows])

    @cached_property
    def singles(self) -> tuple[DisputedCells, ...]:
        """The cells of each member by itself; none where thresholds are subtracted already."""
        if self.margins:
            return ()
        return tuple(
            single_cells(probs, seen, self.labels, groups=self.groups, metric=self.metric)
            for probs, seen in zip(self.values, self.sample.probs, strict=True)
        )

    def cells_within(self, within: ThresholdRange | None, scale: Scale) -> DisputedCells:
        """The cells in dispute while thresholds stay in a range; None: they stay where they are subtracted."""
        return DisputedCells.build(
            self.values,
            [0.0] * len(self.members) if within is None else within.thresholds,
            self.labels,
            half_range=0.0 if within is None else within.half,
            scale=scale,
            groups=self.groups,
            metric=self.metric,
        )


@dataclass(frozen=True)
class FitProblem:
    """What is fitted on: nothing of size N x C, so that it can be sent to other processes once."""

    cells: DisputedCells
    folds: np.ndarray  # (N,) int64
    groups: np.ndarray  # (C,) int, the group of each label
    sample: Sample
    seed: int
    min_weight: float = 0.0
    max_members: int | None = None
    singles: tuple[DisputedCells, ...] = ()  # `BlendProblem.singles`
    range: ThresholdRange | None = None  # of thresholds; None where they are subtracted already
    margins: bool = False  # `BlendProblem.margins`
    given: Mapping[str, np.ndarray] = field(
        default_factory=dict
    )  # weights (M,) that are not fitted, by method
    begin: tuple[np.ndarray, ...] = ()  # weights (M,) where searches start, beside their own starts
    threshold: float | None = None  # that the blended probability has, if it is not fitted

    @classmethod
    def on(cls, scale: Scale, problem: BlendProblem, options: BlendOptions) -> "FitProblem":
        """With members averaged on a scale."""
        within, given = None, options.weights_of(problem.names)
        if not problem.margins:
            within = ThresholdRange.around(
                problem.sample,
                scale,
                groups=problem.groups,
                mean_labels=problem.mean_labels,
                metric=problem.metric,
            )
        return cls(
            cells=problem.cells_within(within, scale),
            folds=problem.folds,
            groups=problem.groups,
            sample=problem.sample,
            seed=problem.seed,
            min_weight=options.min_weight,
            max_members=options.max_members,
            singles=problem.singles,
            range=within,
            margins=problem.margins,
            given=given,
            begin=tuple(weights for method, weights in given.items() if method != BY_HAND),
            threshold=options.threshold,
        )

    @property
    def scale(self) -> Scale:
        return self.cells.scale

    @property
    def metric(self) -> str:
        return self.cells.metric

    def decided(self, decoder: Decoder) -> Decoder:
        """The decoder that was fitted, or the threshold that is given. It gives empty sets where pictures have none.

        So it does of margins: by the 2019 solution's rule a picture without any above 0 has no label.
        """
        negatives = self.margins or bool((self.cells.true == 0).any())
        by_hand = {} if self.threshold is None else {"threshold": self.threshold}
        return decoder.model_copy(update={"negatives": negatives} | by_hand)

    def widened(self, problem: BlendProblem, down: bool, up: bool) -> "FitProblem | None":
        """With a wider range of thresholds; None where it cannot be wider."""
        if self.range is None:
            return None
        wider = self.range.wider(down, up)
        if wider == self.range:
            return None
        return replace(self, cells=problem.cells_within(wider, self.scale), range=wider)

    def deciding(
        self, weights: np.ndarray, *, without: int | None = None
    ) -> tuple[DisputedCells, np.ndarray]:
        """The cells that these weights decide, and the weights for them. A single member has cells of its own.

        Args:
            without: the fold whose pictures are left out.
        """
        member = int(np.argmax(weights))
        cells = self.cells
        if self.singles and weights[member] == 1:  # its best threshold may lie out of the blend's range
            cells, weights = self.singles[member], ONE
        return self.without(without, cells), weights

    def without(self, fold: int | None, cells: DisputedCells) -> DisputedCells:
        """The cells of the pictures of the other folds."""
        return cells if fold is None else cells.pictures(np.flatnonzero(self.folds != fold))
