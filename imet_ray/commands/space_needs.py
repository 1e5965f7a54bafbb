"""What the trials of a space need before they begin: models that can be built, packs, files of weights."""

import itertools
from pathlib import Path

from imet_ray.errors import ConfigError
from imet_ray.models.models import check_model
from imet_ray.search_space import SearchSpace
from imet_ray.specs import FOLD, WEIGHTS, Hparam, Parent, default_pack_short_side, of_fold
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.pseudo_labels import teachers


def check_models(space: SearchSpace) -> None:
    """Build and run each architecture that the space may ask for, at each of its sizes."""
    for variant in space.variants:
        ranges = space.ranges[variant.name]
        wanted = [
            ranges[key].corners() if key in ranges else (getattr(variant, key),)
            for key in ("architecture", "image_size", "dropout", "drop_path", "freeze")
        ]
        for architecture, image_size, dropout, drop_path, freeze in itertools.product(*wanted):
            check_model(architecture, int(image_size), float(dropout), float(drop_path), freeze)


def pack_sizes(space: SearchSpace) -> list[int]:
    """The packs that the space's trials need."""
    if space.pack_short_side is not None:
        return [space.pack_short_side]
    sizes = set()
    for variant in space.variants:
        wanted = space.ranges[variant.name].get("image_size")
        image_sizes = wanted.corners() if wanted is not None else (variant.image_size,)
        sizes |= {default_pack_short_side(int(size)) for size in image_sizes if size is not None}
    return sorted(sizes)


def teachers_pack_sizes(space: SearchSpace, store: RunDirectory) -> set[int]:
    """The packs that models of other runs need, of which pseudo-labels come."""
    found = [variant.added for variant in space.variants if variant.added is not None]
    trials = [
        trial for how in found if how.strict and how.kind == "ensemble" for trial in teachers(store, how)
    ]
    return {read_spec(trial).pack_short_side for trial in trials if trial.spec.exists()}


def named_weights(space: SearchSpace) -> set[Hparam | Parent]:
    """All that a space names as weights."""
    wanted = [space.ranges[variant.name].get("weights") for variant in space.variants]
    searched = {value for one in wanted if one is not None for value in one.corners()}
    return {variant.weights for variant in space.variants} | searched


def digests_of_weights(names: set[Hparam | Parent], n_folds: int) -> dict[str, str]:
    """Those that are files, with their digests. Who trains says what is wrong with one that is missing.

    Raises:
        ConfigError: if one of those for each fold is missing.
    """
    files = {}
    for name in (str(name) for name in names - {*WEIGHTS} if not isinstance(name, Parent)):
        for fold in range(n_folds if FOLD in name else 1):
            path = of_fold(name, fold)
            if FOLD in name and not Path(path).is_file():
                raise ConfigError(
                    f"weights: {name} is a file for each of {n_folds} folds, and there is no {path}"
                )
            files[path] = Path(path)
    return {name: file_digest(path) for name, path in sorted(files.items()) if path.is_file()}
