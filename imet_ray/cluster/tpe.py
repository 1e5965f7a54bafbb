"""The sampler of a study: Optuna's TPE, with less to read and to weigh where thousands of sets were tried."""

import heapq
from collections.abc import Container
from operator import attrgetter
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

SEEN = 2000  # newest sets: of 10,000 a decision takes 41 ms, and 99 with all seen (benchmarks.scale journal)
GOOD = 25  # sets that TPE calls good, at most: `optuna.samplers._tpe.sampler.default_gamma`
Distributions = dict[str, BaseDistribution]


class Tpe(optuna.samplers.TPESampler):
    """Tree-structured Parzen estimator (Bergstra et al. 2011); trials that run count as bad ones."""

    def __init__(self, seed: int, distributions: Distributions) -> None:
        super().__init__(seed=seed, constant_liar=True, n_startup_trials=4)
        self.distributions = distributions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """All of a study's ranges, which Optuna would read out of all of its trials each time."""
        return {name: ranged for name, ranged in sorted(self.distributions.items()) if not ranged.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions
    ) -> dict[str, Any]:
        """A set of hparams, from what `Seen` shows of the study."""
        return super().sample_relative(cast(optuna.Study, Seen(study)), trial, search_space)


class Seen:
    """A study to be maximised as TPE sees it: of a long one the newest sets, and of the older the best and what runs.

    TPE calls no more than 25 sets good, which stay the same; of the bad ones, which it weighs the less the older they
    are, the oldest are left out.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy, states, use_cache)
        if len(trials) <= SEEN:
            return trials
        older, newest = trials[:-SEEN], trials[-SEEN:]
        complete = [trial for trial in older if trial.state == TrialState.COMPLETE]
        running = [trial for trial in older if trial.state == TrialState.RUNNING]
        best = heapq.nlargest(GOOD, complete, key=attrgetter("value"))
        return sorted(best + running, key=attrgetter("number")) + newest
