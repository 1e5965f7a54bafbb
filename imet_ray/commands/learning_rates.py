"""Learning rates that are found: for `lr: auto` before a variant's first trial, and for a person who asks.

What is found is written down in the run, so that all trials, and whoever continues, have the same number.
"""

import sys
import time

import torch
from tqdm import tqdm

from imet_ray.cores import usable_cores
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import ConfigError, SettingError, StoreError, TrialError
from imet_ray.reporting.rate_page import RateFigure, rate_page
from imet_ray.search_space import AUTO, Resources, SearchSpace
from imet_ray.specs import Frozen, TrialSpec, Variant
from imet_ray.storage.checked_read import read_model
from imet_ray.storage.experiment import read_experiment, way_out
from imet_ray.storage.files import write_arrays, write_json, write_text
from imet_ray.storage.run_directory import RateDirectory, RunDirectory
from imet_ray.training.lr_finder import UPDATES, RateCurve, find_rate
from imet_ray.training.recipe import check_recipe
from imet_ray.units import clock


class FoundRate(Frozen):
    """`rate.json`: what the finder suggests, and for which trial."""

    spec: TrialSpec  # its lr means nothing
    lr: float | None  # None: the loss fell at no rate
    seconds: float
    device: str


def with_found_rates(space: SearchSpace, data: TrainingData, store: RunDirectory) -> SearchSpace:
    """The space with a number for each `lr: auto`: the run's, or found now on the first search fold.

    Raises:
        ConfigError: where no rate is found, or the recipe does not go with it.
        StoreError: if the run was begun with another rate.
    """
    before = read_experiment(store).space if space.auto_lr and store.experiment.exists() else None
    known = {one.name: one.lr for one in before.variants} if before is not None else {}
    rates = {}
    for name in space.auto_lr:
        if before is not None and name in known:  # what else of it differs is refused by its own name
            if name not in before.auto_lr:
                was = f"knows variant {name!r} with lr={known[name]:g}, now it is {AUTO}"
                raise StoreError(f"{store.root} {was}: {way_out(store)}")
            rates[name] = known[name]
            continue
        found = rate_of(space, name, space.search_folds[0], data, store)
        if found.lr is None:
            page = store.rate(name, found.spec.fold).page
            raise ConfigError(f"variant {name!r}: the loss fell at no rate ({page}): set lr to a number")
        rates[name] = found.lr
    resolved = space.with_rates(rates)
    for variant in resolved.variants:
        try:
            check_recipe(variant)
        except SettingError as error:
            raise ConfigError(f"variant {variant.name!r} with the lr that was found: {error}") from None
    return resolved


def rate_of(space: SearchSpace, name: str, fold: int, data: TrainingData, store: RunDirectory) -> FoundRate:
    """What the finder says of a variant on a fold: from the run, or found now.

    Raises:
        ConfigError: if the variant begins from another one's checkpoint.
    """
    variant = next(one for one in space.variants if one.name == name)
    if variant.parent is not None:
        raise ConfigError(
            f"variant {name!r} begins from {variant.parent!r}, for which the learning-rate finder does not wait: set "
            "lr to a number"
        )
    place, spec = store.rate(name, fold), _spec(space, variant, fold, data)
    store.files.fetch(place.root, [place.rate.name])
    known = read_model(place.rate, FoundRate) if place.rate.exists() else None
    if known is not None and known.spec.same_trial(spec):
        return known
    return _find(spec, data, place, space.resources)


def _find(spec: TrialSpec, data: TrainingData, place: RateDirectory, resources: Resources) -> FoundRate:
    """Run the finder, and write what it found: curve and page first."""
    device = torch.device("cuda" if resources.gpus_per_trial and torch.cuda.is_available() else "cpu")
    workers = resources.loader_workers
    if workers == "auto":
        workers = usable_cores() - 1 if device.type == "cuda" else 0
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # torch knows no quotas
    name = spec.variant.name
    pictures = UPDATES * spec.variant.batch_size * spec.variant.accumulate * spec.workers
    print(
        f"lr      {name}: at most {UPDATES} updates of fold {spec.fold} ({pictures:,} pictures) on {device}",
        flush=True,
    )
    data.split.share(spec.pack_short_side, workers=usable_cores())
    began = time.monotonic()
    with tqdm(total=UPDATES, desc="finding lr", unit="update", disable=not sys.stderr.isatty()) as bar:
        try:
            curve = find_rate(spec, data, device=device, loader_workers=workers, on_update=bar.update)
        except TrialError as error:
            raise ConfigError(f"variant {name!r}: {error}: set lr to a number") from None
    seconds = time.monotonic() - began
    found = FoundRate(spec=spec, lr=_suggestion(curve), seconds=round(seconds, 3), device=device.type)
    figure = RateFigure(curve.rates, curve.losses, curve.smoothed, found.lr)
    write_arrays(place.curve, place.files, rates=curve.rates, losses=curve.losses, smoothed=curve.smoothed)
    write_text(place.page, rate_page(f"Learning rates of {name}, fold {spec.fold}", figure), place.files)
    write_json(place.rate, found.model_dump(mode="json"), place.files)
    print(f"lr      {name}: {_words(found)}, in {clock(seconds)}; the curve is in {place.page}", flush=True)
    return found


def _suggestion(curve: RateCurve) -> float | None:
    try:
        return curve.suggestion
    except TrialError:
        return None


def _words(found: FoundRate) -> str:
    return "the loss fell at no rate" if found.lr is None else f"{found.lr:g}"


def _spec(space: SearchSpace, variant: Variant, fold: int, data: TrainingData) -> TrialSpec:
    """The variant's trial on that fold, with its own settings and the default rate."""
    variant = variant.with_hparams({"lr": Variant.model_fields["lr"].default, "min_lr": None})
    return space.trial(variant, {}, fold, digests=(data.split.digest, data.folds_digest), after={})
