"""What to train next: one Optuna study a variant, then the best set of hparams on the remaining folds.

`Policy` decides, without Ray; all of its state is derived from the Optuna journal and the store, so a new one
picks up where a killed one stopped. Handing its decisions to Ray Tune is `imet_ray.cluster.search`.
"""

import hashlib
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from imet_ray.errors import StoreError
from imet_ray.results import TrialResult, read_result
from imet_ray.space import Range, SearchSpace
from imet_ray.specs import Hparam, TrialSpec, Variant, default_pack_short_side
from imet_ray.store import Store

Phase = Literal["search", "promote"]


@dataclass(frozen=True)
class Assignment:
    """One trial that a free slot should run now."""

    phase: Phase
    spec: TrialSpec


@dataclass(frozen=True)
class Progress:
    """How far one variant is."""

    searched: int
    to_search: int
    promoted: int
    to_promote: int
    failed: bool


@dataclass
class Policy:
    """Chooses assignments until every variant is trained on all folds.

    Searching goes first, so that promotions are left to fill the slots while the last searching trials run: a slot
    that waits loses its worker, 9 s. Under a deadline promotions go first: they complete a variant. The variant with
    the fewest searching trials is asked for one more, so that all studies advance together.
    """

    space: SearchSpace
    store: Store
    data_digest: str
    folds_digest: str
    deadline: float | None = None  # of time.time(): no new trial after it
    in_flight: dict[str, Assignment] = field(default_factory=dict)  # by trial_id
    studies: dict[str, optuna.Study] = field(default_factory=dict)
    known: dict[str, TrialResult] = field(default_factory=dict)  # results read so far, by trial_id

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.store.root.mkdir(parents=True, exist_ok=True)
        _mend(self.store.journal)
        storage = JournalStorage(JournalFileBackend(str(self.store.journal)))
        for variant in self.space.variants:
            self.studies[variant.name] = optuna.create_study(
                study_name=variant.name, storage=storage, direction="maximize", load_if_exists=True
            )
        for variant in self.space.variants:
            study = self.studies[variant.name]
            wanted = distributions(variant, self.space.ranges[variant.name])
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if frozen.params.keys() != wanted.keys():  # killed between two entries of `ask`
                    asked = optuna.trial.Trial(study, frozen._trial_id)
                    for name, distribution in wanted.items():
                        asked._suggest(name, distribution)
            self._settle(variant)

    def next(self) -> Assignment | Literal["finished"] | None:
        """The next trial, None if it depends on one that still runs, "finished" if none will come any more."""
        if self.deadline is not None and time.time() > self.deadline:
            return "finished"
        in_order = [self._interrupted, self._new_search, self._promotion]
        if self.deadline is not None:
            in_order.insert(0, self._promotion)
        for choose in in_order:
            assignment = choose()
            if assignment is not None:
                self.in_flight[assignment.spec.trial_id] = assignment
                return assignment
        return None if self.in_flight else "finished"

    def next_is_last(self) -> bool:
        """True if nothing is left to train."""
        if self.in_flight:
            return False
        chosen = self._promotion() or self._interrupted()
        asked = [self.studies[v.name].get_trials(deepcopy=False) for v in self.space.variants]
        return chosen is None and all(len(t) >= self.space.trials_per_variant for t in asked)

    def report(self, trial_id: str, epoch: int, f2: float) -> None:
        """An epoch's score of a searching trial, for Optuna's plots."""
        assignment = self.in_flight.get(trial_id)
        if assignment is None or assignment.phase != "search" or len(self.space.search_folds) > 1:
            return
        study = self.studies[assignment.spec.variant.name]
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._spec(assignment.spec.variant, frozen.params, assignment.spec.fold).trial_id == trial_id:
                with warnings.catch_warnings():  # an epoch that was reported before a restart
                    warnings.simplefilter("ignore")
                    optuna.trial.Trial(study, frozen._trial_id).report(f2, step=epoch)

    def done(self, trial_id: str) -> None:
        """A trial has ended; its result is in the store."""
        assignment = self.in_flight.pop(trial_id, None)
        if assignment is not None:
            self.known.pop(trial_id, None)
            self._settle(assignment.spec.variant)

    def progress(self, variant: Variant) -> Progress:
        """Counts for the live table."""
        trials = self.studies[variant.name].get_trials(deepcopy=False)
        searched = sum(trial.state.is_finished() for trial in trials)
        champion = self._champion(variant)
        folds = [self._result(spec) for spec in self._folds(variant, champion)] if champion else []
        complete = sum(result is not None and result.status == "complete" for result in folds)
        over = len(trials) == searched >= self.space.trials_per_variant
        failed = over and champion is None
        return Progress(searched, self.space.trials_per_variant, complete, self.space.n_folds, failed)

    def _promotion(self) -> Assignment | None:
        for variant in self.space.variants:
            champion = self._champion(variant)
            if champion is None:
                continue
            for spec in self._folds(variant, champion):
                result = self._result(spec)
                if spec.trial_id in self.in_flight:
                    continue
                if result is None or result.status == "stopped":
                    return Assignment("promote", spec)
        return None

    def _interrupted(self) -> Assignment | None:
        """A searching trial that Optuna takes for running, and nobody runs."""
        for variant in self.space.variants:
            study = self.studies[variant.name]
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                for spec in self._searching(variant, frozen.params):
                    if spec.trial_id not in self.in_flight and self._result(spec) is None:
                        return Assignment("search", spec)
        return None

    def _new_search(self) -> Assignment | None:
        while True:
            counts = {
                variant.name: len(self.studies[variant.name].get_trials(deepcopy=False))
                for variant in self.space.variants
            }
            open_variants = [v for v in self.space.variants if counts[v.name] < self.space.trials_per_variant]
            if not open_variants:
                return None
            variant = min(open_variants, key=lambda v: counts[v.name])
            study = self.studies[variant.name]
            study.sampler = optuna.samplers.TPESampler(
                seed=stable_seed(self.space.seed, variant.name, counts[variant.name]),
                constant_liar=True,
                n_startup_trials=4,
            )
            try:
                study.ask(distributions(variant, self.space.ranges[variant.name]))
            except ValueError as error:  # Optuna's, of a study whose variant was left out for a while
                raise StoreError(
                    f"variant {variant.name!r} was searched over other ranges ({error}): choose another --name, or "
                    "--fresh to set the old run aside"
                ) from None
            self._settle(variant)  # tried before, or impossible together: nothing to train
            if (assignment := self._interrupted()) is not None:
                return assignment

    def _settle(self, variant: Variant) -> None:
        """Tell Optuna of the searching trials whose results are all in."""
        study = self.studies[variant.name]
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            try:
                results = [self._result(spec) for spec in self._searching(variant, frozen.params)]
            except ValidationError:  # each is possible, not all together
                study.tell(frozen.number, state=TrialState.FAIL)
                continue
            found = [result for result in results if result is not None]
            if any(result.status == "failed" for result in found):
                study.tell(frozen.number, state=TrialState.FAIL)
            elif len(found) == len(results):
                value = float(np.mean([result.f2 or 0.0 for result in found]))
                if any(result.status == "stopped" for result in found):
                    # PRUNED, with its score where plots and the champion's choice find it
                    study._storage.set_trial_user_attr(frozen._trial_id, "f2", value)
                    study.tell(frozen.number, state=TrialState.PRUNED)
                else:
                    study.tell(frozen.number, value)

    def _champion(self, variant: Variant) -> FrozenTrial | None:
        """The best set of hparams once the search is over: a finished one before a stopped one.

        A set of which some fold failed is passed over for the next best.
        """
        trials = self.studies[variant.name].get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.is_finished()]
        if len(ended) < self.space.trials_per_variant or len(ended) < len(trials):
            return None

        def rank(trial: FrozenTrial) -> tuple[bool, float]:
            complete = trial.state == TrialState.COMPLETE
            return complete, trial.value if complete else trial.user_attrs["f2"]  # type: ignore[return-value]

        usable = [trial for trial in ended if trial.state != TrialState.FAIL]
        for trial in sorted(usable, key=rank, reverse=True):
            results = [self._result(spec) for spec in self._folds(variant, trial)]
            if not any(result is not None and result.status == "failed" for result in results):
                return trial
        return None

    def _searching(self, variant: Variant, params: dict[str, Any]) -> list[TrialSpec]:
        return [self._spec(variant, params, fold) for fold in self.space.search_folds]

    def _folds(self, variant: Variant, trial: FrozenTrial) -> list[TrialSpec]:
        return [self._spec(variant, trial.params, fold) for fold in range(self.space.n_folds)]

    def _spec(self, variant: Variant, params: dict[str, Hparam], fold: int) -> TrialSpec:
        image_size = variant.with_hparams(params).image_size
        return TrialSpec(
            variant=variant,
            hparams=params,
            fold=fold,
            n_folds=self.space.n_folds,
            seed=self.space.seed,
            data_digest=self.data_digest,
            folds_digest=self.folds_digest,
            pack_short_side=self.space.pack_short_side or default_pack_short_side(image_size),
            workers=self.space.resources.workers_per_trial,
            batch_norm=self.space.resources.batch_norm,
        )

    def _result(self, spec: TrialSpec) -> TrialResult | None:
        trial_id = spec.trial_id
        if trial_id not in self.known:
            result = read_result(self.store.trial(trial_id))
            if result is None or trial_id in self.in_flight:
                return None  # a promoted trial that was stopped earlier is being trained on
            self.known[trial_id] = result
        return self.known[trial_id]


def _mend(journal: Path) -> None:
    """Take away what a killed driver or a full disk left: a lock, a last line without an end."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        whole = journal.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(journal, end)


def distributions(variant: Variant, ranges: dict[str, Range]) -> dict[str, BaseDistribution]:
    """Optuna's form of a variant's ranges."""
    found: dict[str, BaseDistribution] = {}
    for key, wanted in ranges.items():
        if wanted.choices is not None:
            found[key] = CategoricalDistribution(wanted.choices)
        elif isinstance(wanted.low, int) and isinstance(wanted.high, int):
            found[key] = IntDistribution(wanted.low, wanted.high, log=wanted.log, step=int(wanted.step or 1))
        else:
            assert wanted.low is not None
            assert wanted.high is not None
            found[key] = FloatDistribution(wanted.low, wanted.high, log=wanted.log, step=wanted.step)
    return found


def stable_seed(*parts: object) -> int:
    """A 32-bit seed from anything printable, the same in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "little")
