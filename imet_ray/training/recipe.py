"""What a recipe may say: names that the registries know, and settings that fit together.

Ranges of single numbers are checked where the fields stand, in `imet_ray.specs`.
"""

from collections.abc import Iterable, Mapping

from imet_ray.data.augmentation import PRESETS
from imet_ray.data.crops import BOUNDED, CROPS
from imet_ray.data.views import check_view
from imet_ray.dotted_names import value_at
from imet_ray.errors import ConfigError, SettingError, unknown_name
from imet_ray.specs import Hparam, Variant
from imet_ray.training.averages import check_average
from imet_ray.training.kept_weights import KEEPS
from imet_ray.training.losses import LOSSES, build_loss
from imet_ray.training.optimizers import OPTIMIZERS, check_optimizer, own_default
from imet_ray.training.pseudo_labels import check_labels
from imet_ray.training.schedules import SCHEDULES, check_schedule

REGISTRIES: Mapping[str, Iterable[str]] = {  # by field of `Variant`
    "loss": LOSSES,
    "augmentation": PRESETS,
    "crop": CROPS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "keep": KEEPS,
}


def check_recipe(recipe: Variant) -> None:
    """Refuse what could not be trained.

    Raises:
        SettingError: naming the setting, its value and what it may be.
    """
    for field, registry in REGISTRIES.items():
        value = getattr(recipe, field)
        for name in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if name not in registry:
                raise SettingError(field, str(unknown_name(field, name, registry)))
    for field in ("crop_area", "crop_aspect"):
        if getattr(recipe, field) != Variant.model_fields[field].default and recipe.crop not in BOUNDED:
            raise SettingError(
                field, f"{field} is for crop {' or '.join(map(repr, BOUNDED))}, and crop is {recipe.crop!r}"
            )
    for view in recipe.views:
        try:
            check_view(view)
        except ConfigError as error:
            raise SettingError("views", str(error)) from None
    try:
        build_loss(recipe.loss, recipe.loss_weight)
    except ConfigError as error:
        raise SettingError("loss_weight", str(error)) from None
    check_optimizer(recipe)
    check_schedule(recipe)
    check_average(recipe)
    check_labels(recipe)
    KEEPS[recipe.keep].check(recipe)


def own_value(recipe: Variant, field: str) -> Hparam:
    """A recipe's own value of a setting; what its loss, schedule or optimizer takes, where the recipe says none."""
    value: Hparam = value_at(recipe, field)
    if value is not None:
        return value
    if field == "loss_weight":
        return LOSSES[recipe.loss][1]
    if field == "drop_factor":
        return SCHEDULES[recipe.schedule].drop_factor
    return own_default(recipe.optimizer, field)
