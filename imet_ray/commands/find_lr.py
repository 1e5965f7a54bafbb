"""The learning-rate finder as a stage of the command line."""

from pathlib import Path

from imet_ray.commands.learning_rates import rate_of
from imet_ray.commands.plan import Plan
from imet_ray.commands.setup import prepared
from imet_ray.errors import unknown_name
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.files import write_text
from imet_ray.units import as_typed


def find_lr(plan: Plan, variant: str, fold: int | None, out: Path | None) -> int:
    """Find a variant's learning rate, and say it; 1 if the loss fell at no rate.

    Args:
        fold: whose pictures are left out; None: the first search fold.
        out: where the page goes as well.
    """
    known = [one.name for one in plan.space.variants]
    if variant not in known:
        raise unknown_name("variant", variant, known)
    fold = plan.space.search_folds[0] if fold is None else fold
    plan.space.check_fold(fold)
    with only_driver(plan.store):
        data = prepared(plan)
        found = rate_of(plan.space, variant, fold, data, plan.store)
    place = plan.store.rate(variant, fold)
    plan.store.files.fetch(place.root, [place.page.name, place.curve.name])
    if out is not None:
        write_text(out, place.page.read_text(encoding="utf-8"))
    if found.lr is None:
        print(f"the loss of {variant} fell at no rate: see {as_typed(place.page)}")
        return 1
    print(
        f"suggested for {variant}: lr: {found.lr:g} "
        f"(curve: {as_typed(out or place.page)}, arrays: {as_typed(place.curve)})"
    )
    return 0
