"""What the figures of a report may draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imet_ray.prediction.metrics import Metric
from imet_ray.reporting.error_analysis import LabelCounts
from imet_ray.reporting.run_status import TrialStatus
from imet_ray.specs import AddedLabels
from imet_ray.storage.added_labels import Added
from imet_ray.storage.results import Standing


@dataclass(frozen=True)
class Student:
    """A variant that learnt from pseudo-labels."""

    variant: str
    how: AddedLabels
    by_fold: Sequence[Added]
    pictures: int  # that its trials were trained on, together
    without: str | None  # the variant that differs in nothing but them


@dataclass(frozen=True)
class ReportData:
    """What a figure may draw. What is not known is empty, or None."""

    metric: Metric
    blend: Mapping[str, Any]  # `BlendReport.to_dict()`
    variants: Sequence[str] = ()  # names; their order decides their colours
    leaderboard: Sequence[Standing] = ()
    trials: Sequence[TrialStatus] = ()
    counts: LabelCounts | None = None  # out of fold
    label_names: Sequence[str] = ()
    label_groups: Sequence[str] = ()
    students: Sequence[Student] = ()

    @property
    def taken(self) -> Mapping[str, Any]:
        """What the blend says of the ensemble: of level 2 where that is used, else of the weights; may be empty."""
        used = [row for row in self.blend.get("level2", ()) if row.get("used")]
        weights: Mapping[str, Any] = self.blend.get("chosen", {})
        return used[0] if used else weights

    @property
    def score(self) -> str:
        """The score's name for people."""
        return self.metric.title
