"""One trial in this process, without a sweep."""

import sys
import time
from typing import Any, Literal

import torch
from pydantic import ValidationError

from imet_ray.commands.plan import Plan
from imet_ray.commands.setup import pack, set_old_run_aside, start
from imet_ray.cores import usable_cores
from imet_ray.dotted_names import type_at
from imet_ray.errors import ConfigError, SettingError, unknown_name
from imet_ray.prediction.metrics import metric_named
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import NO_SETTING, first_problem
from imet_ray.specs import Hparam, Variant
from imet_ray.storage.experiment import only_driver
from imet_ray.training.parents import trained_before
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics


def train(plan: Plan, variant_name: str, fold: int, settings: dict[str, Any]) -> int:
    """Train one trial; 1 if it failed.

    Args:
        settings: hparams, in place of the variant's own.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    variant = variant_named(plan.space, variant_name)
    check_one_process(plan.space, fold)
    recipe = with_settings(variant, settings)
    title = metric_named(plan.space.metric).title
    set_old_run_aside(plan)
    with only_driver(plan.store):
        run = start(plan, recipe.weights)
        after = trained_before(plan.store, recipe, fold)
        pack(run)
        variant = variant_named(run.experiment.space, variant_name)  # with a rate that was found
        recipe = with_settings(variant, settings)
        spec = run.experiment.space.trial(
            variant, settings, fold, digests=(run.data.split.digest, run.data.folds_digest), after=after
        )
        trial = plan.store.trial(spec.trial_id)
        device = _device(plan.space.resources.gpus_per_trial)
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # torch knows no quotas
        print(f"trial   {trial.root} on {device}")
        began = time.monotonic()
        workers = plan.space.resources.loader_workers
        if workers == "auto":
            workers = usable_cores() - 1 if device.type == "cuda" else 0
        result = train_trial(
            spec,
            run.data,
            trial,
            device=device,
            loader_workers=workers,
            report=lambda metrics: print(_epoch_line(metrics, recipe.epochs, title), flush=True),
        )
    if result.status == "failed":
        print(f"failed: {result.reason}", file=sys.stderr)
        return 1
    early = f", after {result.epochs} epochs, for its rate is spent" if result.epochs < recipe.epochs else ""
    seconds = time.monotonic() - began
    print(f"done{early}: {title} {result.score:.4f} after {seconds:.0f} s; weights in {trial.best}")
    return 0


def variant_named(space: SearchSpace, name: str) -> Variant:
    """The space's variant of that name."""
    known = {variant.name: variant for variant in space.variants}
    if name not in known:
        raise unknown_name("variant", name, known)
    return known[name]


def check_one_process(space: SearchSpace, fold: int) -> None:
    """Refuse a fold that is none, and what one process cannot train."""
    space.check_fold(fold)
    if space.resources.workers_per_trial > 1:
        raise ConfigError(
            "--train trains in one process, and workers_per_trial is "
            f"{space.resources.workers_per_trial}: sweep, or leave it out of the space"
        )


def with_settings(variant: Variant, settings: dict[str, Any]) -> Variant:
    """The variant with what `--set` says."""
    for key, value in settings.items():
        if key == "name":
            raise ConfigError(f"--set: {NO_SETTING}")
        if isinstance(value, dict):
            part = f"{key}.{next(iter(value), '...')}"
            raise ConfigError(
                f"--set takes single values, and {key} is a mapping: set its parts, such as {part}"
            )
        if not isinstance(value, Hparam):
            raise ConfigError(f"--set takes single values, and {key} is a list: write it into a search space")
    try:
        for key in settings:
            type_at(Variant, key)
        recipe = variant.with_hparams(settings)
        check_recipe(recipe)
        return recipe
    except SettingError as error:
        raise ConfigError(f"--set: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"--set: {first_problem(error, Variant)}") from None


def _device(gpus: float | Literal["auto"]) -> torch.device:
    """A GPU if the space wants one, or has nothing against it and there is one."""
    if gpus not in ("auto", 0) and not torch.cuda.is_available():
        raise ConfigError(
            f"gpus_per_trial is {gpus:g} and torch sees none: install a CUDA build of torch, or set "
            "gpus_per_trial: auto"
        )
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")


def _epoch_line(metrics: EpochMetrics, epochs: int, title: str) -> str:
    expected = metrics["expected_score"]
    return (
        f"epoch {metrics['epoch']:>3}/{epochs}  loss {metrics['train_loss']:.4f}  "
        f"valid {metrics['valid_loss']:.4f}  {title} {metrics['score']:.4f} at {metrics['threshold']:.3f}  "
        + (f"expected-{title} {expected:.4f}  " if expected is not None else "")
        + f"lr {metrics['lr']:.2g}  "
        f"{metrics['images_per_s']:.0f} images/s  waited {metrics['wait_s']:.1f} s"
    )
