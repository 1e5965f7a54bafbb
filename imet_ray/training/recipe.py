"""What a recipe may say: names that the registries know, and settings that fit together.

Ranges of single numbers are checked where the fields stand, in `imet_ray.specs`.
"""

from collections.abc import Iterable, Mapping

from imet_ray.data.augmentation import PRESETS
from imet_ray.data.crops import CROPS
from imet_ray.data.views import VIEWS
from imet_ray.errors import ConfigError, SettingError, unknown_name
from imet_ray.specs import Variant
from imet_ray.training.averages import check_average
from imet_ray.training.kept_weights import KEEPS
from imet_ray.training.losses import LOSSES, build_loss
from imet_ray.training.optimizers import OPTIMIZERS, check_optimizer
from imet_ray.training.schedules import SCHEDULES, check_schedule

REGISTRIES: Mapping[str, Iterable[str]] = {  # by field of `Variant`
    "loss": LOSSES,
    "augmentation": PRESETS,
    "crop": CROPS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "views": VIEWS,
    "keep": KEEPS,
}


def check_recipe(recipe: Variant) -> None:
    """Refuse what could not be trained.

    Raises:
        SettingError: naming the setting, its value and what it may be.
    """
    for field, registry in REGISTRIES.items():
        value = getattr(recipe, field)
        for name in (value,) if isinstance(value, str) else value:
            if name not in registry:
                raise SettingError(field, str(unknown_name(field, name, registry)))
    try:
        build_loss(recipe.loss, recipe.loss_weight)
    except ConfigError as error:
        raise SettingError("loss_weight", str(error)) from None
    check_optimizer(recipe)
    check_schedule(recipe)
    check_average(recipe)
    KEEPS[recipe.keep].check(recipe)
