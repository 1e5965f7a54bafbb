"""What to train next: one Optuna study per variant, then its best set of hparams on the remaining folds.

`Policy` decides, without Ray. All of its state is derived from the Optuna studies and the run directory, so a new
policy continues where a killed one stopped. `imet_ray.cluster.variant_study` knows what is left of one variant;
`imet_ray.cluster.tune_searcher` hands the decisions to Ray Tune.
"""

import time
from collections import Counter
from typing import Literal

import optuna

from imet_ray.cluster.study_storage import Studies, journal_studies
from imet_ray.cluster.variant_study import Assignment, VariantStudy
from imet_ray.search_space import SearchSpace
from imet_ray.storage.results import TrialResult, own_result
from imet_ray.storage.run_directory import RunDirectory


class Policy:
    """Chooses assignments until every variant is trained on all folds.

    The variant that would take longest gets the free slot. Counted are measured seconds: what is left of it, over all
    slots, and the chain of a searching trial and a promotion that it still has to run. So long trials begin early,
    studies advance together, and the last trials end together (compared with the order of the file:
    `python -m benchmarks.scale simulated`). Within one variant, interrupted trials go first, and search goes before
    promotion. Under a deadline promotions go first of all, because they complete a variant.
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
        self.studies: dict[str, VariantStudy] = {}  # by variant
        self._stored = studies or journal_studies(store)
        for variant in space.variants:
            stored = self._stored.study(variant.name)
            study = VariantStudy(variant, space, (data_digest, folds_digest), stored)
            self._refresh(study)
            self.studies[variant.name] = study

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
        running = Counter(assignment.spec.variant.name for assignment in self.in_flight.values())

        def need(study: VariantStudy) -> tuple[bool, float, int]:
            completes = self.deadline is not None and study.best is not None
            own, chain = running[study.variant.name], 1 if study.best else 2
            return completes, (study.left + own + slots * chain) * seconds[study.variant.name], -own

        ready = [study for study in self.studies.values() if study.waiting or study.can_ask]
        return max(ready, key=need, default=None)

    def _seconds_per_trial(self) -> dict[str, float]:
        """By variant: as measured, or estimated from other variants' trials by epochs and pixels."""
        studies = self.studies.items()
        work = {name: float(one.variant.epochs * one.variant.image_size**2) for name, one in studies}
        measured = {name: one.seconds for name, one in studies if one.seconds is not None}
        per_work = sum(measured.values()) / sum(work[name] for name in measured) if measured else 1.0
        return {name: per_work * work[name] for name in work} | measured

    def _refresh(self, study: VariantStudy) -> None:
        study.refresh(self._result, self.in_flight)

    def _result(self, trial_id: str) -> TrialResult | None:
        if trial_id not in self._results:
            if trial_id in self.in_flight:
                return None  # whatever is stored: a promoted trial that was stopped earlier is being trained further
            if (result := own_result(self.store.trial(trial_id))) is None:
                return None
            self._results[trial_id] = result
        return self._results[trial_id]
