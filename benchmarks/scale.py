"""How far the sweep's scheduling goes: a real Ray of 64 logical GPUs, 10,000 past trials, a simulated 1,000 GPUs.

    uv run python -m benchmarks.scale real [--trials 500] [--seconds 60]     about 12 minutes, 12 GB
    uv run python -m benchmarks.scale journal [--trials 10000]               about 3 minutes
    uv run python -m benchmarks.scale simulated [--gpus 1000]                about 15 minutes

real: `run_sweep` itself, on nodes that are processes of this machine and claim to have 8 GPUs each. Only the training
is replaced: a trial sleeps (lognormal) and writes a result. Printed: how busy the slots were from the first start to
the last, what the driver took of CPU and memory a trial.
journal: a run directory with so many finished trials, in Optuna's journal and in the store; then what the policy of a
sweep that is started again does before it trains, and how long the next decisions take, with 64 trials in flight.
simulated: `benchmarks.simulation`.
"""

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.simulation import WITHIN, InFileOrder, simulate
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.session import Session, Slot, prepare_environment
from imet_ray.cluster.variant_study import Assignment
from imet_ray.cores import usable_cores
from imet_ray.data.training_data import SplitData, TrainingData
from imet_ray.search_space import Range, Resources, SearchSpace
from imet_ray.specs import TrialSpec, Variant
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, failures, standings, write_result
from imet_ray.storage.run_directory import Cache, RunDirectory

N_FOLDS = 5


def space_of(variants: int, sets: int) -> SearchSpace:
    """Variants that differ in name only, three hparams each."""
    recipes = tuple(
        Variant(name=f"v{i}", architecture="resnet18", weights="none", epochs=1) for i in range(variants)
    )
    ranges = {
        "lr": Range(low=1e-5, high=1e-2, log=True),
        "dropout": Range(low=0.0, high=0.5),
        "batch_size": Range(choices=(16, 32, 64)),
    }
    return SearchSpace(
        name="scale",
        data="none",
        n_folds=N_FOLDS,
        trials_per_variant=sets,
        resources=Resources(gpus_per_trial=1),
        variants=recipes,
        ranges={recipe.name: ranges for recipe in recipes},
    )


def finish(store: RunDirectory, spec: TrialSpec, seconds: float) -> TrialResult:
    """What a trial leaves."""
    trial = store.trial(spec.trial_id)
    f2 = float(np.random.default_rng(int(spec.trial_id, 16) % 2**32).uniform(0.4, 0.6))
    write_json(trial.spec, spec.model_dump(mode="json"))
    result = TrialResult(
        trial_id=spec.trial_id,
        status="complete",
        score=f2,
        threshold=0.2,
        expected_score=f2,
        epoch=1,
        epochs=1,
        seconds=seconds,
    )
    write_result(trial, result)
    return result


def sleep_in_worker(config: dict[str, Any], data: TrainingData, slot: Slot) -> None:
    """In the place of `imet_ray.cluster.worker.train_in_worker`."""
    from ray import tune

    spec = TrialSpec.model_validate_json(config["spec"])
    rng = np.random.default_rng(int(spec.trial_id, 16) % 2**32)
    seconds = float(os.environ["SCALE_SECONDS"]) * math.exp(rng.normal(0, WITHIN))
    began = time.time()
    time.sleep(seconds)
    (slot.run.root / "slept").mkdir(exist_ok=True)
    (slot.run.root / "slept" / spec.trial_id).write_text(f"{began} {time.time()}")
    result = finish(slot.run, spec, seconds)
    tune.report(
        {"epoch": 1, "score": result.score, "seconds": seconds, "trial_seconds": seconds, "images_per_s": 1.0}
    )


def real(trials: int, seconds: float, gpus: int) -> None:
    if trials <= gpus:
        raise SystemExit(f"--trials must be above the {gpus} GPUs, got {trials}: else no slot is used twice")
    prepare_environment()
    os.environ["SCALE_SECONDS"] = str(seconds)  # workers have it from here
    import ray
    from ray.cluster_utils import Cluster

    from imet_ray.cluster import sweep

    variants = max(1, trials // 25)
    space = space_of(variants, trials // variants - N_FOLDS + 1)
    nodes = gpus // 8
    with tempfile.TemporaryDirectory() as name:
        store = RunDirectory(Path(name) / "run")
        store.root.mkdir()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
        for _ in range(nodes):
            cluster.add_node(num_cpus=8, num_gpus=8)
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            split = SplitData("train", (), (), "digest", Cache(Path(name)))
            data = TrainingData(split, (), np.zeros((0, 0), np.uint8), np.arange(N_FOLDS), "folds")
            session = Session(None, 1.0, 1.0, 0, gpus, lambda: gpus)
            sweep.train_in_worker = sleep_in_worker
            before = resource.getrusage(resource.RUSAGE_SELF)
            summary = sweep.run_sweep(space, store, data, session)
            after = resource.getrusage(resource.RUSAGE_SELF)
        finally:
            ray.shutdown()
            cluster.shutdown()
        slept = [tuple(map(float, path.read_text().split())) for path in (store.root / "slept").iterdir()]
    first, last = min(begin for begin, _ in slept), max(begin for begin, _ in slept)
    full = sorted(begin for begin, _ in slept)[min(gpus, len(slept)) - 1]  # when the last slot had begun

    def busy(since: float) -> float:
        used = sum(max(0.0, min(end, last) - max(begin, since)) for begin, end in slept)
        return used / (gpus * (last - since))

    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{summary.trials} trials of {seconds:g} s on {gpus} logical GPUs, {nodes} nodes, "
        f"{usable_cores()} cores: {summary.wall_s:.0f} s"
    )
    print(f"slots busy, first start to last start                   {busy(first):8.1%}")
    print(f"the same, since all {gpus} workers had started ({full - first:.0f} s)     {busy(full):8.1%}")
    print(f"driver's CPU a trial                                    {cpu / summary.trials:8.3f} s")
    grown = (after.ru_maxrss - before.ru_maxrss) / 1e3 / summary.trials
    print(f"driver's memory a trial                                 {grown:8.3f} MB")


def journal(trials: int) -> None:
    import optuna

    for variants in (20, 1):
        sets = trials // variants
        space = space_of(variants, sets)
        with tempfile.TemporaryDirectory() as name:
            store = RunDirectory(Path(name) / "run")
            with patch("imet_ray.cluster.variant_study.tpe", optuna.samplers.RandomSampler):
                policy = Policy(space, store, "data", "folds")
                while isinstance(given := policy.next(), Assignment):
                    finish(store, given.spec, 1.0)
                    policy.done(given.spec.trial_id)
            began = time.perf_counter()
            again = Policy(space, store, "data", "folds")
            assert again.next_is_last()
            restart = time.perf_counter() - began
            began = time.perf_counter()
            standings(store, [variant.name for variant in space.variants])
            failures(store)
            board = time.perf_counter() - began
            more = Policy(space.model_copy(update={"trials_per_variant": sets + 104}), store, "data", "folds")
            times, flying = [], []
            for _ in range(64 + 40):
                began = time.perf_counter()
                if len(flying) == 64:
                    more.done(flying.pop(0).spec.trial_id)
                given = more.next()
                times.append(time.perf_counter() - began)
                assert isinstance(given, Assignment)
                finish(store, given.spec, 1.0)
                flying.append(given)
            times = times[64:]
        print(f"{trials:,} finished trials of {variants} variants")
        print(f"  a sweep that is started again knows that nothing is left {restart:8.2f} s")
        print(f"  leaderboard                                              {board:8.2f} s")
        print(
            f"  one decision, TPE included, median                       {1e3 * statistics.median(times):8.1f} ms"
        )
        print(
            f"  and the slowest of {len(times)}                                    {1e3 * max(times):8.1f} ms",
            flush=True,
        )


def simulated(gpus: int) -> None:
    print(
        f"{'GPUs':>6}{'variants':>10}{'trials':>9}{'machines lost':>15}{'ours':>8}{'peer':>8}{'a decision':>13}"
    )
    for slots, variants, sets in ((8, 7, 8), (64, 20, 21), (32, 40, 8), (gpus, gpus, 96)):
        ours, peer = (
            simulate(slots=slots, variants=variants, sets=sets, chooser=chooser)
            for chooser in (Policy, InFileOrder)
        )
        print(
            f"{slots:>6,}{variants:>10,}{ours.trials:>9,}{ours.losses:>15,}{ours.ratio(slots):>8.3f}"
            f"{peer.ratio(slots):>8.3f}{1e3 * ours.decision_s:>10.2f} ms",
            flush=True,
        )
    print(
        "makespan over the larger of work / GPUs and the longest chain of a variant; peer: the order of the file"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("real", "journal", "simulated"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a trial, in the middle")
    parser.add_argument("--gpus", type=int)
    args = parser.parse_args()
    if args.part == "real":
        real(args.trials or 500, args.seconds, args.gpus or 64)
    elif args.part == "journal":
        journal(args.trials or 10_000)
    else:
        simulated(args.gpus or 1000)


if __name__ == "__main__":
    main()
