"""What to train next: one Optuna study per variant, then its best set of hparams on the remaining folds.

`Policy` decides, without Ray. All of its state is derived from the Optuna studies and the run directory, so a new
policy continues where a killed one stopped. `imet_ray.cluster.variant_study` knows what is left of one variant;
`imet_ray.cluster.tune_searcher` hands the decisions to Ray Tune.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import optuna

from imet_ray.cluster.study_storage import Studies, journal_studies
from imet_ray.cluster.variant_study import Assignment, VariantStudy
from imet_ray.search_space import SearchSpace
from imet_ray.storage.results import TrialResult, own_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.variant_order import in_order


class Policy:
    """Chooses assignments until every variant is trained on all folds.

    The variant that would take longest gets the free slot. Counted are measured seconds: what is left of it, over all
    slots, and the chain of a searching trial and a promotion that it still has to run, with the chain of those that
    wait for it. So long trials begin early, studies advance together, and the last trials end together (compared with
    the order of the file: `python -m benchmarks.scale simulated`). Within one variant, interrupted trials go first, and
    search goes before promotion. Under a deadline promotions go first of all, because they complete a variant. A trial
    that needs one of another variant is ready as soon as that one is complete, fold by fold.
    """

    def __init__(
        self,
        space: SearchSpace,
        store: RunDirectory,
        data_digest: str,
        folds_digest: str,
        deadline: float | None = None,
        *,
        studies: Studies | None = None,
    ) -> None:
        """
        Args:
            deadline: in `time.time()`'s seconds; no new trial after it.
            studies: None: those of the run's journal.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.store, self.deadline = space, store, deadline
        self.in_flight: dict[str, Assignment] = {}  # by trial_id
        self._results: dict[str, TrialResult] = {}  # that were read so far, by trial_id
        self._stored = studies or journal_studies(store)
        found: dict[str, VariantStudy] = {}
        for variant in in_order(space.variants):
            stored, after = self._stored.study(variant.name), [found[name] for name in variant.after]
            study = VariantStudy(variant, space, (data_digest, folds_digest), stored, after)
            self._refresh_one(study)
            found[variant.name] = study
        self.studies = {variant.name: found[variant.name] for variant in space.variants}
        self._followers = {name: _followers(study, list(found.values())) for name, study in found.items()}

    def next(self) -> Assignment | Literal["finished"] | None:
        """The next trial, None if it depends on one that still runs, "finished" if no more will come."""
        if self.deadline is not None and time.time() > self.deadline:
            return "finished"
        while (study := self._chosen()) is not None:
            if study.waiting:
                trial_id = next(iter(study.waiting))
                self.in_flight[trial_id] = study.waiting.pop(trial_id)
                return self.in_flight[trial_id]
            study.ask()
            self._refresh(study)  # nothing waits after it if the set was tried before, or is impossible
            self._stored.save()
        return None if self.in_flight else "finished"

    def next_is_last(self) -> bool:
        """True if nothing is left to train."""
        return not self.in_flight and self._chosen() is None

    @property
    def in_vain(self) -> tuple[str, ...]:
        """A line for each variant that cannot be trained, because one that it waits for has failed."""
        found = [(name, study.waits_in_vain_for) for name, study in self.studies.items()]
        return tuple(
            f"cannot begin: {name}, because {other} failed" for name, other in found if other is not None
        )

    def report(self, trial_id: str, epoch: int, score: float) -> None:
        """An epoch's score of a searching trial, for Optuna's plots."""
        assignment = self.in_flight.get(trial_id)
        if assignment is not None and assignment.phase == "search":
            self.studies[assignment.spec.variant.name].report(trial_id, epoch, score)

    def done(self, trial_id: str) -> None:
        """A trial has ended; its result is in the store."""
        assignment = self.in_flight.pop(trial_id, None)
        if assignment is not None:
            self._results.pop(trial_id, None)
            self._refresh(self.studies[assignment.spec.variant.name])
            self._stored.save()

    def _chosen(self) -> VariantStudy | None:
        """The study that gets the free slot, of those that have something to train or to ask for."""
        seconds, slots = self._seconds_per_trial(), len(self.in_flight) + 1
        chains = self._chains(seconds)
        running = Counter(assignment.spec.variant.name for assignment in self.in_flight.values())

        def need(study: VariantStudy) -> tuple[bool, float, int]:
            completes = self.deadline is not None and study.best is not None
            name, own = study.variant.name, running[study.variant.name]
            return completes, (study.left + own) * seconds[name] + slots * chains[name], -own

        ready = [study for study in self.studies.values() if study.waiting or study.can_ask]
        return max(ready, key=need, default=None)

    def _chains(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """By variant, seconds: a searching trial and a promotion, one after the other, and then the longest such chain
        of those that wait for it."""
        found: dict[str, float] = {}
        for variant in reversed(in_order(self.space.variants)):
            name, followers = variant.name, self._followers[variant.name]
            own = seconds[name] * (1 if self.studies[name].best else 2)
            found[name] = own + max((found[one.variant.name] for one in followers), default=0.0)
        return found

    def _seconds_per_trial(self) -> dict[str, float]:
        """By variant: as measured, or estimated from other variants' trials by epochs and pixels."""
        studies = self.studies.items()
        work = {name: float(one.variant.epochs * one.variant.image_size**2) for name, one in studies}
        measured = {name: one.seconds for name, one in studies if one.seconds is not None}
        per_work = sum(measured.values()) / sum(work[name] for name in measured) if measured else 1.0
        return {name: per_work * work[name] for name in work} | measured

    def _refresh(self, study: VariantStudy) -> None:
        """See what is left of a variant, and of all that wait for it."""
        for one in (study, *self._followers[study.variant.name]):
            self._refresh_one(one)

    def _refresh_one(self, study: VariantStudy) -> None:
        study.refresh(self._result, self.in_flight)

    def _result(self, trial_id: str) -> TrialResult | None:
        if trial_id not in self._results:
            if trial_id in self.in_flight:
                return None  # whatever is stored: a promoted trial that was stopped earlier is being trained further
            if (result := own_result(self.store.trial(trial_id))) is None:
                return None
            self._results[trial_id] = result
        return self._results[trial_id]


def _followers(study: VariantStudy, ordered: Sequence[VariantStudy]) -> list[VariantStudy]:
    """The studies that wait for one, directly or not, each behind those that it waits for itself.

    Args:
        ordered: all of them, in such an order.
    """
    found = [study]
    for one in ordered:
        if any(other in found for other in one.after):
            found.append(one)
    return found[1:]
