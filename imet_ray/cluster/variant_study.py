"""One variant's search: its Optuna study, what is left to train of it, and its best set of hparams.

`refresh` derives all of it from the study and the results, whenever either has changed.
"""

import hashlib
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from imet_ray.cluster.tpe import Distributions
from imet_ray.errors import StoreError
from imet_ray.search_space import Range, SearchSpace
from imet_ray.specs import TrialSpec, Variant, default_pack_short_side
from imet_ray.storage.results import TrialResult

Phase = Literal["search", "promote"]
Sampler = Callable[[int, Distributions], BaseSampler]  # Optuna's, of a seed and a study's ranges
Result = Callable[[str], TrialResult | None]  # of a trial's id; None while there is none, or it is in flight


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


class VariantStudy:
    """One variant's."""

    def __init__(
        self,
        variant: Variant,
        space: SearchSpace,
        digests: tuple[str, str],
        study: optuna.Study,
        sampler: Sampler,
    ) -> None:
        """
        Args:
            digests: of the data and of the folds.
        """
        self.variant, self.space, self.digests = variant, space, digests
        self.study, self.sampler = study, sampler
        self.distributions = distributions(variant, space.ranges[variant.name])
        self.asked = self.ended = 0  # sets of hparams
        self.complete = 0  # folds that the best set is trained on
        self.champion: FrozenTrial | None = None
        self.waiting: dict[str, Assignment] = {}  # by trial_id: could be trained now, and nobody does
        self.seconds: float | None = None  # of a trial, in the mean of the complete ones
        self._seconds: dict[str, float] = {}  # of these, by trial_id
        self._specs: dict[tuple[int, int], tuple[str, TrialSpec]] = {}  # by the set's number and the fold
        self._finish_asking()

    @property
    def left(self) -> int:
        """Trials that nobody has begun, as far as can be foretold."""
        sets = max(0, self.space.trials_per_variant - self.asked)
        folds = len(self.space.search_folds)
        promotions = 0 if self.champion or self._in_vain else self.space.n_folds - folds
        return len(self.waiting) + sets * folds + promotions

    @property
    def can_ask(self) -> bool:
        """True while more sets of hparams are to be searched."""
        return self.asked < self.space.trials_per_variant

    @property
    def progress(self) -> Progress:
        """Counts for the live table."""
        return Progress(
            self.ended, self.space.trials_per_variant, self.complete, self.space.n_folds, self._in_vain
        )

    @property
    def _searched(self) -> bool:
        return self.ended == self.asked >= self.space.trials_per_variant

    @property
    def _in_vain(self) -> bool:
        return self._searched and self.champion is None

    def ask(self) -> None:
        """Ask Optuna for one more set of hparams; `refresh` then knows its trials.

        Where a data base was cut off after it had begun a set and before it said so, another was begun: the first
        has no hparams, is no set, and is told to have failed.

        Raises:
            StoreError: if the study was begun with other ranges.
        """
        self.study.sampler = self._sampler(self.asked)
        try:
            asked = self.study.ask(self.distributions)
        except ValueError as error:  # Optuna's, of a study whose variant was left out for a while
            raise StoreError(
                f"variant {self.variant.name!r} was searched over other ranges ({error}): choose another --name, or "
                "--fresh to set the old run aside"
            ) from None
        self._give_up_empty(before=asked.number)

    def refresh(self, result: Result, in_flight: dict[str, Assignment]) -> None:
        """Tell Optuna of the sets whose results are all in, and see what is left."""
        waiting: dict[str, Assignment] = {}
        trials = self._sets()
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        untrained = [specs for trial in running if (specs := self._settle(trial, result)) is not None]
        for trial_id, spec in itertools.chain(*untrained):
            waiting[trial_id] = Assignment("search", spec)
        if len(untrained) < len(running):  # some of them have been told since
            trials = self._sets()
        self.asked, self.ended = len(trials), len(trials) - len(untrained)
        self.champion = self._best(trials, result) if self._searched else None
        self.complete = 0
        champion = self.champion
        for trial_id, spec in (
            (self._spec(champion, f) for f in range(self.space.n_folds)) if champion else ()
        ):
            found = result(trial_id)
            if found is not None and found.status == "complete":
                self.complete += 1
                self._seconds[trial_id] = found.seconds
            elif found is None or found.status == "stopped":
                waiting[trial_id] = Assignment("promote", spec)
        self.waiting = {key: value for key, value in waiting.items() if key not in in_flight}
        if self._seconds:
            self.seconds = sum(self._seconds.values()) / len(self._seconds)

    def report(self, trial_id: str, epoch: int, score: float) -> None:
        """An epoch's score of a searching trial, for Optuna's plots."""
        for frozen in self._running() if len(self.space.search_folds) == 1 else ():
            if self._spec(frozen, self.space.search_folds[0])[0] == trial_id:
                with warnings.catch_warnings():  # an epoch that was reported before a restart
                    warnings.simplefilter("ignore")
                    optuna.trial.Trial(self.study, frozen._trial_id).report(score, step=epoch)

    def _finish_asking(self) -> None:
        """Give a set that a killed driver was asking for the hparams that it lacks: those that it would have had."""
        if trials := self.study.get_trials(deepcopy=False):
            self._give_up_empty(before=trials[-1].number)  # one is asked for at a time, so the last
        for frozen in self._running():
            lacking = [name for name in self.distributions if name not in frozen.params]
            if not lacking:
                continue
            before = [trial for trial in self._sets() if trial.number < frozen.number]
            again = optuna.create_study(direction="maximize", sampler=self._sampler(len(before)))
            again.add_trials(before)
            whole = again.ask(self.distributions).params
            for name in lacking:
                ranged = self.distributions[name]
                value = ranged.to_internal_repr(whole[name])
                self.study._storage.set_trial_param(frozen._trial_id, name, value, ranged)

    def _give_up_empty(self, *, before: int) -> None:
        for frozen in self._running():
            if frozen.number < before and self._is_empty(frozen):
                self.study.tell(frozen.number, state=TrialState.FAIL)

    def _sampler(self, number: int) -> BaseSampler:
        """For the set of that number: the first is 0."""
        return self.sampler(stable_seed(self.space.seed, self.variant.name, number), self.distributions)

    def _sets(self) -> list[FrozenTrial]:
        """All but those that `ask` has given up."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL or not self._is_empty(trial)
        ]

    def _is_empty(self, trial: FrozenTrial) -> bool:
        return bool(self.distributions) and not trial.params

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _settle(self, frozen: FrozenTrial, result: Result) -> list[tuple[str, TrialSpec]] | None:
        """Tell Optuna how a set did; else its trials that have no result yet."""
        try:
            specs = [self._spec(frozen, fold) for fold in self.space.search_folds]
        except ValidationError:  # each setting is possible, not all together
            self.study.tell(frozen.number, state=TrialState.FAIL)
            return None
        found = {trial_id: result(trial_id) for trial_id, _ in specs}
        known = [one for one in found.values() if one is not None]
        for one in known:
            if one.status == "complete":
                self._seconds[one.trial_id] = one.seconds
        if any(one.status == "failed" for one in known):
            self.study.tell(frozen.number, state=TrialState.FAIL)
            return None
        if len(known) < len(specs):
            return [(trial_id, spec) for trial_id, spec in specs if found[trial_id] is None]
        value = float(np.mean([one.score or 0.0 for one in known]))
        if any(one.status == "stopped" for one in known):
            # PRUNED, with its score where plots and the champion's choice find it
            self.study._storage.set_trial_user_attr(frozen._trial_id, "score", value)
            self.study.tell(frozen.number, state=TrialState.PRUNED)
        else:
            self.study.tell(frozen.number, value)
        return None

    def _best(self, trials: list[FrozenTrial], result: Result) -> FrozenTrial | None:
        """The best set: a finished one before a stopped one; one of which some fold failed is passed over."""

        def rank(trial: FrozenTrial) -> tuple[bool, float]:
            complete = trial.state == TrialState.COMPLETE
            return complete, trial.value if complete else trial.user_attrs["score"]  # type: ignore[return-value]

        usable = [trial for trial in trials if trial.state != TrialState.FAIL]
        for trial in sorted(usable, key=rank, reverse=True):
            found = [result(self._spec(trial, fold)[0]) for fold in range(self.space.n_folds)]
            if not any(one is not None and one.status == "failed" for one in found):
                return trial
        return None

    def _spec(self, frozen: FrozenTrial, fold: int) -> tuple[str, TrialSpec]:
        """A set on a fold, and its id, which takes a while to make."""
        key = frozen.number, fold
        if key not in self._specs:
            image_size = self.variant.with_hparams(frozen.params).image_size
            spec = TrialSpec(
                variant=self.variant,
                hparams=frozen.params,
                fold=fold,
                n_folds=self.space.n_folds,
                seed=self.space.seed,
                data_digest=self.digests[0],
                folds_digest=self.digests[1],
                pack_short_side=self.space.pack_short_side or default_pack_short_side(image_size),
                metric=self.space.metric,
                workers=self.space.resources.workers_per_trial,
                batch_norm=self.space.resources.batch_norm,
            )
            self._specs[key] = spec.trial_id, spec
        return self._specs[key]


def distributions(variant: Variant, ranges: dict[str, Range]) -> Distributions:
    """Optuna's form of a variant's ranges."""
    found: Distributions = {}
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
