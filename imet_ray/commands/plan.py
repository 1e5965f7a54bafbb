"""The plan of a run: what the command line asks for, read and checked, before anything is written."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imet_ray.blending.options import BlendOptions
from imet_ray.commands.own_pictures import describe_fit, fit_to_pictures
from imet_ray.commands.space_needs import check_models
from imet_ray.cores import usable_cores
from imet_ray.data.catalog import Catalog, earlier_digest
from imet_ray.data.csv_tables import warned
from imet_ray.data.folds import count_folds, folded_ids
from imet_ray.data.formats import accepted, read_directory
from imet_ray.data.sample import sample
from imet_ray.data.sources import resolve_data
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.prediction.metrics import metric_named
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage.experiment import read_experiment, way_out
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs
from imet_ray.training.recipe import check_recipe
from imet_ray.units import as_typed, user_path

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
OWN = SPACES / "own.yml"  # for pictures that no space is made for


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
    extend: bool
    limit: int | None = None  # pictures of a sample for a first look


@dataclass(frozen=True)
class Plan:
    """What is to be run. `make_plan` has checked it."""

    space: SearchSpace
    data: str
    root: Path  # of the data
    catalog: Catalog
    store: RunDirectory
    cache: Cache
    given_folds: Path | None
    fresh: bool
    extend: bool
    limit: int | None  # `catalog` is a sample of so many pictures; None: it is the whole
    whole_ids: tuple[str, ...]  # of all training pictures


def make_plan(request: Request) -> Plan:
    """Read the space and the data directory, and refuse what cannot work.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    if request.fresh and request.extend:
        raise ConfigError("--fresh makes new folds and --extend keeps the old ones: choose one")
    path = request.space or as_typed(_default_space(request.data))
    given_folds, n_folds = _folds(request.folds)
    overrides = request.overrides | n_folds
    space = read_space(path, overrides, check=check_recipe)
    metric_named(space.metric)
    BlendOptions(level2=space.level2).check()
    data = space.data if request.data is None else request.data
    root = resolve_data(data, cache=request.cache.root, source=request.source)
    reading = read_directory(root, request.cache, negatives=request.negatives)
    whole = accepted(root, reading)
    limit, catalog = _limited(whole, request.limit, space.n_folds)
    n = len(catalog.train.ids)
    refuse_too_few(space, n, n - math.ceil(n / space.n_folds))
    name = _run_name(request.name, space, data, limit)
    if fitted := path.resolve() == OWN:
        space = read_space(path, fit_to_pictures(catalog) | overrides, check=check_recipe)
    check_models(space)
    print(f"space   {path}: {_describe(space)}")
    if fitted:
        print(f"fitted  {describe_fit(space, len(catalog.train.ids), usable_cores())}")
    print(f"data    {root}: {whole.summary()}")
    if limit is not None:
        print(f"limit   {catalog.summary()}: a sample by label, for a first look only")
    for line in warned(reading.problems):
        print(f"        {line}")
    print(f"run     {request.runs.address(name)}")
    store = request.runs.run(name)
    if not (request.fresh or request.extend) and (how := other_data(store, catalog, limit)):
        aside = "--extend: new pictures get folds, old ones keep theirs, and trials are new"
        raise StoreError(f"{store.root} was begun with other data ({how}): {way_out(store, aside)}")
    return Plan(
        space=space,
        data=data,
        root=root,
        catalog=catalog,
        store=store,
        cache=request.cache,
        given_folds=given_folds,
        fresh=request.fresh,
        extend=request.extend,
        limit=limit,
        whole_ids=whole.train.ids,
    )


def refuse_too_few(space: SearchSpace, n: int, least: int) -> None:
    """Refuse data that the folds of a space leave too little of: batch norm cannot learn from one picture.

    Args:
        n: pictures.
        least: that some fold leaves to train on.
    """
    needed = 2 * space.resources.workers_per_trial  # on any worker
    if n < space.n_folds:
        raise DataError(
            f"{space.n_folds} folds need as many pictures, got {n}: add pictures, or take fewer --folds"
        )
    if least < needed:
        more = ", or take more --folds" if n > space.n_folds else ""
        raise DataError(
            f"{n} pictures in {space.n_folds} folds leave {least} to train on, it takes {needed}: add pictures{more}"
        )


def _limited(whole: Catalog, limit: int | None, n_folds: int) -> tuple[int | None, Catalog]:
    """The sample that `--limit` asks for. No limit where the data have no more pictures: then they are the whole."""
    if limit is None or limit >= max(len(whole.train.ids), len(whole.test.ids)):
        return None, whole
    if limit < n_folds:
        raise ConfigError(f"--limit must be at least n_folds={n_folds}, a picture for each fold, got {limit}")
    return limit, sample(whole, limit)


def space_and_pictures(request: Request) -> tuple[SearchSpace, Catalog]:
    """What a plan begins with, for stages that only look at it: neither models nor runs are asked.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    path = request.space or as_typed(_default_space(request.data))
    space = read_space(path, request.overrides, check=check_recipe)
    data = space.data if request.data is None else request.data
    root = resolve_data(data, cache=request.cache.root, source=request.source)
    catalog = accepted(root, read_directory(root, request.cache, negatives=request.negatives))
    if path.resolve() == OWN:
        space = read_space(path, fit_to_pictures(catalog) | request.overrides, check=check_recipe)
    return space, catalog


def _default_space(data: str | None) -> Path:
    """The space of a dataset's name, such as openclipart; for other pictures own.yml."""
    name = (data or "demo").partition(":")[0]
    known = {path.stem: path for path in SPACES.glob("*.yml")}
    return known.get(name, OWN)


def _folds(given: str | None) -> tuple[Path | None, dict[str, int]]:
    """The folds file that `--folds` names, and what it changes in the space."""
    if given is None:
        return None, {}
    if given.isascii() and given.isdigit():
        return None, {"n_folds": int(given)}
    path = user_path(given)
    if not path.is_file():
        raise ConfigError(f"--folds takes a number, a folds.csv or a folds.npy, and {given} is neither")
    return path, {"n_folds": count_folds(path)}


def _run_name(given: str | None, space: SearchSpace, data: str, limit: int | None) -> str:
    """The given name, or the space's; with the data's, where they are not those of the space, and with the limit."""
    if given is None:
        slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", data).strip("-.") or "data"
        name = space.name if data == space.data else f"{space.name}-{slug[-40:]}"
        return name if limit is None else f"{name}-limit{limit}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", given):
        raise ConfigError(
            f"--name takes letters, digits, '.', '_', '+' and '-', a letter or digit first, got {given!r}"
        )
    return given


def other_data(store: RunDirectory, catalog: Catalog, limit: int | None) -> str:
    """How the data differ from those that a run was begun with; empty: they do not, or it was not begun."""
    for path in (store.experiment, store.folds):
        store.files.fetch_file(path)
    if store.experiment.exists():
        experiment = read_experiment(store)
        before = experiment.data_digest
        if experiment.limit != limit:
            then, today = (
                f"--limit {n}" if n is not None else "no --limit" for n in (experiment.limit, limit)
            )
            return f"{then} then, {today} now"
        if before in (catalog.digest, earlier_digest(catalog)):
            return ""
    if store.folds.exists():
        ids, now = folded_ids(store.folds), set(catalog.train.ids)
        counts = {"new": len(now - ids), "gone": len(ids - now)}
        if any(counts.values()):
            return "pictures: " + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return "pictures or labels are others" if store.experiment.exists() else ""


def _describe(space: SearchSpace) -> str:
    n, searching = len(space.variants), space.trials_per_variant * len(space.search_folds)
    best = "the best" if space.soup_of is None else f"the best {space.soup_of.sets} mixed, and"
    return f"{n} variants, {searching} searching trials each, {best} trained on all of {space.n_folds} folds"
