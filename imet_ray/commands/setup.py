"""What most stages begin with: a run that is started as planned, or opened again."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imet_ray.commands.learning_rates import with_found_rates
from imet_ray.commands.plan import Plan, other_data, refuse_too_few
from imet_ray.commands.space_needs import (
    digests_of_weights,
    named_weights,
    pack_sizes,
    teachers_pack_sizes,
)
from imet_ray.cores import usable_cores
from imet_ray.data.catalog import Catalog
from imet_ray.data.copies import first_copies
from imet_ray.data.folds import read_folds, write_folds
from imet_ray.data.formats import read_catalog
from imet_ray.data.sample import sample
from imet_ray.data.sources import is_directory, resolve_data
from imet_ray.data.training_data import TrainingData, extended_folds, prepare, training_split
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.tagger_files import write_labels
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


@dataclass(frozen=True)
class Run:
    """A run directory with everything that its stages need."""

    experiment: Experiment
    store: RunDirectory
    cache: Cache
    catalog: Catalog
    data: TrainingData


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
    n = len(data.folds)
    largest = int(np.bincount(data.folds).max())  # folds may be uneven
    refuse_too_few(plan.space, n, n - largest)
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


def set_old_run_aside(plan: Plan) -> None:
    """What `--fresh` means: the old run keeps its files under another name. So does `--extend`, but for the folds."""
    store = plan.store
    if plan.fresh:
        store.files.check_set_aside()
    if not (store.experiment.exists() or store.folds.exists()):
        return
    how = other_data(store, plan.catalog, plan.limit) if plan.extend else ""
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
    if how := other_data(store, catalog, experiment.limit):
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
        return resolve_data(experiment.data if at is None else at, cache=cache.root, source=source)
    except ConfigError:
        if at is not None or source is not None or not is_directory(experiment.data):
            raise
        raise ConfigError(
            f"the data of {store.root} are no longer at {root}: say with --data where they lie now"
        ) from None


def data_option(run: Run) -> list[str]:
    """The option that leads to a run's data, where they do not lie in their old place."""
    root = run.catalog.root
    return [] if root == Path(run.experiment.data_root) else ["--data", str(root)]
