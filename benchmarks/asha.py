"""What early stopping saves of a search, and what it costs: ASHA over the same trained sets in many orders.

    uv run python -m benchmarks.asha [--sets 8] [--epochs 4] [--wide] [--variants N] [--runs DIR]    forty minutes

`benchmarks.hours` sweeps once each way, and which sets ASHA stops there is luck for a good part. Here random sets of
hparams of each variant are trained once, on all folds and to the end, by `launch.py --sweep`. Then searches are
replayed: ordered choices of 4 of a variant's sets, as if a study had asked for these, on two slots of its own with
the seconds that each epoch took, judged by the sweep's own `SearchOnlyAsha`; the best is picked as a study picks it.

F2 is that of the picked set on the folds that it was not picked on, the mean over all choices and variants. It is
given as what it is above the pick of the same search without early stopping; intervals are 95 % of a bootstrap over
the sets. Given `--runs`, what is trained there already is not trained again.
"""

import argparse
import contextlib
import heapq
import itertools
import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
from ray.tune.schedulers import TrialScheduler

from benchmarks.hours import launched, on_shared_gpus
from imet_ray.cluster.sweep import SearchOnlyAsha
from imet_ray.cluster.variant_study import distributions, stable_seed
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.command_line import positive
from imet_ray.commands.plan import SPACES
from imet_ray.data.sources import resolve_data
from imet_ray.reporting.run_status import TrialStatus, ended_trials
from imet_ray.search_space import Asha, Range, SearchSpace
from imet_ray.space_file import read_space
from imet_ray.specs import TrialSpec
from imet_ray.storage.run_directory import Cache
from imet_ray.training.recipe import check_recipe

CHOSEN = 4  # sets a search
SLOTS = 2
SEARCH_FOLD = 0
ORDERS = 2000  # that are replayed, drawn where there are more; a replay takes half a millisecond
DRAWS = 2000  # of the bootstrap
SETTINGS = [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 2)]  # epochs of grace, factor


@dataclass(frozen=True)
class Trained:
    """One set of hparams of a variant, trained to the end."""

    spec: TrialSpec  # on the search fold
    score: list[float]  # of each epoch, there
    seconds: list[float]  # of each epoch, there
    elsewhere: float  # score at the end, the mean over the other folds


@dataclass(frozen=True)
class Pick:
    """What a search came to."""

    chosen: int  # a place in the order
    epochs: int  # that it trained


def drawn(space: SearchSpace, n_sets: int) -> SearchSpace:
    """The space with `n_sets` fixed random sets of hparams for each variant, as variants of their own."""
    variants = []
    for variant in space.variants:
        study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed=stable_seed(space.seed, variant.name))
        )
        for number in range(n_sets):
            hparams = study.ask(distributions(variant, space.ranges[variant.name])).params
            variants.append(
                variant.with_hparams(hparams).model_copy(update={"name": f"{variant.name}.{number}"})
            )
    changes = {"variants": tuple(variants), "ranges": {variant.name: {} for variant in variants}, "first": {}}
    more = {"name": "sets", "asha": None, "trials_per_variant": 1, "search_folds": (SEARCH_FOLD,)}
    return space.model_copy(update=changes | more)


def with_wide_lr(space: SearchSpace) -> dict[str, dict[str, Range]]:
    """The ranges of a space, and rates between those that hardly learn and those that hardly converge."""
    return {
        variant.name: space.ranges[variant.name]
        | {"lr": Range(low=variant.lr / 10, high=variant.lr * 10, log=True)}
        for variant in space.variants
    }


def by_variant(trials: Sequence[TrialStatus], names: Collection[str]) -> dict[str, list[Trained]]:
    """The sets of these names of each variant of the space, by number."""
    folds: dict[tuple[str, int], dict[int, TrialStatus]] = defaultdict(dict)
    for trial in trials:
        if trial.spec.variant.name not in names:
            continue
        name, number = trial.spec.variant.name.rsplit(".", 1)
        folds[name, int(number)][trial.spec.fold] = trial
    found: dict[str, list[Trained]] = defaultdict(list)
    for (name, _), of in sorted(folds.items()):
        rows = of[SEARCH_FOLD].rows
        elsewhere = [kept(trial.spec, _scores(trial)) for fold, trial in of.items() if fold != SEARCH_FOLD]
        found[name].append(
            Trained(
                spec=of[SEARCH_FOLD].spec,
                score=_scores(of[SEARCH_FOLD]),
                seconds=[row["seconds"] + row["evaluate_s"] for row in rows],
                elsewhere=float(np.mean(elsewhere)),
            )
        )
    return found


def kept(spec: TrialSpec, scores: Sequence[float]) -> float:
    """What a trial scores that was trained to the end: that of the epoch whose weights it keeps."""
    return scores[-1] if spec.recipe.keep == "last" else max(scores)


def _scores(trial: TrialStatus) -> list[float]:
    return [row["score"] for row in trial.rows]


def replay(order: Sequence[Trained], space: SearchSpace) -> Pick:
    """A search over these sets, in this order, on SLOTS slots."""
    asha = SearchOnlyAsha(space, WorkerFailures())
    # one spec for all: they are of one variant, whose rungs are shared
    config = {"phase": "search", "spec": order[0].spec.model_dump_json()}
    trials = [SimpleNamespace(trial_id=str(place), config=config) for place in range(len(order))]
    trained = [0] * len(order)
    waiting = iter(range(len(order)))
    events: list[tuple[float, int]] = []  # an epoch ends: when, and whose

    def begin(now: float) -> None:
        for place in itertools.islice(waiting, 1):  # none: all were begun
            asha.on_trial_add(None, trials[place])
            heapq.heappush(events, (now + order[place].seconds[0], place))

    for _ in range(SLOTS):
        begin(0.0)
    while events:
        now, place = heapq.heappop(events)
        trained[place] += 1
        report = {"epoch": trained[place], "score": order[place].score[trained[place] - 1]}
        judged = asha.on_trial_result(None, trials[place], report)
        if judged == TrialScheduler.CONTINUE and trained[place] < len(order[place].score):
            heapq.heappush(events, (now + order[place].seconds[trained[place]], place))
        else:
            begin(now)

    def rank(place: int) -> tuple[bool, float]:  # as `VariantStudy._best`
        complete = trained[place] == len(order[place].score)
        seen = order[place].score[: trained[place]]
        return complete, kept(order[place].spec, seen) if complete else max(seen)

    return Pick(max(range(len(order)), key=rank), sum(trained))


def searches(n_sets: int) -> np.ndarray:
    """Ordered choices of CHOSEN of so many sets, all of them or ORDERS random ones: (O, CHOSEN) int64."""
    if math.perm(n_sets, CHOSEN) <= ORDERS:
        return np.array(list(itertools.permutations(range(n_sets), CHOSEN)))
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(n_sets)[:CHOSEN] for _ in range(ORDERS)])


def interval(gains: np.ndarray, orders: np.ndarray, n_sets: int) -> str:
    """Mean of what is gained in each order, and its 95 % interval over the sets that were drawn.

    Args:
        gains: (V, O) float64, of each variant in each order.
        orders: (O, CHOSEN) int64, the sets of each.
    """
    rng = np.random.default_rng(0)

    def drawn_mean(gain: np.ndarray) -> float:
        counts = np.zeros(n_sets)
        while np.count_nonzero(counts) < CHOSEN:  # no search can be had from fewer
            counts = np.bincount(rng.integers(0, n_sets, n_sets), minlength=n_sets)
        return float(np.average(gain, weights=counts[orders].prod(axis=1)))

    means = [np.mean([drawn_mean(gain) for gain in gains]) for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def compare(space: SearchSpace, found: dict[str, list[Trained]], n_sets: int, epochs: int) -> None:
    """Print what each setting of ASHA saves and costs, and the pick of no search beside it."""
    places = searches(n_sets)
    elsewhere = np.array([[one.elsewhere for one in sets] for sets in found.values()])  # (V, sets)
    print(
        f"{len(found)} variants x {n_sets} random sets, {space.n_folds} folds, {epochs} epochs; "
        f"{len(places):,} searches of {CHOSEN} sets\n"
        f"spread of a variant's sets, F2 on the folds not searched: {elsewhere.std(axis=1, ddof=1).mean():.4f}\n\n"
        f"{'grace':>5}{'factor':>8}{'search epochs':>15}{'with promotion':>16}{'same pick':>11}  F2"
    )
    whole = CHOSEN * epochs
    promoted = (space.n_folds - 1) * epochs
    reference, _ = picks(space, found, places, None)
    f2 = np.take_along_axis(elsewhere, reference, axis=1)
    for grace, factor in [s for s in SETTINGS if s[0] < epochs]:
        chosen, trained = picks(space, found, places, Asha(grace_epochs=grace, factor=factor))
        gains = np.take_along_axis(elsewhere, chosen, axis=1) - f2
        print(
            f"{grace:>5}{factor:>8}{trained.mean() / whole:>15.0%}"
            f"{(trained.mean() + promoted) / (whole + promoted):>16.0%}{(chosen == reference).mean():>11.0%}"
            f"  {interval(gains, places, n_sets)}",
            flush=True,
        )
    print()
    for what, other in {
        "the first set, no search": elsewhere[:, places[:, 0]],
        "the best of the four, in hindsight": elsewhere[:, places].max(axis=2),
    }.items():
        print(f"{what:<57}{interval(other - f2, places, n_sets)}")


def picks(
    space: SearchSpace, found: dict[str, list[Trained]], orders: np.ndarray, asha: Asha | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which set each search picks, and after how many epochs: (V, O) int64 each.

    Args:
        orders: (O, CHOSEN) int64, the sets of each search.
    """
    under = space.model_copy(update={"asha": asha})
    ends = [[replay([sets[i] for i in order], under) for order in orders.tolist()] for sets in found.values()]
    at = np.array([[pick.chosen for pick in of] for of in ends])[..., None]  # (V, O, 1)
    chosen = np.take_along_axis(np.broadcast_to(orders, (*at.shape[:2], CHOSEN)), at, axis=2)[..., 0]
    return chosen, np.array([[pick.epochs for pick in of] for of in ends])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", type=Path, default=SPACES / "demo.yml")
    parser.add_argument("--sets", type=positive, default=8)
    parser.add_argument("--epochs", type=positive, default=4)
    parser.add_argument(
        "--slots-per-gpu", type=positive, help="trials that share a GPU; default: the space's"
    )
    parser.add_argument("--variants", type=positive, help="the first so many of the space; default: all")
    parser.add_argument("--wide", action="store_true", help="lr, too, from a tenth to ten times the space's")
    parser.add_argument("--runs", type=Path, help="default: a temporary directory")
    args = parser.parse_args()
    if args.sets < 2 * CHOSEN:  # of fewer the bootstrap finds too narrow intervals, of CHOSEN none at all
        raise SystemExit(f"--sets must be at least {2 * CHOSEN}, got {args.sets}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = on_shared_gpus(
        read_space(args.space, {"epochs": args.epochs}, check=check_recipe), args.slots_per_gpu
    )
    space = space.model_copy(update={"variants": space.variants[: args.variants]})
    if args.wide:
        space = space.model_copy(update={"ranges": with_wide_lr(space)})
    resolve_data(space.data, cache=Cache.default().root)
    with contextlib.ExitStack() as stack:
        runs = args.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs.mkdir(parents=True, exist_ok=True)
        sets_of_all = drawn(space, args.sets)
        run, _ = launched(sets_of_all, runs)
        names = {variant.name for variant in sets_of_all.variants}
        found = by_variant(ended_trials(run.store), names)
    compare(space, found, args.sets, args.epochs)


if __name__ == "__main__":
    main()
