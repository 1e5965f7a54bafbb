"""One variant's search: its Optuna study, what is left to train, and its best set of hparams.

`refresh` derives all of it from the study and the results, whenever one of them has changed.
"""

import hashlib
import itertools
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from imet_ray.errors import SettingError, StoreError
from imet_ray.search_space import Range, SearchSpace
from imet_ray.specs import Hparam, Mixed, TrialSpec, Variant, canonical_json
from imet_ray.storage.results import TrialResult
from imet_ray.training.recipe import check_recipe, own_value

logger = logging.getLogger(__name__)

Phase = Literal["search", "promote"]
Result = Callable[[str], TrialResult | None]  # of a trial's id; None while there is none, or it is in flight


@dataclass(frozen=True)
class Assignment:
    """One trial that a free slot should run now."""

    phase: Phase
    spec: TrialSpec


class VariantStudy:
    """The search of one variant."""

    def __init__(
        self,
        variant: Variant,
        space: SearchSpace,
        digests: tuple[str, str],
        study: optuna.Study,
        after: "Sequence[VariantStudy]" = (),
    ) -> None:
        """
        Args:
            digests: of the data and of the folds.
            after: of the variants that it waits for, fold by fold.
        """
        self.variant, self.space, self.digests, self.study = variant, space, digests, study
        self.after = tuple(after)
        self.distributions = distributions(variant, space.ranges[variant.name])
        self.asked = self.ended = 0  # sets of hparams
        # by fold: the best set's trial, once it is complete, or the soup, if it is to be mixed with others
        self.trained: dict[int, str] = {}
        self.blocked = (
            0  # trials that wait for those of other variants, and soups whose trials are not all complete
        )
        self.best: FrozenTrial | None = None  # the set to promote, once the search is over
        self.waiting: dict[str, Assignment] = {}  # by trial_id: could be trained now, and is not in flight
        self._seconds: dict[str, float] = {}  # of the complete trials, by trial_id
        # by the set's number, the fold, and the trials that it waits for
        self._specs: dict[tuple[int, int, tuple[str, ...]], tuple[str, TrialSpec]] = {}
        self._fail_half_drawn()  # of a driver that was killed

    @property
    def left(self) -> int:
        """Trials that have not begun, as far as can be foretold."""
        sets = max(0, self.space.trials_per_variant - self.asked)
        folds = len(self.space.search_folds)
        promotions = 0 if self.best or self.failed else self.space.after_search
        return 0 if self.failed else len(self.waiting) + self.blocked + sets * folds + promotions

    @property
    def complete(self) -> int:
        """Folds on which the best set is trained, and mixed with others if it is to be."""
        return len(self.trained)

    @property
    def seconds(self) -> float | None:
        """Per complete trial, in the mean; None while there is none."""
        return sum(self._seconds.values()) / len(self._seconds) if self._seconds else None

    @property
    def can_ask(self) -> bool:
        """True while more sets of hparams are to be searched, and one of them could be trained on some fold."""
        return self.asked < self.space.trials_per_variant and any(
            self._after(fold) is not None for fold in self.space.search_folds
        )

    @property
    def failed(self) -> bool:
        """True if every set of hparams failed on some fold, or if it waits in vain."""
        return self.waits_in_vain_for is not None or (self._searched and self.best is None)

    @property
    def waits_in_vain_for(self) -> str | None:
        """The variant that has failed, and on which it depends."""
        return next((study.variant.name for study in self.after if study.failed), None)

    @property
    def _searched(self) -> bool:
        return self.ended == self.asked >= self.space.trials_per_variant

    def ask(self) -> None:
        """Ask Optuna for one more set of hparams; `refresh` then knows its trials.

        The first set has the variant's own values. They are the sampler's, not enqueued: a kill between the queue and
        the set could leave them there twice.

        Raises:
            StoreError: if the study was begun with other ranges.
        """
        sampler = tpe(stable_seed(self.space.seed, self.variant.name, self.asked))
        own = self.own_values() if self.asked == 0 else {}
        self.study.sampler = fixed(own, sampler) if own else sampler
        try:
            self.study.ask(self.distributions)
        except ValueError as error:  # Optuna's, if the variant was left out of the space for a while
            raise StoreError(
                f"variant {self.variant.name!r} was searched over other ranges ({error}): choose another --name, or "
                "--fresh to set the old run aside"
            ) from None
        self._fail_half_drawn()  # a database that was cut off may have begun a set without saying so

    def own_values(self) -> dict[str, Hparam]:
        """The variant's own values of what is searched, where they lie in the ranges; none if all are to be drawn."""
        if self.space.first.get(self.variant.name) == "drawn":
            return {}
        found = {}
        for key, wanted in self.space.ranges[self.variant.name].items():
            value = own_value(self.variant, key)
            if wanted.holds(value):
                found[key] = value
            else:
                own = f"{key}={value}" if value is not None else f"recipe, without {key},"
                logger.warning(
                    "%s: its own %s is not in %s: the first set draws one",
                    *(self.variant.name, own, wanted),
                )
        return found

    def refresh(self, result: Result, in_flight: dict[str, Assignment]) -> None:
        """Tell Optuna of the sets whose results are all in, and see what is left."""
        sets = self._sets()
        running = [trial for trial in sets if trial.state == TrialState.RUNNING]
        self.blocked = 0
        untrained = [specs for trial in running if (specs := self._settle(trial, result)) is not None]
        waiting = {trial_id: Assignment("search", spec) for trial_id, spec in itertools.chain(*untrained)}
        if len(untrained) < len(running):  # Optuna was told of some
            sets = self._sets()
        self.asked, self.ended = len(sets), len(sets) - len(untrained)
        promoted = self._best(sets, result) if self._searched else []
        self.best = promoted[0] if promoted else None
        self.trained = {}
        for fold in range(self.space.n_folds) if promoted else ():
            sets_of_fold = dict(one for best in promoted if (one := self._spec(best, fold)) is not None)
            if not sets_of_fold:
                self.blocked += len(promoted) + (len(promoted) > 1)
                continue
            last = next(iter(sets_of_fold))
            untold = {one: spec for one, spec in sets_of_fold.items() if not self._trained(one, result)}
            if len(sets_of_fold) > 1 and untold:
                self.blocked += 1
            elif len(sets_of_fold) > 1:
                trial_id, soup = self._soup(list(sets_of_fold.values()))
                if (mixed := result(trial_id)) is None:
                    untold[trial_id] = soup
                elif mixed.status == "complete":
                    last = trial_id
            if not untold:
                self.trained[fold] = last
            waiting |= {trial_id: Assignment("promote", spec) for trial_id, spec in untold.items()}
        self.waiting = {trial_id: one for trial_id, one in waiting.items() if trial_id not in in_flight}

    def _trained(self, trial_id: str, result: Result) -> bool:
        """True if a trial is complete; else it has not begun, or was stopped."""
        found = result(trial_id)
        if found is None or found.status != "complete":
            return False
        self._seconds[trial_id] = found.seconds
        return True

    def report(self, trial_id: str, epoch: int, score: float) -> None:
        """An epoch's score of a searching trial, for Optuna's plots."""
        for frozen in self._running() if len(self.space.search_folds) == 1 else ():
            spec = self._spec(frozen, self.space.search_folds[0])
            if spec is not None and spec[0] == trial_id:
                with warnings.catch_warnings():  # of an epoch that was reported before a restart
                    warnings.simplefilter("ignore")
                    optuna.trial.Trial(self.study, frozen._trial_id).report(score, step=epoch)

    def _fail_half_drawn(self) -> None:
        """Fail each set that has not got all of its hparams: another is asked for in its place."""
        for frozen in self._running():
            if self._half_drawn(frozen):
                self.study.tell(frozen.number, state=TrialState.FAIL)

    def _half_drawn(self, trial: FrozenTrial) -> bool:
        return not self.distributions.keys() <= trial.params.keys()

    def _sets(self) -> list[FrozenTrial]:
        """All sets but the half drawn ones."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL or not self._half_drawn(trial)
        ]

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _settle(self, frozen: FrozenTrial, result: Result) -> list[tuple[str, TrialSpec]] | None:
        """Tell Optuna the score of a set; or return its trials that could be trained and have no result yet."""
        folds = self.space.search_folds
        try:
            specs = [had for fold in folds if (had := self._spec(frozen, fold)) is not None]
        except (ValidationError, SettingError):  # each hparam is possible, and the combination is not
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
        if len(known) < len(folds):
            self.blocked += len(folds) - len(specs)
            return [(trial_id, spec) for trial_id, spec in specs if found[trial_id] is None]
        value = float(np.mean([one.score or 0.0 for one in known]))
        if any(one.status == "stopped" for one in known):
            # PRUNED, with its score where plots and `_best` find it
            self.study._storage.set_trial_user_attr(frozen._trial_id, "score", value)
            self.study.tell(frozen.number, state=TrialState.PRUNED)
        else:
            self.study.tell(frozen.number, value)
        return None

    def _best(self, sets: list[FrozenTrial], result: Result) -> list[FrozenTrial]:
        """The best set, or those to be mixed: finished ones before stopped ones; one that failed on some fold never."""

        def rank(trial: FrozenTrial) -> tuple[bool, float]:
            if trial.state == TrialState.COMPLETE:
                return True, trial.values[0]
            score = trial.user_attrs.get("score", trial.user_attrs.get("f2"))  # f2: of an earlier version
            return False, -math.inf if score is None else score

        best: dict[str, FrozenTrial] = {}  # by what it sets: sets may be equal
        wanted = 1 if self.space.soup_of is None else self.space.soup_of.sets
        usable = [trial for trial in sets if trial.state != TrialState.FAIL]
        for trial in sorted(usable, key=rank, reverse=True):
            specs = [self._spec(trial, fold) for fold in range(self.space.n_folds)]
            found = [result(one[0]) for one in specs if one is not None]
            if not any(one is not None and one.status == "failed" for one in found):
                best.setdefault(canonical_json(trial.params), trial)
            if len(best) == wanted:
                break
        return list(best.values())

    def _soup(self, specs: list[TrialSpec]) -> tuple[str, TrialSpec]:
        """The trial of a fold that mixes the weights of others, the best set first, with its id."""
        assert self.space.soup_of is not None
        ids = tuple(spec.trial_id for spec in specs)
        soup = specs[0].model_copy(update={"soup_of": Mixed(trials=ids, how=self.space.soup_of.how)})
        return soup.trial_id, soup

    def _after(self, fold: int) -> dict[str, str] | None:
        """By variant: the trials of a fold that its own of that fold needs; None while one of them is not complete."""
        found = {study.variant.name: study.trained.get(fold) for study in self.after}
        there = {name: trial_id for name, trial_id in found.items() if trial_id is not None}
        return there if len(there) == len(found) else None

    def _spec(self, frozen: FrozenTrial, fold: int) -> tuple[str, TrialSpec] | None:
        """A set on a fold, with its id; kept, because both take a while to make. None while it has to wait."""
        if (after := self._after(fold)) is None:
            return None
        key = frozen.number, fold, tuple(after.values())
        if key not in self._specs:
            spec = self.space.trial(self.variant, frozen.params, fold, digests=self.digests, after=after)
            check_recipe(spec.recipe)
            self._specs[key] = spec.trial_id, spec
        return self._specs[key]


def tpe(seed: int) -> TPESampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011); sets that still run count as bad ones."""
    return TPESampler(seed=seed, constant_liar=True, n_startup_trials=4)


def fixed(own: dict[str, Hparam], sampler: BaseSampler) -> BaseSampler:
    """A sampler that takes these values, and draws the others."""
    with warnings.catch_warnings():  # experimental since 2021
        warnings.simplefilter("ignore")
        return PartialFixedSampler(own, sampler)


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
