"""What to train next: one Optuna study a variant, then the best set of hparams on the remaining folds.

`Policy` decides, without Ray; all of its state is derived from the Optuna journal and the store, so a new one picks
up where a killed one stopped. What is left of one variant is `imet_ray.cluster.variant_study`; handing the decisions
to Ray Tune is `imet_ray.cluster.tune_searcher`.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from imet_ray.cluster.tpe import Tpe
from imet_ray.cluster.variant_study import Assignment, Progress, Sampler, VariantStudy
from imet_ray.errors import ImetError
from imet_ray.search_space import SearchSpace
from imet_ray.specs import Variant
from imet_ray.storage.checked_read import damaged, regular
from imet_ray.storage.results import TrialResult, own_result
from imet_ray.storage.run_directory import RunDirectory


class Policy:
    """Chooses assignments until every variant is trained on all folds.

    What was interrupted goes first. Else the variant that would take longest gets the free slot: in measured seconds,
    what is left of it over all slots, and the chain of a searching trial and a promotion that it still has before it.
    So long trials begin early, studies advance together, and the last wave is spread over what is left (against the
    order of the file: `python -m benchmarks.scale simulated`). Of one variant searching goes first. Under a deadline
    promotions go before all else: they complete a variant.
    """

    def __init__(
        self,
        space: SearchSpace,
        store: RunDirectory,
        data_digest: str,
        folds_digest: str,
        deadline: float | None = None,
        *,
        storage: BaseStorage | None = None,
        prefix: str = "",
        read: Callable[[str], TrialResult | None] | None = None,
        sampler: Sampler = Tpe,
    ) -> None:
        """
        Args:
            deadline: of time.time(): no new trial after it.
            storage: Optuna's; the store's journal, if it is None.
            prefix: of the studies' names, where a storage has those of other runs, too.
            read: the result of a trial's id; from the store, if it is None.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.store, self.deadline = space, store, deadline
        self.in_flight: dict[str, Assignment] = {}  # by trial_id
        self._running: Counter[str] = Counter()  # of these, by variant
        self._read = read or (lambda trial_id: own_result(store.trial(trial_id)))
        self._known: dict[str, TrialResult] = {}  # results read so far, by trial_id
        try:
            opened = storage or _journal(store.journal)
            self.studies = self._open(opened, prefix, (data_digest, folds_digest), sampler)
        except (ImetError, OSError):
            raise
        except Exception as error:  # Optuna raises whatever the first bad line of a journal causes
            if storage is not None:  # not the journal's fault
                raise
            raise damaged(store.journal, error) from error
        self._interrupted = {
            trial_id
            for study in self.studies.values()
            for trial_id, waiting in study.waiting.items()
            if waiting.phase == "search"
        }

    def _open(
        self,
        storage: BaseStorage,
        prefix: str,
        digests: tuple[str, str],
        sampler: Sampler,
    ) -> dict[str, VariantStudy]:
        studies = {}
        for variant in self.space.variants:
            study = optuna.create_study(
                study_name=prefix + variant.name, storage=storage, direction="maximize", load_if_exists=True
            )
            studies[variant.name] = VariantStudy(variant, self.space, digests, study, sampler)
            self._refresh(studies[variant.name])
        return studies

    def next(self) -> Assignment | Literal["finished"] | None:
        """The next trial, None if it depends on one that still runs, "finished" if none will come any more."""
        if self.deadline is not None and time.time() > self.deadline:
            return "finished"
        while (study := self._chosen()) is not None:
            if study.waiting:
                trial_id = next(
                    (i for i in study.waiting if i in self._interrupted), next(iter(study.waiting))
                )
                assignment = study.waiting.pop(trial_id)
                self._interrupted.discard(trial_id)
                self.in_flight[trial_id] = assignment
                self._running[study.variant.name] += 1
                return assignment
            study.ask()
            self._refresh(study)  # tried before, or impossible together: nothing to train
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
            self._known.pop(trial_id, None)
            self._running[assignment.spec.variant.name] -= 1
            self._refresh(self.studies[assignment.spec.variant.name])

    def progress(self, variant: Variant) -> Progress:
        """Counts for the live table."""
        return self.studies[variant.name].progress

    def _chosen(self) -> VariantStudy | None:
        """Whose turn it is, of those that have something to train or to ask for."""
        unit, slots = self._unit(), len(self.in_flight) + 1

        def need(study: VariantStudy) -> tuple[bool, bool, float, int]:
            completes = self.deadline is not None and study.champion is not None
            interrupted = bool(self._interrupted) and not self._interrupted.isdisjoint(study.waiting)
            chain = 1 if study.champion else 2
            running = self._running[study.variant.name]
            seconds = (study.left + running + slots * chain) * _seconds(study, unit)
            return completes, interrupted, seconds, -running

        ready = [study for study in self.studies.values() if study.waiting or study.can_ask]
        return max(ready, key=need, default=None)

    def _unit(self) -> float:
        """Measured seconds over estimated ones, of all variants that have a complete trial."""
        known = [study for study in self.studies.values() if study.seconds is not None]
        if len(known) == len(self.studies):
            return 1.0
        estimated = sum(_estimate(study.variant) for study in known)
        return sum(_seconds(study, 1.0) for study in known) / estimated if estimated else 1.0

    def _refresh(self, study: VariantStudy) -> None:
        study.refresh(self._result, self.in_flight)

    def _result(self, trial_id: str) -> TrialResult | None:
        if trial_id not in self._known:
            if trial_id in self.in_flight:
                return None  # whatever it left before: a promoted trial that was stopped earlier is being trained on
            if (result := self._read(trial_id)) is None:
                return None
            self._known[trial_id] = result
        return self._known[trial_id]


def _seconds(study: VariantStudy, unit: float) -> float:
    """Of one trial: as measured, or by the work of other variants' trials."""
    return unit * _estimate(study.variant) if study.seconds is None else study.seconds


def _estimate(variant: Variant) -> float:
    """A trial's work, by its epochs and pixels."""
    return float(variant.epochs * variant.image_size**2)


def _journal(path: Path) -> BaseStorage:
    """Optuna's journal, mended of what a killed driver or a full disk left: a lock, a last line without an end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        regular(path)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(path, end)
    return JournalStorage(JournalFileBackend(str(path)))
