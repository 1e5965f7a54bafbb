"""Augmentation as numbers: what happens to a training picture after its crop, each thing with its probability.

At 0 a thing is off; above 0, however little, it happens. `imet_ray.data.augmentation` makes pixels of it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from imet_ray.frozen import Frozen

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Area = Annotated[float, Field(gt=0.0, le=1.0)]  # of the picture
Ratio = Annotated[float, Field(ge=0.01, le=100.0)]  # width over height
Areas = Annotated[tuple[Area, Area], Field(strict=False)]  # least and greatest
Ratios = Annotated[tuple[Ratio, Ratio], Field(strict=False)]
PolicyName = Literal["none", "trivialaugment", "randaugment"]


def refuse_reversed(name: str, bounds: tuple[float, float]) -> None:
    """Raises ValueError if the least is above the greatest."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"{name} is [least, greatest], got [{bounds[0]:g}, {bounds[1]:g}]")


class Affine(Frozen):
    """Shifts, scales and turns a picture; its edge is mirrored into what becomes empty."""

    p: Probability
    shift: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # at most; of the side
    scale: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0  # 1 - scale .. 1 + scale
    rotate: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0  # degrees, at most, either way


class Erase(Frozen):
    """Blackens a rectangle (Zhong et al. 2017)."""

    p: Probability
    area: Areas = (0.02, 0.4)
    ratio: Ratios = (0.3, 3.33)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        refuse_reversed("erase.area", self.area)
        refuse_reversed("erase.ratio", self.ratio)
        return self


AFFINE = {
    "none": Affine(p=0.0),
    "soft": Affine(p=0.75, shift=0.075, scale=0.15, rotate=10.0),
    "medium": Affine(p=0.2, shift=0.0625, scale=0.2, rotate=45.0),
    "hard": Affine(p=0.75, shift=0.0625, scale=0.5, rotate=45.0),
}


def _affine_named(given: Any) -> Any:
    """A name of `AFFINE` as what it stands for."""
    if isinstance(given, str):
        if given not in AFFINE:
            raise ValueError(
                f"affine must be one of {', '.join(AFFINE)}, or a mapping such as {{p: 0.5, rotate: 20}}, got {given!r}"
            )
        return AFFINE[given]
    return given


def _erase_with(given: Any) -> Any:
    """A number is the probability."""
    return {"p": given} if isinstance(given, int | float) else given


class Augmentation(Frozen):
    """What happens to a training picture after its crop, in this order; numbers are probabilities."""

    hflip: Probability = 0.5  # whatever global_prob is

    global_prob: Probability = 1.0  # of all that follows, together
    vflip: Probability = 0.0
    rotate90: Probability = 0.0  # by 0, 90, 180 or 270 degrees
    affine: Annotated[Affine, BeforeValidator(_affine_named)] = AFFINE["none"]  # or a name of AFFINE
    noise: Probability = 0.0  # one of: the same on all channels, or each channel's own
    blur: Probability = 0.0  # one of: motion (weight 2), median (1), box (1)
    distortion: Probability = 0.0  # one of: optical (3), grid (1), piecewise affine (3)
    colour: Probability = 0.0  # one of: CLAHE, sharpen, emboss, brightness and contrast
    policy: PolicyName = "none"  # Müller & Hutter 2021; Cubuk et al. 2019
    operations: Annotated[int, Field(ge=1, le=10)] = 2  # randaugment
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9  # randaugment
    erase: Annotated[Erase, BeforeValidator(_erase_with)] = Erase(p=0.0)  # or its probability

    @model_validator(mode="after")
    def _policy_has_what_is_set(self) -> Self:
        for name, default in (("operations", 2), ("magnitude", 9)):
            if getattr(self, name) != default and self.policy != "randaugment":
                raise ValueError(f"{name} is for policy 'randaugment', and policy is {self.policy!r}")
        return self
