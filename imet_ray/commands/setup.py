"""What all stages begin with: a run that is planned and started, or opened again; and the check of a data directory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imet_ray.data.catalog import Catalog
from imet_ray.data.check import check_data as check_directory
from imet_ray.data.csv_tables import warned
from imet_ray.data.folds import count_folds
from imet_ray.data.formats import accepted, read_catalog, read_directory
from imet_ray.data.sources import resolve_data
from imet_ray.data.training_data import TrainingData, prepare
from imet_ray.errors import ConfigError, StoreError
from imet_ray.models.models import check_architecture
from imet_ray.prediction.metrics import metric_named
from imet_ray.search_space import SearchSpace, read_space
from imet_ray.specs import default_pack_short_side
from imet_ray.storage.experiment import Experiment, begin, only_driver, read_experiment
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs, set_aside
from imet_ray.training.recipe import check_recipe

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


@dataclass(frozen=True)
class Request:
    """What the command line says of a run, as it was typed."""

    space: Path | None
    data: str | None
    source: Path | None  # openclipart's unpacked packages
    negatives: bool  # pictures without labels have none of them
    name: str | None
    runs: Runs
    cache: Cache
    folds: str | None
    overrides: dict[str, Any]  # of the space's settings
    fresh: bool


@dataclass(frozen=True)
class Plan:
    """What the command line asks for, read and checked, before anything is written."""

    space: SearchSpace
    data: str
    root: Path  # of the data
    catalog: Catalog
    store: RunDirectory
    cache: Cache
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


def check_data(root: Path, *, negatives: bool = False) -> int:
    """Print the report on a data directory; 1 if it must not be trained on.

    Args:
        negatives: pictures without labels have none of them; else they are a problem.
    """
    report = check_directory(root, workers=torch.get_num_threads(), negatives=negatives)
    print(report.text())
    return 1 if report.forbids else 0


def plan(request: Request) -> Plan:
    """Read the space and the data directory, and refuse what cannot work.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    path = request.space
    if path is None:
        own = SPACES / f"{(request.data or 'demo').partition(':')[0]}.yml"
        path = near(own if own.is_file() else SPACES / "demo.yml")
    given_folds, n_folds = _folds(request.folds)
    space = read_space(path, request.overrides | n_folds, check=check_recipe)
    metric_named(space.metric)
    for variant in space.variants:
        check_architecture(variant.architecture)
    data = request.data or space.data
    if request.source is not None and data != "openclipart":
        raise ConfigError("--from is for --data openclipart")
    root = resolve_data(data, cache=request.cache.root, source=request.source)
    reading = read_directory(root, negatives=request.negatives)
    catalog = accepted(root, reading)
    name = _run_name(request.name, space, data)
    print(f"space   {path}: {_describe(space)}")
    print(f"data    {root}: {catalog.summary()}")
    for line in warned(reading.problems):
        print(f"        {line}")
    print(f"run     {request.runs.address(name)}")
    return Plan(
        space=space,
        data=data,
        root=root,
        catalog=catalog,
        store=request.runs.run(name),
        cache=request.cache,
        given_folds=given_folds,
        fresh=request.fresh,
    )


def _folds(given: str | None) -> tuple[Path | None, dict[str, int]]:
    """The folds file that `--folds` names, and what it changes in the space."""
    if given is None:
        return None, {}
    if given.isascii() and given.isdigit():
        return None, {"n_folds": int(given)}
    if not Path(given).is_file():
        raise ConfigError(f"--folds takes a number or a folds.csv, and {given} is neither")
    return Path(given), {"n_folds": count_folds(Path(given))}


def _run_name(given: str | None, space: SearchSpace, data: str) -> str:
    """The given name, or the space's; with the data's, where they are not those of the space."""
    if given is None:
        slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", data).strip("-.") or "data"
        return space.name if data == space.data else f"{space.name}-{slug[-40:]}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", given):
        raise ConfigError(f"--name takes letters, digits, '.', '_', '+' and '-', got {given!r}")
    return given


def start(plan: Plan) -> Run:
    """Write the run's folds and experiment, and pack the pictures. The caller holds the driver's lock."""
    data = prepare(
        plan.catalog,
        plan.store,
        plan.cache,
        n_folds=plan.space.n_folds,
        seed=plan.space.seed,
        given_folds=plan.given_folds,
    )
    if data.n_folds != plan.space.n_folds:
        raise StoreError(
            f"{plan.store.root} was begun with {data.n_folds} folds, not {plan.space.n_folds}: "
            "choose another --name, or --fresh to set the old run aside"
        )
    experiment = Experiment(
        space=plan.space,
        data=plan.data,
        data_root=str(plan.root),
        data_digest=data.split.digest,
        folds_digest=data.folds_digest,
        label_ids=list(data.label_ids),
    )
    begin(plan.store, experiment)
    for short_side in _pack_sizes(plan.space):
        data.split.share(short_side, workers=torch.get_num_threads())
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
    catalog = read_catalog(root, negatives=True)  # those of the run: the digest knows each picture's labels
    if catalog.digest != experiment.data_digest:
        raise StoreError(f"the data in {root} have changed since {store.root} was begun: start a new run")
    lost = StoreError(f"{store.folds} is not the file that the run was begun with: put it back")
    if not store.folds.exists():
        raise lost
    data = prepare(catalog, store, cache, n_folds=experiment.space.n_folds, seed=experiment.space.seed)
    if data.folds_digest != experiment.folds_digest:
        raise lost
    return Run(experiment, store, cache, catalog, data)


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
