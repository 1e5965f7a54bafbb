"""What the sampler of a study picks, and from what."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from imet_ray.cluster import tpe
from imet_ray.cluster.tpe import GOOD, Distributions, Seen, Tpe

RANGES: Distributions = {
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
    "batch_size": CategoricalDistribution((16, 32, 64)),
    "dropout": FloatDistribution(0.0, 0.5),
    "epochs": IntDistribution(3, 3),
}


def asked(sampler: Callable[[int], BaseSampler]) -> list[dict[str, Any]]:
    """40 sets in a row, four of them untold at any time."""
    study, running, sets = optuna.create_study(direction="maximize"), [], []
    for seed in range(40):
        study.sampler = sampler(seed)
        running.append(study.ask(RANGES))
        sets.append(running[-1].params)
        if len(running) > 4:
            told = running.pop(0)
            score = told.params["dropout"] - abs(told.params["batch_size"] - 32) + 100 * told.params["lr"]
            if seed % 5 == 0:
                study.tell(told, state=TrialState.PRUNED if seed % 2 else TrialState.FAIL)
            else:
                study.tell(told, score)
    return sets


def test_a_sampler_that_knows_the_ranges_picks_what_optunas_own_does():
    ours = asked(lambda seed: Tpe(seed, RANGES))
    assert ours == asked(lambda seed: TPESampler(seed=seed, constant_liar=True, n_startup_trials=4))
    assert ours[10:] != asked(lambda seed: optuna.samplers.RandomSampler(seed=seed))[10:]


def test_a_sampler_that_knows_the_ranges_reads_them_out_of_no_trial():
    study = optuna.create_study()
    known = Tpe(0, RANGES).infer_relative_search_space(study, study.ask())
    assert known == {key: value for key, value in RANGES.items() if key != "epochs"}
    assert not TPESampler().infer_relative_search_space(study, study.ask())


def test_of_a_long_study_the_sampler_sees_the_best_the_newest_and_what_runs(monkeypatch):
    monkeypatch.setattr(tpe, "SEEN", 50)
    study = optuna.create_study(direction="maximize")
    running = study.ask(RANGES)
    values = np.random.default_rng(0).permutation(200)
    for value in values:
        trial = study.ask(RANGES)
        study.tell(trial, state=TrialState.PRUNED) if value == 199 else study.tell(trial, float(value))
    seen = {trial.number for trial in Seen(study)._get_trials(deepcopy=False)}
    older = sorted((value, i) for i, value in enumerate(values[:150], start=1) if value < 199)
    best = {i for _, i in older[-GOOD:]}
    assert seen == {running.number} | best | set(range(151, 201))
    weighed = []
    split = optuna.samplers._tpe.sampler._split_trials
    monkeypatch.setattr(
        optuna.samplers._tpe.sampler,
        "_split_trials",
        lambda study, trials, n_below: weighed.append(len(trials)) or split(study, trials, n_below),
    )
    study.sampler = Tpe(0, RANGES)
    study.ask(RANGES)
    assert weighed == [len(seen) - 1]  # the newest is the one that is asked for


def test_no_more_sets_are_good_to_the_sampler_than_are_seen():
    assert max(optuna.samplers._tpe.sampler.default_gamma(n) for n in range(0, 20_000, 100)) == GOOD
