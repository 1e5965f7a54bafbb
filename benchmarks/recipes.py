"""What each recipe gains alone: three folds, equal epochs, one setting changed at a time.

    uv run python -m benchmarks.recipes [--limit 2400] [--space FILE] [--runs DIR] [--json FILE]    an hour and more

`recipes.yml` has the recipes: each differs from `base` in one thing, and none is searched. All are swept by
`launch.py --sweep`; given `--runs`, what is trained there is not trained again. Views, label limits and level 2 train
nothing: they are scored on the out-of-fold predictions that are there.

Each picture is scored by a model that never saw it, and its threshold, temperature, limits or level 2 were fitted
without its fold (nested). A gain is the mean difference over pictures with a 95 % interval of a paired bootstrap. The
interval knows of other pictures, not of other seeds: with `--seed N` the base is trained once more, and the row
`other seed` says how far luck alone goes. Several rows are compared, and nothing is corrected for that: of twenty
that gain nothing one is beyond noise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml

from imet_ray.blending.cross_fit import CrossFit, Gain, Judged, best_nested, bootstrap, cross_fit, silent
from imet_ray.blending.evaluate import score_level2
from imet_ray.blending.fit_jobs import SINGLE, solve_here
from imet_ray.blending.label_limits import with_limits
from imet_ray.blending.members import Member
from imet_ray.blending.methods import UNIFORM
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.command_line import positive
from imet_ray.commands.setup import Run, reopen
from imet_ray.prediction.ensemble import gather_oof
from imet_ray.prediction.predict import predict_checkpoint
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.storage.results import Standing, read_result, standings
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs
from imet_ray.units import clock

ROOT = Path(__file__).resolve().parent.parent
SPACE = Path(__file__).with_suffix(".yml")
BASE = "base"
PEERS = {"grown": "large"}  # what a recipe is compared with, where it is not the base
DECODERS = ("threshold", "expected-f2")
VIEWS = ViewSet(names=("random:8",))
STACKERS = ("logistic", "linear", "net")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    recipe: str
    peer: str
    decoder: str
    score: float
    gain: Gain
    seconds: float | None  # of training, all folds; None: nothing was trained for it

    @property
    def verdict(self) -> str:
        return verdict(self.gain)


def verdict(gain: Gain) -> str:
    """Whether a difference is one."""
    if gain.low > 0:
        return "gains"
    return "loses" if gain.high < 0 else "nothing beyond noise"


def compared(
    scores: dict[str, np.ndarray], peers: dict[str, str], *, seed: int = 0
) -> dict[str, tuple[str, Gain]]:
    """The peer of each recipe, and what it gains over it.

    Args:
        scores: by recipe, (N,) float64 of each picture, in one order.
        peers: by recipe, where the peer is not the base.
    """
    found = {}
    for name, score in scores.items():
        peer = peers.get(name, BASE)
        if name != peer and peer in scores:
            [gain] = bootstrap((score - scores[peer])[None], seed)
            found[name] = peer, gain
    return found


def judged_single(member: Member, problem: BlendProblem) -> CrossFit:
    """One member alone, under each decoder, fitted without each fold."""
    alone = replace(problem, members=(member,))
    fits = FitProblem.on("probability", alone, BlendOptions())
    return cross_fit(alone, fits, [f"{SINGLE}0"], DECODERS, solve_here, silent)


def judged_blend(members: Sequence[Member], problem: BlendProblem) -> CrossFit:
    """The uniform blend of log-odds."""
    several = replace(problem, members=tuple(members))
    fits = FitProblem.on("log-odds", several, BlendOptions())
    return cross_fit(several, fits, [UNIFORM], DECODERS, solve_here, silent)


def nested(found: CrossFit, decoder: str) -> np.ndarray:
    """The scores of the one method that was judged: (N,) float64."""
    [one] = [judged for judged in found.judged.values() if judged.decoder == decoder]
    return one.nested


def swept(space: Path, *, runs: Path, limit: int | None, name: str, more: Sequence[str] = ()) -> Run:
    """Sweep in a process of its own, as a user would, one trial at a time.

    Raises:
        SystemExit: it failed.
    """
    command = ["launch.py", "--sweep", "--space", str(space), "--runs", str(runs), "--name", name]
    command += [*([] if limit is None else ["--limit", str(limit)]), "--concurrency", "1", *more]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return reopen(Runs(runs), name, Cache.default())


def out_of_fold(run: Run, standing: Standing, views: ViewSet | None = None) -> Member:
    """A recipe's predictions of the pictures that its models never saw; other views are predicted now."""
    trials = [standing.trials[fold] for fold in sorted(standing.trials)]
    for fold, trial in zip(sorted(standing.trials), trials, strict=True):
        predict_checkpoint(
            trial,
            run.data.split,
            run.data.rows(fold, held_out=True),
            path=trial.oof_of(views.tag if views else None),
            label_ids=run.data.label_ids,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            views=views,
        )
    probs, _ = gather_oof(trials, run.data.split.ids, standing.variant, views)
    return Member(standing.variant, np.array(probs), run.data.split.ids)


def seconds_of(standing: Standing) -> float:
    """Training of all folds."""
    found = [read_result(trial) for trial in standing.trials.values()]
    return sum(result.seconds for result in found if result is not None)
