"""The stages of the command line that need no cluster: setting a run up, checking data, one trial.

Each prints what a person wants to read and returns the exit code.
"""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imet_ray.data.catalog import Catalog
from imet_ray.data.check import check_data as check_directory
from imet_ray.data.folds import count_folds
from imet_ray.data.formats import read_catalog
from imet_ray.data.sources import resolve_data
from imet_ray.data.training_data import TrainingData, prepare
from imet_ray.errors import ConfigError, SettingError, StoreError, unknown_name
from imet_ray.models.models import check_architecture
from imet_ray.prediction.metrics import metric_named
from imet_ray.search_space import SearchSpace, read_space, unknown_key
from imet_ray.specs import Hparam, TrialSpec, Variant, default_pack_short_side
from imet_ray.storage.experiment import Experiment, begin, only_driver, read_experiment, resolve
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs, set_aside
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


@dataclass(frozen=True)
class Plan:
    """What the command line asks for, read and checked, before anything is written."""

    space: SearchSpace
    data: str
    root: Path  # of the data
    catalog: Catalog
    store: RunDirectory
    cache: Cache
    n_folds: int
    given_folds: Path | None
    fresh: bool


@dataclass(frozen=True)
class Run:
    """A run directory with everything that its stages need."""

    experiment: Experiment
    store: RunDirectory
    cache: Cache
    catalog: Catalog
    data: TrainingData


def cache_at(given: Path | None) -> Cache:
    """The cache that the user named, or the default one."""
    return Cache(given.resolve()) if given else Cache.default()


def check_data(root: Path) -> int:
    """Print the report on a data directory; 1 if it must not be trained on."""
    report = check_directory(root, workers=torch.get_num_threads(), progress=True)
    print(report.text())
    return 1 if report.forbids else 0


def plan(
    *,
    space: Path | None,
    data: str | None,
    source: Path | None,
    name: str | None,
    runs: Runs,
    cache: Cache,
    folds: str | None,
    overrides: dict[str, Any],
    fresh: bool,
) -> Plan:
    """Read the space and the data directory, and refuse what cannot work.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    if space is None:
        own = SPACES / f"{(data or 'demo').partition(':')[0]}.yml"
        space = near(own if own.is_file() else SPACES / "demo.yml")
    given_folds = None
    if folds is not None:
        if folds.isdigit():
            overrides = overrides | {"n_folds": int(folds)}
        elif Path(folds).is_file():
            given_folds = Path(folds)
            overrides = overrides | {"n_folds": count_folds(given_folds)}
        else:
            raise ConfigError(f"--folds takes a number or a folds.csv, and {folds} is neither")
    found = read_space(space, overrides, check=check_recipe)
    metric_named(found.metric)
    for variant in found.variants:
        check_architecture(variant.architecture)
    wanted = data or found.data
    if source is not None and wanted != "openclipart":
        raise ConfigError("--from is for --data openclipart")
    root = resolve_data(wanted, cache=cache.root, source=source)
    catalog = read_catalog(root)
    if name is None:
        slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", wanted).strip("-.") or "data"
        name = found.name if wanted == found.data else f"{found.name}-{slug[-40:]}"
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ConfigError(f"--name takes letters, digits, '.', '_', '+' and '-', got {name!r}")
    print(f"space   {space}: {_describe(found)}")
    print(f"data    {root}: {catalog.summary()}")
    print(f"run     {runs.address(name)}")
    return Plan(
        space=found,
        data=wanted,
        root=root,
        catalog=catalog,
        store=runs.run(name),
        cache=cache,
        n_folds=found.n_folds,
        given_folds=given_folds,
        fresh=fresh,
    )


def start(plan: Plan) -> Run:
    """Write the run's folds and experiment, and pack the pictures; the caller holds the driver's lock."""
    data = prepare(
        plan.catalog,
        plan.store,
        plan.cache,
        n_folds=plan.n_folds,
        seed=plan.space.seed,
        given_folds=plan.given_folds,
    )
    if data.n_folds != plan.n_folds:
        raise StoreError(
            f"{plan.store.root} was begun with {data.n_folds} folds, not {plan.n_folds}: "
            "choose another --name, or --fresh to set the old run aside"
        )
    experiment = resolve(
        plan.space,
        data=plan.data,
        data_root=plan.root,
        data_digest=data.split.digest,
        folds_digest=data.folds_digest,
        label_ids=data.label_ids,
    )
    begin(plan.store, experiment)
    for short_side in _pack_sizes(plan.space):
        data.split.share(short_side, workers=torch.get_num_threads(), progress=True)
    return Run(experiment, plan.store, plan.cache, plan.catalog, data)


def set_old_run_aside(plan: Plan) -> None:
    """What `--fresh` means: the old run keeps its files under another name."""
    if plan.fresh:
        plan.store.files.check_set_aside()
    if plan.fresh and (plan.store.experiment.exists() or plan.store.folds.exists()):
        with only_driver(plan.store):  # not while another process drives it
            kept = set_aside(plan.store.root)
        print(f"fresh   the old run is kept as {kept}")


def reopen(runs: Runs, name: str | None, cache: Cache) -> Run:
    """The run of that name, or the newest one, with its data as they were.

    Raises:
        ImetError: if there is no such run, or its data have changed.
    """
    store = runs.open(name)
    experiment = read_experiment(store)
    root = Path(experiment.data_root)
    if not root.exists():  # a cache that was emptied: generate or fetch again
        root = resolve_data(experiment.data, cache=cache.root)
    catalog = read_catalog(root)
    if catalog.digest != experiment.data_digest:
        raise StoreError(f"the data in {root} have changed since {store.root} was begun: start a new run")
    lost = StoreError(f"{store.folds} is not the file that the run was begun with: put it back")
    if not store.folds.exists():
        raise lost
    data = prepare(catalog, store, cache, n_folds=experiment.space.n_folds, seed=experiment.space.seed)
    if data.folds_digest != experiment.folds_digest:
        raise lost
    return Run(experiment, store, cache, catalog, data)


def train(plan: Plan, variant_name: str, fold: int, settings: dict[str, Hparam]) -> int:
    """Train one trial in this process; 1 if it failed."""
    known = {variant.name: variant for variant in plan.space.variants}
    if variant_name not in known:
        raise unknown_name("variant", variant_name, known)
    if not 0 <= fold < plan.n_folds:
        raise ConfigError(
            f"fold must be below n_folds={plan.n_folds}, got {fold}: choose 0..{plan.n_folds - 1}"
        )
    if plan.space.resources.workers_per_trial > 1:
        raise ConfigError(
            "--train trains in this process alone, and workers_per_trial is "
            f"{plan.space.resources.workers_per_trial}: sweep, or leave it out of the space"
        )
    variant = known[variant_name]
    recipe = _with_settings(variant, settings)
    set_old_run_aside(plan)
    with only_driver(plan.store):
        run = start(plan)
        spec = TrialSpec(
            variant=variant,
            hparams=settings,
            fold=fold,
            n_folds=plan.n_folds,
            seed=plan.space.seed,
            data_digest=run.data.split.digest,
            folds_digest=run.data.folds_digest,
            pack_short_side=plan.space.pack_short_side or default_pack_short_side(recipe.image_size),
            metric=plan.space.metric,
        )
        trial = plan.store.trial(spec.trial_id)
        wanted = plan.space.resources.gpus_per_trial
        if wanted not in ("auto", 0) and not torch.cuda.is_available():
            raise ConfigError(
                f"gpus_per_trial is {wanted:g} and torch sees none: install a CUDA build of torch, or set "
                "gpus_per_trial: auto"
            )
        device = torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")
        print(f"trial   {trial.root} on {device}")
        began = time.monotonic()

        def report(metrics: EpochMetrics) -> None:
            print(
                f"epoch {metrics['epoch']:>3}/{recipe.epochs}  loss {metrics['train_loss']:.4f}  "
                f"valid {metrics['valid_loss']:.4f}  F2 {metrics['score']:.4f} at {metrics['threshold']:.3f}  "
                f"expected-F2 {metrics['expected_score']:.4f}  lr {metrics['lr']:.2g}  "
                f"{metrics['images_per_s']:.0f} images/s  waited {metrics['wait_s']:.1f} s",
                flush=True,
            )

        workers = plan.space.resources.loader_workers
        result = train_trial(
            spec,
            run.data,
            trial,
            device=device,
            loader_workers=(torch.get_num_threads() - 1 if device.type == "cuda" else 0)
            if workers == "auto"
            else workers,
            report=report,
        )
    if result.status == "failed":
        print(f"failed: {result.reason}", file=sys.stderr)
        return 1
    print(f"done: F2 {result.score:.4f} after {time.monotonic() - began:.0f} s; weights in {trial.best}")
    return 0


def _with_settings(variant: Variant, settings: dict[str, Hparam]) -> Variant:
    for key in settings:
        if key not in Variant.model_fields or key == "name":
            raise ConfigError(f"--set: {unknown_key(key, list(Variant.model_fields))}")
        if not isinstance(settings[key], Hparam):
            raise ConfigError(f"--set takes single values, and {key} is a list: write it into a search space")
    try:
        recipe = variant.with_hparams(settings)
        check_recipe(recipe)
        return recipe
    except SettingError as error:
        raise ConfigError(f"--set: {error}") from None
    except ValueError as error:  # pydantic's: one line of it is enough
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ConfigError(f"--set: {' '.join(lines)}") from None


def near(path: Path) -> Path:
    """The path as the user would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def elsewhere(store: RunDirectory) -> str:
    """The option that leads to a run, where it does not lie in the default place."""
    where = store.files.address(store.root.parent)
    return "" if where == "runs" else f" --runs {where}"


def _pack_sizes(space: SearchSpace) -> list[int]:
    """The packs that the space's trials need."""
    if space.pack_short_side is not None:
        return [space.pack_short_side]
    sizes = set()
    for variant in space.variants:
        wanted = space.ranges[variant.name].get("image_size")
        image_sizes = wanted.corners() if wanted is not None else (variant.image_size,)
        sizes |= {default_pack_short_side(int(size)) for size in image_sizes if size is not None}
    return sorted(sizes)


def _describe(space: SearchSpace) -> str:
    n, searching = len(space.variants), space.trials_per_variant * len(space.search_folds)
    return (
        f"{n} variants, {searching} searching trials each, the best trained on all of {space.n_folds} folds"
    )
