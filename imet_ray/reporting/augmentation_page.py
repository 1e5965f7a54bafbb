"""The page of a variant's augmentation: training pictures, what training makes of them, and the settings in words."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import albumentations as A
import numpy as np

from imet_ray.data.augmentation import Transforms, transforms
from imet_ray.data.images import resize
from imet_ray.dotted_names import flat
from imet_ray.reporting.pages import Table, jpeg, render
from imet_ray.specs import Variant

LARGEST = 400  # pixels, of an original on the page
QUIET = ("p", "border_mode", "fill", "fill_mask", "keep_ratio")  # arguments that say little


@dataclass(frozen=True)
class Shown:
    """A training picture and what is made of it."""

    id: str
    labels: Sequence[str]
    original: np.ndarray  # (H, W, 3) uint8, as it is packed
    draws: Sequence[np.ndarray]  # (S, S, 3) uint8, of epochs 1, 2, ...


def augmentation_page(recipe: Variant, shown: Sequence[Shown], *, pack_short_side: int) -> str:
    """The page. Args: pack_short_side: pixels, of the packed pictures that are cropped."""
    chosen = recipe.model_dump(
        include={"augmentation", "crop", "crop_area", "crop_aspect", "mixup", "cutmix"}
    )
    rows = [(name, _text(value)) for name, value in flat(chosen).items()]
    return render(
        "augmentation.html.j2",
        title=f"What {recipe.name} learns from",
        words=_words(recipe, pack_short_side),
        steps=Table(("step", "probability", "how"), list(_steps(transforms(recipe.augmentation)))),
        settings=Table(("setting", "value"), rows),
        pictures=[
            {
                "id": one.id,
                "labels": ", ".join(one.labels),
                "original": jpeg(_smaller(one.original)),
                "draws": [jpeg(draw) for draw in one.draws],
            }
            for one in shown
        ],
    )


def _words(recipe: Variant, pack_short_side: int) -> list[str]:
    size = recipe.image_size
    words = [
        f"Crop {recipe.crop!r}: {size} x {size} pixels of pictures whose short side is {pack_short_side} or less. "
        "Then the augmentation. Each draw is what the model sees in that epoch."
    ]
    mixing = [f"{name} ({getattr(recipe, name):g})" for name in ("mixup", "cutmix") if getattr(recipe, name)]
    if mixing:
        words.append(
            f"Batches are then mixed by {' or '.join(mixing)}, which is not shown: it depends on the batch."
        )
    return words


def _steps(found: Transforms, of: str = "") -> list[tuple[str, str, str]]:
    """Each step in turn: what, with what probability, and how."""
    rows = []
    for one in found:
        p = f"{one.p:g}{of}"
        if isinstance(one, A.OneOf):
            shares = zip(one.transforms, one.transforms_ps, strict=True)
            how = "; ".join(f"{share:.0%} {_described(inner)}" for inner, share in shares)
            rows.append(("one of", p, how))
        elif isinstance(one, A.BaseCompose):
            rows += _steps(one.transforms, of=f" of {p}" if one.p < 1 else of)
        else:
            name, _, how = _described(one).partition(" ")
            rows.append((name, p, how))
    return rows


def _described(one: Any) -> str:
    """Name and arguments of a transform, those left out that are as its library has them."""
    defaults = {name: arg.default for name, arg in inspect.signature(type(one).__init__).parameters.items()}
    said = [
        f"{name}={_text(value)}"
        for name, arg in defaults.items()
        if name not in QUIET and (value := getattr(one, name, arg)) is not arg and str(value) != str(arg)
    ]
    return " ".join([type(one).__name__, *said])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and len({str(one) for one in value.values()}) == 1:  # the same for x and y
        return _text(next(iter(value.values())))
    if isinstance(value, tuple):
        return "..".join(map(_text, value))
    return str(value)


def _smaller(image: np.ndarray) -> np.ndarray:
    scale = min(1.0, LARGEST / max(image.shape[:2]))
    return resize(image, max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
