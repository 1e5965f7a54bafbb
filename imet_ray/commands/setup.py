"""What all stages begin with: a run that is planned and started, or opened again."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.blending.options import BlendOptions
from imet_ray.commands.learning_rates import with_found_rates
from imet_ray.commands.own_pictures import describe_fit, fit_to_pictures
from imet_ray.commands.space_needs import (
    check_models,
    digests_of_weights,
    named_weights,
    pack_sizes,
    teachers_pack_sizes,
)
from imet_ray.cores import usable_cores
from imet_ray.data.catalog import Catalog, earlier_digest
from imet_ray.data.copies import first_copies
from imet_ray.data.csv_tables import warned
from imet_ray.data.folds import count_folds, folded_ids, read_folds, write_folds
from imet_ray.data.formats import accepted, read_catalog, read_directory
from imet_ray.data.sample import sample
from imet_ray.data.sources import is_directory, resolve_data
from imet_ray.data.training_data import TrainingData, extended_folds, prepare, training_split
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.tagger_files import write_labels
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.specs import Parent
from imet_ray.storage.experiment import (
    Experiment,
    begin,
    only_driver,
    read_experiment,
    refuse_changed,
    way_out,
)
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs, set_aside
from imet_ray.training.pseudo_labels import described, keep_source
from imet_ray.training.recipe import check_recipe
from imet_ray.units import user_path

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
    """What the command line asks for, read and checked, before anything is written."""

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


@dataclass(frozen=True)
class Run:
    """A run directory with everything that its stages need."""

    experiment: Experiment
    store: RunDirectory
    cache: Cache
    catalog: Catalog
    data: TrainingData


def plan(request: Request) -> Plan:
    """Read the space and the data directory, and refuse what cannot work.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    if request.fresh and request.extend:
        raise ConfigError("--fresh makes new folds and --extend keeps the old ones: choose one")
    path = request.space or near(_default_space(request.data))
    given_folds, n_folds = _folds(request.folds)
    overrides = request.overrides | n_folds
    space = read_space(path, overrides, check=check_recipe)
    metric_named(space.metric)
    BlendOptions(level2=space.level2).check()
    data = request.data or space.data
    root = resolve_data(data, cache=request.cache.root, source=request.source)
    reading = read_directory(root, request.cache, negatives=request.negatives)
    whole = accepted(root, reading)
    limit, catalog = _limited(whole, request.limit, space.n_folds)
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
    if not (request.fresh or request.extend) and (how := _other_data(store, catalog, limit)):
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
    path = request.space or near(_default_space(request.data))
    space = read_space(path, request.overrides, check=check_recipe)
    root = resolve_data(request.data or space.data, cache=request.cache.root, source=request.source)
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
        raise ConfigError(f"--name takes letters, digits, '.', '_', '+' and '-', got {given!r}")
    return given


def start(plan: Plan, *weights: str | Parent) -> Run:
    """The run with its folds, if it goes on as it was begun. The caller holds the driver's lock, and calls `pack`.

    New folds need the packed pictures, for copies share a fold. Learning rates that the space leaves open are found.

    Args:
        weights: that trials begin from, beside those of the space.
    """
    data = prepared(plan)
    space = with_found_rates(plan.space, data, plan.store)
    experiment = Experiment(
        space=space,
        data=plan.data,
        data_root=str(plan.root),
        limit=plan.limit,
        data_digest=data.split.digest,
        folds_digest=data.folds_digest,
        label_ids=list(data.label_ids),
        weights=digests_of_weights({*weights, *named_weights(plan.space)}, plan.space.n_folds),
    )
    refuse_changed(plan.store, experiment)
    for variant in space.variants:
        if variant.added is not None:
            source = keep_source(plan.store, variant.added, data)
            print(f"labels  {described(variant, data.labels, source, data.split.ids)}")
    return Run(experiment, plan.store, plan.cache, plan.catalog, data)


def prepared(plan: Plan) -> TrainingData:
    """The run's data with its folds, which are made if there are none. The caller holds the driver's lock."""
    data = prepare(
        plan.catalog,
        plan.store,
        plan.cache,
        n_folds=plan.space.n_folds,
        seed=plan.space.seed,
        given_folds=_given_folds(plan),
        find_copies=functools.partial(_copies, plan),
    )
    _refuse_other_number(plan, data.n_folds)
    _refuse_too_few(data, 2 * plan.space.resources.workers_per_trial)
    return data


def pack(run: Run) -> None:
    """Write the run's experiment, and pack the pictures for all of its trials."""
    begin(run.store, run.experiment)
    if not run.store.labels.exists():
        write_labels(run.store.labels, run.catalog.label_ids, run.catalog.label_names, run.store.files)
    for short_side in sorted(
        {*pack_sizes(run.experiment.space), *teachers_pack_sizes(run.experiment.space, run.store)}
    ):
        run.data.split.share(short_side, workers=usable_cores())


def _copies(plan: Plan) -> np.ndarray:
    """The first training picture with the same pixels as each one: (N,) int64. They are packed for that."""
    split = training_split(plan.catalog, plan.cache, plan.store.packs)
    return first_copies(split.pack(pack_sizes(plan.space)[0], workers=usable_cores()))


def _given_folds(plan: Plan) -> np.ndarray | None:
    """What `--folds FILE` says of the pictures; with `--extend` the others get new ones: (N,) int64."""
    if plan.given_folds is None:
        return None
    if plan.extend:
        return extended_folds(plan.given_folds, plan.catalog, _copies(plan))
    folds = read_folds(plan.given_folds, plan.whole_ids)
    if plan.limit is None:
        return folds
    of_picture = dict(zip(plan.whole_ids, folds.tolist(), strict=True))
    sampled = np.array([of_picture[picture] for picture in plan.catalog.train.ids], np.int64)
    if empty := sorted(set(folds.tolist()) - set(sampled.tolist())):
        raise ConfigError(
            f"--limit {plan.limit} has no picture of fold {empty[0]} of {plan.given_folds}: take more pictures"
        )
    return sampled


def _refuse_other_number(plan: Plan, n_folds: int) -> None:
    if n_folds != plan.space.n_folds:
        raise StoreError(
            f"{plan.store.root} was begun with {n_folds} folds, not {plan.space.n_folds}: {way_out(plan.store)}"
        )


def _refuse_too_few(data: TrainingData, needed: int) -> None:
    """Batch norm cannot learn from one picture, on any worker."""
    least = len(data.folds) - int(np.bincount(data.folds).max())
    if least < needed:
        raise DataError(
            f"{len(data.folds)} pictures in {data.n_folds} folds leave {least} to train on, it takes {needed}: add "
            "pictures, or take more --folds"
        )


def set_old_run_aside(plan: Plan) -> None:
    """What `--fresh` means: the old run keeps its files under another name. So does `--extend`, but for the folds."""
    store = plan.store
    if plan.fresh:
        store.files.check_set_aside()
    if not (store.experiment.exists() or store.folds.exists()):
        return
    how = _other_data(store, plan.catalog, plan.limit) if plan.extend else ""
    if not plan.fresh and not how:
        return
    store.files.check_set_aside()
    with only_driver(store):  # not while another process drives it
        folds = None
        if plan.extend:
            folds = extended_folds(plan.given_folds or store.folds, plan.catalog, _copies(plan))
            _refuse_other_number(plan, int(folds.max()) + 1)
        kept = set_aside(store.root)
    if folds is not None:
        write_folds(store.folds, plan.catalog.train.ids, folds, store.files)
    print(f"{'extend' if how else 'fresh '}  {how + ': ' if how else ''}the old run is kept as {kept}")


def _other_data(store: RunDirectory, catalog: Catalog, limit: int | None) -> str:
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


def reopen(
    runs: Runs, name: str | None, cache: Cache, *, at: str | None = None, source: Path | None = None
) -> Run:
    """The run of that name, or the newest one, with its data as they were.

    Args:
        at: where they lie now; None: where they lay.
        source: openclipart's unpacked packages.

    Raises:
        ImetError: if there is no such run, or its data have changed.
    """
    store = runs.open(name)
    experiment = read_experiment(store)
    root = _root(experiment, store, cache, at, source)
    catalog = read_catalog(root, cache, negatives=True)  # whether the run has some, its digest tells
    if experiment.limit is not None:
        catalog = sample(catalog, experiment.limit)
    if how := _other_data(store, catalog, experiment.limit):
        raise StoreError(
            f"{root} holds other data than {store.root} was begun with ({how}): say with --data where its own lie, "
            "or start a new run"
        )
    lost = StoreError(f"{store.folds} is not the file that the run was begun with: put it back")
    if not store.folds.exists():
        raise lost
    data = prepare(catalog, store, cache, n_folds=experiment.space.n_folds, seed=experiment.space.seed)
    if data.folds_digest != experiment.folds_digest:
        raise lost
    return Run(experiment, store, cache, catalog, data)


def _root(
    experiment: Experiment, store: RunDirectory, cache: Cache, at: str | None, source: Path | None
) -> Path:
    """The directory of a run's data: the given one, or where they lay, or made or fetched again."""
    root = Path(experiment.data_root)
    if at is None and source is None and root.exists():
        return root
    try:
        return resolve_data(at or experiment.data, cache=cache.root, source=source)
    except ConfigError:
        if at is not None or source is not None or not is_directory(experiment.data):
            raise
        raise ConfigError(
            f"the data of {store.root} are no longer at {root}: say with --data where they lie now"
        ) from None


def near(path: Path) -> Path:
    """The path as the user would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def data_option(run: Run) -> list[str]:
    """The option that leads to a run's data, where they do not lie in their old place."""
    root = run.catalog.root
    return [] if root == Path(run.experiment.data_root) else ["--data", str(root)]


def _describe(space: SearchSpace) -> str:
    n, searching = len(space.variants), space.trials_per_variant * len(space.search_folds)
    best = "the best" if space.soup_of is None else f"the best {space.soup_of.sets} mixed, and"
    return f"{n} variants, {searching} searching trials each, {best} trained on all of {space.n_folds} folds"
