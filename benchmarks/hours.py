"""Training hours that promoting the best set of hparams, and ASHA, save against training all sets on all folds.

    uv run python -m benchmarks.hours [--folds 5] [--epochs 4] [--trials-per-variant 4] [--variants 2]    half an hour

One space with one seed, swept three times by `launch.py --sweep`, each in a process of its own: as users run it (all
sets on the search fold under ASHA, the best one promoted to the other folds); without ASHA; and, the peer, with all
sets trained to the end on all folds, the best mean taken. The first 4 sets of a study are random
(`study_storage.tpe`), later ones learn from scores: there is no ratio for sweeps that did not try the same sets.

Slot time: the seconds of all epochs with their evaluation, from the store; of a CPU, or of a GPU where there is one.
Other work on the machine moves it and the wall time, which is the whole command's; it does not move the epochs.
Nested F2 favours the peer, whose sets were picked on all of the folds that are scored; on the test pictures nothing
was picked. Intervals are 95 % over pictures, differences paired.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from imet_ray.blending.cross_fit import bootstrap, cross_fit, silent
from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.fit_jobs import Solution, Task, solve_here
from imet_ray.blending.members import Member
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.command_line import positive
from imet_ray.commands.plan import SPACES
from imet_ray.commands.setup import Run, reopen
from imet_ray.cores import usable_cores
from imet_ray.data.sources import resolve_data
from imet_ray.prediction.ensemble import Ensemble, blend_test, gather_oof, read_ensemble
from imet_ray.prediction.metrics import METRICS
from imet_ray.reporting.run_status import TrialStatus, ended_trials
from imet_ray.search_space import Asha, SearchSpace, SpaceSettings
from imet_ray.space_file import read_space
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs
from imet_ray.training.recipe import check_recipe
from imet_ray.units import clock

F2 = METRICS["f2"]

ROOT = Path(__file__).resolve().parent.parent
PEER = "all sets on all folds"


@dataclass(frozen=True)
class Swept:
    """What a sweep took, and what came out of it."""

    trials: list[TrialStatus]
    wall_s: float
    members: dict[str, list[str]]  # variant -> its trials in the blend
    nested: np.ndarray  # (N,) float64, F2 of each training picture, fitted without its fold
    test: np.ndarray | None  # (n,) float64, of each test picture, if the data have test labels

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials)

    @property
    def epochs(self) -> int:
        return sum(len(trial.rows) for trial in self.trials)


def refuse_others(trials: list[TrialStatus], peer: list[TrialStatus], fold: int) -> None:
    """End with one line unless both sweeps tried the same sets of hparams on the search fold, data and seed alike."""
    ours, theirs = ({t.spec.trial_id for t in found if t.spec.fold == fold} for found in (trials, peer))
    if ours != theirs:
        raise SystemExit(
            f"no ratio: of {len(ours)} and {len(theirs)} sets of hparams {len(ours & theirs)} are the same; only the "
            "first 4 of a study are random: lower --trials-per-variant"
        )


def on_shared_gpus(space: SearchSpace, slots: int | None) -> SearchSpace:
    """That space, where so many trials share each GPU, and as many the cores of this machine; None: as it is."""
    if slots is None:
        return space
    cores = usable_cores() // (slots * max(1, torch.cuda.device_count()))
    shares = {"cpus_per_trial": max(1, cores), "gpus_per_trial": 1 / slots}
    return space.model_copy(update={"resources": space.resources.model_copy(update=shares)})


def as_file(space: SearchSpace) -> dict[str, Any]:
    """What a file says that is read as this space."""
    variants = []
    for variant in space.variants:
        settings = variant.model_dump(mode="json", exclude_none=True)
        search: dict[str, Any] = {
            key: wanted.model_dump(exclude_none=True) for key, wanted in space.ranges[variant.name].items()
        }
        if variant.name in space.first:
            search["first"] = space.first[variant.name]
        if variant.name in space.auto_lr:
            settings["lr"] = "auto"
        variants.append(settings | {"search": search})
    content = space.model_dump(mode="json", include={*SpaceSettings.model_fields, "name"}, exclude_none=True)
    return content | {"variants": variants}


def launched(space: SearchSpace, runs: Path) -> tuple[Run, float]:
    """Sweep in a process of its own, as a user would; the run, and the seconds it took.

    Raises:
        SystemExit: it failed, or one of its trials did.
    """
    file = runs / f"{space.name}.yml"
    file.write_text(yaml.safe_dump(as_file(space)))
    command = ["launch.py", "--sweep", "--space", str(file), "--runs", str(runs)]
    began = time.monotonic()
    with file.with_suffix(".log").open("w+") as log:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        wall_s = time.monotonic() - began
        log.seek(0)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    run = reopen(Runs(runs), space.name, Cache.default())
    if failed := [trial.reason for trial in ended_trials(run.store) if trial.state == "failed"]:
        raise SystemExit(f"no ratio: {len(failed)} trials failed, the first one: {failed[0]}")
    return run, wall_s


def sweep(space: SearchSpace, runs: Path) -> Swept:
    """Sweep, and score its blend."""
    run, wall_s = launched(space, runs)
    ensemble = read_ensemble(run.store.ensemble("blend"))
    test = None
    if (truth := run.catalog.test_labels) is not None:
        probs = blend_test(ensemble, run.store, run.catalog.test.ids)
        labelled = run.catalog.test_labelled
        test = F2.per_picture(ensemble.decoder.decode(probs[labelled]), truth[labelled])
    members = {member.variant: member.trials for member in ensemble.members}
    return Swept(ended_trials(run.store), wall_s, members, nested_f2(run, ensemble), test)


def nested_f2(run: Run, ensemble: Ensemble) -> np.ndarray:
    """The nested F2 of a sweep's blend, picture by picture, which the ensemble keeps the mean of: (N,) float64."""
    data, members = run.data, []
    for member in ensemble.members:
        trials = [run.store.trial(trial_id) for trial_id in member.trials]
        members.append(Member(member.variant, gather_oof(trials, data.split.ids, member.variant)[0]))
    seen: list[FitProblem] = []  # the last one has the cells that the scores came from

    def keep(fits: FitProblem, tasks: Sequence[Task]) -> list[Solution]:
        seen.append(fits)
        return solve_here(fits, tasks)

    space = run.experiment.space
    problem = BlendProblem(
        members,
        data.labels,
        data.folds,
        space.metric,
        seed=space.seed,
        label_groups=run.catalog.label_groups,
    )
    methods = tuple(row["method"] for row in ensemble.report["rows"] if not row["is_single"])
    evaluate(problem, BlendOptions(methods=methods, scale=ensemble.scale), runner=keep, progress=silent)
    method, decoder = (ensemble.report["chosen"][key] for key in ("method", "decoder"))
    again = cross_fit(problem, seen[-1], [method], [decoder], solve_here, silent)
    nested = again.judged[method, decoder].nested
    assert abs(nested.mean() - ensemble.report["nested"]) < 1e-9
    return nested


def interval(scores: np.ndarray | None) -> str:
    if scores is None:
        return "-"
    found = bootstrap(scores[None], 0)[0]
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"


def verdict(ours: np.ndarray, peer: np.ndarray) -> str:
    """What ours is above the peer, picture by picture, and whether that is a difference."""
    gain = bootstrap((ours - peer)[None], 0)[0]
    if not (ours - peer).any():
        return f"{gain}: the same on each picture"
    if gain.low <= 0 <= gain.high:
        return f"{gain}: no difference beyond noise; a loss above {max(0.0, -gain.low):.4f} is ruled out"
    return f"{gain}: {'better' if gain.low > 0 else 'worse'} beyond noise: NOT equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", type=Path, default=SPACES / "demo.yml")
    parser.add_argument("--trials-per-variant", type=positive, default=4)
    parser.add_argument("--folds", type=positive, help="default: the space's")
    parser.add_argument("--epochs", type=positive, help="default: the space's")
    parser.add_argument("--variants", type=positive, help="the first so many of the space; default: all")
    parser.add_argument(
        "--slots-per-gpu", type=positive, help="trials that share a GPU; default: the space's"
    )
    args = parser.parse_args()
    given = {"trials_per_variant": args.trials_per_variant, "n_folds": args.folds, "epochs": args.epochs}
    given = {key: value for key, value in given.items() if value is not None}
    whole = on_shared_gpus(read_space(args.space, given, check=check_recipe), args.slots_per_gpu)
    whole = whole.model_copy(update={"variants": whole.variants[: args.variants]})
    resolve_data(whole.data, cache=Cache.default().root)  # drawn or fetched in nobody's wall time
    plans: dict[str, dict[str, Any]] = {
        "best set promoted, ASHA": {"name": "asha", "asha": whole.asha or Asha()},
        "best set promoted": {"name": "promote", "asha": None},
        PEER: {"name": "all", "asha": None, "search_folds": tuple(range(whole.n_folds))},
    }
    unit = "CPU cores"
    if torch.cuda.is_available():
        unit = f"GPUs, of {args.slots_per_gpu} slots each" if args.slots_per_gpu else "GPUs"
    print(
        f"{len(whole.variants)} variants x {whole.trials_per_variant} sets, {whole.n_folds} folds, "
        f"{whole.variants[0].epochs} epochs; slot time of {unit}, "
        f"{usable_cores()} cores\n\n"
        f"{'sweep':<25}{'trials':>7}{'epochs':>8}{'slot time':>11}{'wall':>8}  {'nested F2':<26}test F2",
        flush=True,
    )
    swept: dict[str, Swept] = {}
    with tempfile.TemporaryDirectory() as runs:
        for name, changes in plans.items():
            found = swept[name] = sweep(whole.model_copy(update=changes), Path(runs))
            refuse_others(found.trials, next(iter(swept.values())).trials, whole.search_folds[0])
            print(
                f"{name:<25}{len(found.trials):>7}{found.epochs:>8}{clock(found.seconds):>11}{clock(found.wall_s):>8}"
                f"  {interval(found.nested):<26}{interval(found.test)}",
                flush=True,
            )
    peer = swept.pop(PEER)
    for name, found in swept.items():
        same = sum(found.members[variant] == trials for variant, trials in peer.members.items())
        print(
            f"\n{PEER}, over {name}: epochs {peer.epochs / found.epochs:.2f}, "
            f"slot time {peer.seconds / found.seconds:.2f}, wall {peer.wall_s / found.wall_s:.2f}"
        )
        print(f"  the same set was picked for {same} of {len(peer.members)} variants")
        print(f"  nested F2 {verdict(found.nested, peer.nested)}")
        if found.test is not None and peer.test is not None:
            print(f"  test F2   {verdict(found.test, peer.test)}")


if __name__ == "__main__":
    main()
