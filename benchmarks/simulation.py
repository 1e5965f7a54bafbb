"""A cluster that is only simulated, event by event, and the sweep's own policy deciding on it.

Times of trials are lognormal. Those of one variant spread as the seven complete trials of the OpenClipart run did
(runs/openclipart/trials/*/result.json: 0.146); the other numbers are assumed: variants of different work, half of the
searching trials stopped early, a spot machine lost once a day, whose trial loses what it did since its last epoch.
"""

import heapq
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import optuna
from optuna.storages import InMemoryStorage

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.study_storage import Studies
from imet_ray.cluster.variant_study import Assignment, VariantStudy
from imet_ray.search_space import Range, SearchSpace
from imet_ray.specs import Variant
from imet_ray.storage.results import TrialResult
from imet_ray.storage.run_directory import RunDirectory

WITHIN = 0.146  # standard deviation of the logarithm of seconds
BETWEEN = 0.5
STOPPED = 0.5  # of the searching trials ASHA stops so many,
STOPPED_AT = 0.4  # after this part of their epochs
EPOCHS = 12
LOST_EVERY = 24 * 3600.0  # seconds that a spot machine lasts, in the mean
REPLACED_IN = 180.0  # seconds


@dataclass(frozen=True)
class Simulated:
    """What came of it, in simulated seconds unless said."""

    trials: int
    makespan: float
    work: float  # of all trials, had no machine been lost
    chain: float  # of the slowest variant: its longest searching trial, then its longest promotion
    losses: int
    decision_s: float  # real seconds per trial

    def ratio(self, slots: int) -> float:
        """Makespan over what no schedule can beat."""
        return self.makespan / max(self.work / slots, self.chain)


class InFileOrder(Policy):
    """The peer: the first variant that has something to train gets the free slot."""

    def _chosen(self) -> VariantStudy | None:
        return next((study for study in self.studies.values() if study.waiting or study.can_ask), None)


def simulate(
    *,
    slots: int,
    variants: int,
    sets: int,
    n_folds: int = 5,
    seed: int = 0,
    chooser: type[Policy] = Policy,
) -> Simulated:
    """Run a whole sweep.

    Args:
        sets: of hparams, searched for each variant.
        chooser: who decides.
    """
    rng = np.random.default_rng(seed)
    recipes = tuple(
        Variant(name=f"v{i}", architecture="resnet18", weights="none", epochs=EPOCHS) for i in range(variants)
    )
    space = SearchSpace(
        name="simulated",
        data="none",
        n_folds=n_folds,
        seed=seed,
        trials_per_variant=sets,
        variants=recipes,
        ranges={recipe.name: {"lr": Range(low=1e-5, high=1e-2, log=True)} for recipe in recipes},
    )
    mean = {recipe.name: 3600 * math.exp(rng.normal(0, BETWEEN)) for recipe in recipes}
    results: dict[str, TrialResult] = {}
    longest = {"search": dict.fromkeys(mean, 0.0), "promote": dict.fromkeys(mean, 0.0)}
    work, losses, count, deciding = 0.0, 0, 0, 0.0
    events: list[tuple[float, int, str, TrialResult]] = []  # when, in which order, which trial, its result

    def begin(assignment: Assignment, now: float) -> None:
        nonlocal work, losses, count
        count += 1
        name, trial_id = assignment.spec.variant.name, assignment.spec.trial_id
        whole = mean[name] * math.exp(rng.normal(0, WITHIN))
        stopped = assignment.phase == "search" and rng.random() < STOPPED
        needed = whole * (STOPPED_AT if stopped else 1.0)
        work += needed
        longest[assignment.phase][name] = max(longest[assignment.phase][name], needed)
        took, lost = needed, rng.poisson(needed / LOST_EVERY)
        losses += lost
        took += lost * REPLACED_IN + float(rng.uniform(0, whole / EPOCHS, lost).sum())
        result = TrialResult(
            trial_id=trial_id,
            status="stopped" if stopped else "complete",
            score=float(rng.uniform(0.4, 0.6)),
            seconds=needed,
        )
        heapq.heappush(events, (now + took, count, trial_id, result))

    with (
        tempfile.TemporaryDirectory() as folder,
        patch(
            "imet_ray.cluster.variant_study.tpe", optuna.samplers.RandomSampler
        ),  # its time is measured apart
        patch("imet_ray.cluster.policy.own_result", lambda trial: results.get(trial.trial_id)),
    ):
        policy = chooser(
            space, RunDirectory(Path(folder)), "data", "folds", studies=Studies(InMemoryStorage())
        )
        now = 0.0
        while True:
            began = time.perf_counter()
            given = policy.next() if len(policy.in_flight) < slots else None
            deciding += time.perf_counter() - began
            if isinstance(given, Assignment):
                begin(given, now)
                continue
            if not events:
                break
            now, _, trial_id, result = heapq.heappop(events)
            results[trial_id] = result
            began = time.perf_counter()
            policy.done(trial_id)
            deciding += time.perf_counter() - began
        assert given == "finished"
    chain = max(longest["search"][name] + longest["promote"][name] for name in mean)
    return Simulated(count, now, work, chain, losses, deciding / count)
