"""A cluster that is only simulated, event by event, and the sweep's own policy deciding on it.

Times of trials are lognormal. Those of one variant spread as the seven complete trials of the OpenClipart run did
(runs/openclipart/trials/*/result.json: 0.146); the other numbers are assumed: variants of different work, half of the
searching trials stopped early, a spot machine lost once a day, whose trial loses what it did since its last epoch.
"""

import heapq
import math
import tempfile
import time
from collections.abc import Sequence
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


class _Machines:
    """How long trials take, and when they end."""

    def __init__(self, names: Sequence[str], rng: np.random.Generator) -> None:
        self.rng = rng
        self.mean = {name: 3600 * math.exp(rng.normal(0, BETWEEN)) for name in names}  # seconds
        self.longest = {"search": dict.fromkeys(names, 0.0), "promote": dict.fromkeys(names, 0.0)}
        self.work, self.losses, self.count = 0.0, 0, 0
        self.ends: list[
            tuple[float, int, str, TrialResult]
        ] = []  # when, in which order, which trial, its result

    def begin(self, assignment: Assignment, now: float) -> None:
        """A trial, on a free slot."""
        rng, name, phase = self.rng, assignment.spec.variant.name, assignment.phase
        self.count += 1
        whole = self.mean[name] * math.exp(rng.normal(0, WITHIN))
        stopped = phase == "search" and rng.random() < STOPPED
        needed = whole * (STOPPED_AT if stopped else 1.0)
        self.work += needed
        self.longest[phase][name] = max(self.longest[phase][name], needed)
        lost = rng.poisson(needed / LOST_EVERY)
        self.losses += lost
        took = needed + lost * REPLACED_IN + float(rng.uniform(0, whole / EPOCHS, lost).sum())
        result = TrialResult(
            trial_id=assignment.spec.trial_id,
            status="stopped" if stopped else "complete",
            score=float(rng.uniform(0.4, 0.6)),
            seconds=needed,
        )
        heapq.heappush(self.ends, (now + took, self.count, result.trial_id, result))

    @property
    def chain(self) -> float:
        """Seconds of the variant that takes longest: a searching trial, then a promoted one."""
        return max(self.longest["search"][name] + self.longest["promote"][name] for name in self.mean)


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
    names = [f"v{i}" for i in range(variants)]
    space = SearchSpace(
        name="simulated",
        data="none",
        n_folds=n_folds,
        seed=seed,
        trials_per_variant=sets,
        variants=tuple(
            Variant(name=name, architecture="resnet18", weights="none", epochs=EPOCHS) for name in names
        ),
        ranges={name: {"lr": Range(low=1e-5, high=1e-2, log=True)} for name in names},
    )
    machines = _Machines(names, np.random.default_rng(seed))
    results: dict[str, TrialResult] = {}
    now, deciding = 0.0, 0.0
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
        while True:
            began = time.perf_counter()
            given = policy.next() if len(policy.in_flight) < slots else None
            deciding += time.perf_counter() - began
            if isinstance(given, Assignment):
                machines.begin(given, now)
                continue
            if not machines.ends:
                break
            now, _, trial_id, result = heapq.heappop(machines.ends)
            results[trial_id] = result
            began = time.perf_counter()
            policy.done(trial_id)
            deciding += time.perf_counter() - began
        assert given == "finished"
    count = machines.count
    return Simulated(count, now, machines.work, machines.chain, machines.losses, deciding / count)
