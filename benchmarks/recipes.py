"""What each recipe gains alone: three folds, equal epochs, one thing changed at a time, nothing searched.

    uv run python -m benchmarks.recipes [--limit 3000] [--again base,NAME] [--runs DIR] [--json FILE]    an hour or two

`recipes.yml` has the recipes: each differs from `base` in one thing. They are swept by `launch.py --sweep`; given
`--runs`, what is trained there is not trained again. Other views, limits on the number of labels and level 2 train
nothing: they are scored on predictions of the models that are there.

Each picture is scored by a model that never saw it, and its threshold, temperature, limits and level 2 were fitted
without its fold (nested). The test pictures are scored by the mean of the three folds' models. A gain is the mean
difference over pictures, with a 95 % interval of a paired bootstrap. The interval knows of other pictures, not of other
seeds: `--again` trains the named recipes once more, with another seed and other folds, and compares these with each
other. What the base gains over itself is luck. Nothing is corrected for the number of rows: of twenty that gain nothing
one may seem to.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from imet_ray.blending.cross_fit import CrossFit, Gain, bootstrap, cross_fit, silent
from imet_ray.blending.evaluate import score_level2
from imet_ray.blending.fit_jobs import SINGLE, solve_here
from imet_ray.blending.label_limits import with_limits
from imet_ray.blending.members import Member
from imet_ray.blending.methods import UNIFORM
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.blending.stacking import STACKERS
from imet_ray.command_line import positive
from imet_ray.commands.setup import Run, reopen
from imet_ray.data.training_data import test_split
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.ensemble import gather_oof
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.predict import predict_checkpoint, read_predictions
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.storage.results import Standing, read_result, standings
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs

ROOT = Path(__file__).resolve().parent.parent
SPACE = Path(__file__).with_suffix(".yml")
BASE = "base"
BLEND = "blend of all"
# what a recipe is compared with, where that is not the base alone
PEERS = {"grown": ("large", BASE), "large-letterbox": ("large",)}
PARENTS = ("half",)  # trained for another recipe: no row, and not in the blend
FLATTERED = ("pseudo-2019",)  # labels of fold k reached the models of fold k: the test pictures judge it
THRESHOLD, EXPECTED = DECODERS = ("threshold", "expected-f2")
TEST = "test, threshold"  # pictures that nobody trained on or fitted on: a model per fold, averaged
COLUMNS = (*DECODERS, TEST)
VIEWS = ViewSet(names=("random:8",))
RUN, AGAIN = "recipes", "recipes-again"
SEED = 1  # of what is trained again

Scores = dict[str, np.ndarray]  # by column: of each picture, (N,) float64


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe against its peer."""

    recipe: str
    peer: str
    score: dict[str, float]  # by decoder, nested; and of the test pictures
    gain: dict[str, Gain]  # likewise
    seconds: float | None = None  # of training, all folds; None: nothing was trained for it

    def text(self) -> str:
        said = [
            f"{self.score[column]:.4f} {self.gain[column]}" if column in self.gain else "-"
            for column in COLUMNS
        ]
        seconds = "-" if self.seconds is None else f"{self.seconds:.0f} s"
        return f"{self.recipe:<22}{self.peer:<17}{''.join(f'{one:<35}' for one in said)}{seconds:>8}  {self.verdict()}"

    def verdict(self) -> str:
        if self.recipe in FLATTERED:
            return f"{verdict([self.gain[TEST]])}, on the test pictures" if TEST in self.gain else "flattered"
        return verdict([self.gain[decoder] for decoder in DECODERS])


def verdict(gains: Sequence[Gain]) -> str:
    """Whether there is a difference, under all decoders."""
    if all(gain.low > 0 for gain in gains):
        return "gains"
    if all(gain.high < 0 for gain in gains):
        return "loses"
    return "nothing beyond noise" if all(gain.low <= 0 <= gain.high for gain in gains) else "by one decoder"


def compared(recipe: str, peer: str, scores: Mapping[str, Scores], seconds: float | None = None) -> Row:
    """A recipe against its peer, picture by picture."""
    ours, theirs = scores[recipe], scores[peer]
    both = [column for column in COLUMNS if column in ours and column in theirs]
    gains = {column: bootstrap((ours[column] - theirs[column])[None], 0)[0] for column in both}
    return Row(recipe, peer, {column: float(ours[column].mean()) for column in both}, gains, seconds)


def part_of(space: Path, names: Sequence[str], *, seed: int, run: str) -> dict[str, Any]:
    """The space with some of its recipes and what they come after, with another seed, for a run of another name.

    Raises:
        SystemExit: there is no such recipe.
    """
    content: dict[str, Any] = yaml.safe_load(space.read_text())
    known = {variant["name"]: variant for variant in content["variants"]}
    wanted, names = set(), list(names)
    while names:
        name = names.pop()
        if name not in known:
            raise SystemExit(f"{space} has no recipe {name!r}: choose among {', '.join(known)}")
        wanted.add(name)
        if isinstance(weights := known[name].get("weights"), dict):
            names.append(weights["variant"])
        if (added := added_labels(known[name])) is not None and "/" not in added["from"]:
            names.append(added["from"])
        elif added is not None:
            added["from"] = f"{run}/{BASE}"
    content["variants"] = [variant for name, variant in known.items() if name in wanted]
    return content | {"seed": seed}


def added_labels(variant: dict[str, Any]) -> dict[str, Any] | None:
    """Its pseudo-labels, as the file has them."""
    found: dict[str, Any] | None = variant.get("labels", {}).get("add")
    return found


def trained(content: dict[str, Any], name: str, *, runs: Path, limit: int | None) -> Run:
    """The run with all recipes of a space. Those that learn from out-of-fold predictions come after the others.

    Raises:
        SystemExit: a command failed.
    """
    at_once = [one for one in content["variants"] if "/" not in (added_labels(one) or {"from": BASE})["from"]]
    teacher = runs / name / "ensembles" / BASE / "ensemble.json"
    for variants in (at_once, content["variants"]):
        if len(variants) < len(content["variants"]) and teacher.exists():
            continue  # an interrupted run: it has others already
        file = runs / f"{name}.yml"
        file.write_text(yaml.safe_dump(content | {"variants": variants}))
        sweep = ["launch.py", "--sweep", "--space", str(file), "--runs", str(runs), "--name", name]
        called([*sweep, "--concurrency", "1", *([] if limit is None else ["--limit", str(limit)])])
        if not teacher.exists():
            called(["blend.py", "--runs", str(runs), "--name", name, "--members", BASE, "--out", BASE])
        if variants == content["variants"]:
            break
    return reopen(Runs(runs), name, Cache.default())


def called(command: Sequence[str]) -> None:
    """Run one of the project's commands, as a user would.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def whole(run: Run) -> dict[str, Standing]:
    """The recipes that are trained on all folds, in the order of the space."""
    names = [variant.name for variant in run.experiment.space.variants]
    found = {standing.variant: standing for standing in standings(run.store, names) if standing.whole}
    return {name: found[name] for name in names if name in found}


def out_of_fold(run: Run, standing: Standing, views: ViewSet | None = None) -> Member:
    """A recipe's predictions of the pictures that its models never saw; those that are not there are made."""
    trials = [standing.trials[fold] for fold in sorted(standing.trials)]
    for fold, trial in zip(sorted(standing.trials), trials, strict=True):
        path = trial.oof_of(views.tag if views else None)
        rows, labels = run.data.rows(fold, held_out=True), run.data.label_ids
        predict_checkpoint(
            trial, run.data.split, rows, path=path, label_ids=labels, device=device(), views=views
        )
    probs, _ = gather_oof(trials, run.data.split.ids, standing.variant, views)
    return Member(standing.variant, probs, run.data.split.ids)


def seconds_of(standing: Standing) -> float:
    """Training of all folds."""
    found = [read_result(trial) for trial in standing.trials.values()]
    return sum(result.seconds for result in found if result is not None)


def single(member: Member, problem: BlendProblem) -> CrossFit:
    """One member alone under each decoder."""
    alone = replace(problem, members=(member,))
    fits = FitProblem.on("probability", alone, BlendOptions())
    return cross_fit(alone, fits, [f"{SINGLE}0"], DECODERS, solve_here, silent)


def uniform(problem: BlendProblem) -> CrossFit:
    """The uniform blend of log-odds under each decoder."""
    fits = FitProblem.on("log-odds", problem, BlendOptions())
    return cross_fit(problem, fits, [UNIFORM], DECODERS, solve_here, silent)


def nested(found: CrossFit) -> Scores:
    """What the one method of a fit scores."""
    return {one.decoder: one.nested for one in found.judged.values()}


def limits_row(recipe: str, peer: str, found: CrossFit, problem: BlendProblem) -> Row:
    """What limits on the number of labels gain, fitted without each fold."""
    scores, gains = {}, {}
    for key, one in found.judged.items():
        _, said = with_limits(one, replace(found, judged={key: one}), problem, BlendOptions(limits="fit"))
        scores[one.decoder], gains[one.decoder] = said.nested, said.gain
    return Row(recipe, peer, scores, gains)


def on_test(run: Run, standing: Standing, decoder: Decoder) -> np.ndarray | None:
    """The score of each test picture, by the mean of the folds' models; None where the data have no such labels."""
    truth, labelled = run.catalog.test_labels, run.catalog.test_labelled
    if truth is None:
        return None
    split, trials = test_split(run.catalog, run.cache), list(standing.trials.values())
    rows, labels = np.arange(len(split.ids)), run.data.label_ids
    for trial in trials:
        predict_checkpoint(trial, split, rows, path=trial.test, label_ids=labels, device=device())
    probs = np.mean([read_predictions(trial.test).probs.astype(np.float32) for trial in trials], axis=0)
    metric = metric_named(run.experiment.space.metric)
    return metric.per_picture(decoder.decode(probs[labelled]), truth[labelled])


@dataclass(frozen=True)
class Recipes:
    """What is trained, and what each picture scores."""

    run: Run
    found: dict[str, Standing]
    problem: BlendProblem  # its members are all recipes but parents and those that are flattered
    alone: dict[str, CrossFit]
    scores: dict[str, Scores]

    @classmethod
    def of(cls, run: Run) -> "Recipes":
        found = whole(run)
        members = {name: out_of_fold(run, standing) for name, standing in found.items()}
        several = [member for name, member in members.items() if name not in PARENTS + FLATTERED]
        space = run.experiment.space
        problem = BlendProblem(several, run.data.labels, run.data.folds, space.metric, seed=space.seed)
        alone = {name: single(member, problem) for name, member in members.items()}
        scores = {name: nested(one) for name, one in alone.items()}
        for name, one in alone.items():
            test = on_test(run, found[name], one.judged[f"{SINGLE}0", THRESHOLD].whole.decoder)
            scores[name] |= {} if test is None else {TEST: test}
        return cls(run, found, problem, alone, scores)

    def trained(self) -> list[Row]:
        """Each recipe against its peer."""
        names = [name for name in self.found if name not in (BASE, *PARENTS)]
        pairs = [(name, peer) for name in names for peer in PEERS.get(name, (BASE,)) if peer in self.found]
        return [compared(name, peer, self.scores, seconds_of(self.found[name])) for name, peer in pairs]

    def untrained(self) -> list[Row]:
        """Views, the blend, limits and level 2."""
        problem, blend = self.problem, uniform(self.problem)
        views = single(out_of_fold(self.run, self.found[BASE], VIEWS), problem)
        scores = self.scores | {"views random:8": nested(views), BLEND: nested(blend)}
        best = max(problem.names, key=lambda name: float(scores[name][THRESHOLD].mean()))
        rows = [compared("views random:8", BASE, scores), compared(BLEND, best, scores)]
        rows.append(limits_row("limits on labels", BASE, self.alone[BASE], problem))
        rows.append(limits_row("limits on labels", BLEND, blend, problem))
        for name in STACKERS:
            options = BlendOptions(decoders=DECODERS)
            stack, _ = score_level2(name, problem, options, runner=solve_here, progress=silent)
            scores[f"level 2, {name}"] = nested(stack)
        return rows + [
            compared(f"level 2, {name}", peer, scores) for name in STACKERS for peer in (BLEND, best)
        ]


def luck(first: Recipes, again: Recipes) -> Row:
    """What the base gains over itself with another seed and other folds."""
    name, ids = f"{BASE}, seed {SEED}", first.run.data.split.ids
    assert again.run.data.split.ids == ids
    return compared(name, BASE, {name: again.scores[BASE], BASE: first.scores[BASE]})


def print_rows(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}")
    print(f"{'recipe':<22}{'against':<17}", end="")
    print("".join(f"{decoder:<35}" for decoder in COLUMNS), f"{'training':>8}", sep="")
    for row in rows:
        print(row.text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--limit", type=positive, default=3000, help="training pictures")
    parser.add_argument("--again", default="", help=f"recipes to train once more, with seed {SEED}")
    parser.add_argument("--runs", type=Path, help="default: a temporary directory")
    parser.add_argument("--json", type=Path, help="the rows, for a program")
    args = parser.parse_args()
    with ExitStack() as stack:
        runs = args.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(args.space.read_text())
        recipes = Recipes.of(trained(content, RUN, runs=runs, limit=args.limit))
        data, space = recipes.run.data, recipes.run.experiment.space
        base = recipes.scores[BASE]
        rows = [*recipes.trained(), *recipes.untrained()]
        print_rows(
            f"{len(data.labels):,} pictures, {space.n_folds} folds, seed {space.seed}; {BASE}: "
            + ", ".join(f"{base[decoder].mean():.4f} by {decoder}" for decoder in DECODERS)
            + f", {seconds_of(recipes.found[BASE]):.0f} s of training",
            rows,
        )
        if args.again:
            content = part_of(args.space, [BASE, *args.again.split(",")], seed=SEED, run=AGAIN)
            again = Recipes.of(trained(content, AGAIN, runs=runs, limit=args.limit))
            more = [luck(recipes, again), *again.trained()]
            print_rows(f"once more, seed {SEED}, other folds", more)
            rows += [replace(row, recipe=f"{row.recipe}, again") for row in more]
        if args.json:
            args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
