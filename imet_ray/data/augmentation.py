"""From a packed picture to the pixels that a model learns from: a crop, then a preset or settings of augmentation.

Everything works on uint8 RGB and gives uint8; normalising is the model's first step. A training picture
depends only on (picture, seed). Fixed views for evaluation are `imet_ray.data.views`; batches are mixed in
`imet_ray.data.mixing`.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from imet_ray.augmentation_settings import AFFINE, Affine, Augmentation
from imet_ray.data.crops import AREA, ASPECT, CROPS, Cropping
from imet_ray.data.framing import BARS
from imet_ray.specs import Variant

Transforms = list[A.BasicTransform | A.BaseCompose]


def _flips() -> Transforms:
    return [A.HorizontalFlip(p=0.5)]


def _none() -> Transforms:
    return []


def _light() -> Transforms:
    return [*_flips(), A.RandomBrightnessContrast(0.15, 0.15, p=0.5)]


def _medium() -> Transforms:
    return [
        *_flips(),
        _affine(scale=0.1, rotate=10, shear=5, p=0.4),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
        A.HueSaturationValue(10, 20, 10, p=0.3),
        A.OneOf([A.GaussianBlur((3, 5)), A.GaussNoise(std_range=(0.01, 0.05))], p=0.15),
    ]


def _hard() -> Transforms:
    return [
        *_flips(),
        _affine(scale=0.2, rotate=15, shear=8, p=0.6),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.6),
        A.HueSaturationValue(15, 30, 15, p=0.5),
        A.OneOf([A.GaussianBlur((3, 5)), A.MotionBlur((3, 7)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.3),
        A.OneOf([A.GridDistortion(distort_limit=0.2), A.OpticalDistortion(distort_limit=0.2)], p=0.2),
        A.Erasing(scale=(0.02, 0.15), p=0.3),
    ]


def _strong() -> Transforms:
    return [
        *_flips(),
        A.VerticalFlip(p=0.1),
        _affine(scale=0.25, rotate=25, shear=12, p=0.8),
        A.RandomBrightnessContrast(0.4, 0.4, p=0.7),
        A.HueSaturationValue(20, 40, 20, p=0.6),
        A.OneOf([A.ToGray(), A.RGBShift(25, 25, 25), A.RandomGamma((70, 140))], p=0.25),
        A.OneOf([A.GaussianBlur((3, 7)), A.MotionBlur((3, 9)), A.GaussNoise(std_range=(0.03, 0.1))], p=0.4),
        A.OneOf([A.GridDistortion(distort_limit=0.3), A.OpticalDistortion(distort_limit=0.3)], p=0.3),
        A.Erasing(scale=(0.02, 0.25), p=0.5),
    ]


PRESETS: dict[str, Callable[[], Transforms] | Augmentation] = {
    "none": _none,
    "light": _light,
    "medium": _medium,
    "hard": _hard,
    "strong": _strong,
    "imet2019": Augmentation(  # of the 2019 solution's models 2i and 4b
        global_prob=0.5346, affine=AFFINE["medium"], noise=0.294, blur=0.166, distortion=0.125, colour=0.112
    ),
    "trivialaugment": Augmentation(policy="trivialaugment"),
    "randaugment": Augmentation(policy="randaugment"),
}


class TrainTransform:
    """A crop, then the augmentations of a preset or of settings."""

    def __init__(
        self,
        augmentation: str | Augmentation,
        crop: str,
        image_size: int,
        *,
        area: tuple[float, float] = AREA,
        aspect: tuple[float, float] = ASPECT,
    ) -> None:
        """
        Args:
            augmentation: a name of `PRESETS`, or settings.
            crop: a name of `CROPS`.
            image_size: S, pixels.
            area: bounds of the crop, where it has some: share of the picture's.
            aspect: the same: width over height.
        """
        self.augmentation, self.crop = augmentation, crop
        self.cropping = Cropping(image_size, area, aspect)
        self.compose = A.Compose(transforms(augmentation))

    @classmethod
    def of(cls, recipe: Variant) -> Self:
        """As a recipe says."""
        return cls(
            recipe.augmentation,
            recipe.crop,
            recipe.image_size,
            area=recipe.crop_area,
            aspect=recipe.crop_aspect,
        )

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """One training picture.

        Args:
            image: (H, W, 3) uint8 RGB; only the crop's pixels are read.
            seed: decides everything.

        Returns:
            (S, S, 3) uint8.
        """
        numbers = random.Random(seed)
        cropped = CROPS[self.crop](image, self.cropping, numbers)
        self.compose.set_random_state(np.random.Generator(np.random.PCG64(seed)), numbers)
        augmented: np.ndarray = self.compose(image=cropped)["image"]
        return augmented

    def __reduce__(self) -> tuple[Callable[[], "TrainTransform"], tuple[()]]:
        how = self.cropping
        made = partial(
            TrainTransform, self.augmentation, self.crop, how.size, area=how.area, aspect=how.aspect
        )
        return made, ()


def transforms(augmentation: str | Augmentation) -> Transforms:
    """What happens to a crop, in turn."""
    found = PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
    return _transforms_of(found) if isinstance(found, Augmentation) else found()


def _transforms_of(wanted: Augmentation) -> Transforms:
    """The settings' meaning; a thing of probability 0 is left out."""
    then: list[tuple[float, Callable[[float], A.BasicTransform | A.BaseCompose]]] = [
        (wanted.vflip, lambda p: A.VerticalFlip(p=p)),
        (wanted.rotate90, lambda p: A.RandomRotate90(p=p)),
        (wanted.affine.p, lambda p: _shift_scale_rotate(wanted.affine)),
        (wanted.noise, _noise),
        (wanted.blur, _blur),
        (wanted.distortion, _distortion),
        (wanted.colour, _colour),
        (float(wanted.policy != "none"), lambda p: _policy(wanted)),
        (wanted.erase.p, lambda p: A.Erasing(scale=wanted.erase.area, ratio=wanted.erase.ratio, p=p)),
    ]
    made = [make(p) for p, make in then if p > 0]
    flip = [A.HorizontalFlip(p=wanted.hflip)] if wanted.hflip > 0 else []
    return [*flip, *([A.Sequential(made, p=wanted.global_prob)] if made and wanted.global_prob > 0 else [])]


def _shift_scale_rotate(wanted: Affine) -> A.BasicTransform:
    return A.Affine(
        translate_percent=(-wanted.shift, wanted.shift),
        scale=(1 - wanted.scale, 1 + wanted.scale),
        keep_ratio=True,
        rotate=(-wanted.rotate, wanted.rotate),
        border_mode=cv2.BORDER_REFLECT_101,
        p=wanted.p,
    )


def _noise(p: float) -> A.BaseCompose:
    return A.OneOf(
        [
            A.GaussNoise(std_range=(0.01, 0.05), per_channel=False),
            A.GaussNoise(std_range=(0.0124, 0.0277)),  # variances 10..50 of 255 levels
        ],
        p=p,
    )


def _blur(p: float) -> A.BaseCompose:
    return A.OneOf([A.MotionBlur(p=0.2), A.MedianBlur(3, p=0.1), A.Blur(3, p=0.1)], p=p)


def _distortion(p: float) -> A.BaseCompose:
    return A.OneOf(
        [
            A.OpticalDistortion(distort_limit=0.05, border_mode=cv2.BORDER_REFLECT_101, p=0.3),
            A.GridDistortion(distort_limit=0.3, border_mode=cv2.BORDER_REFLECT_101, p=0.1),
            PiecewiseAffine(p=0.3),
        ],
        p=p,
    )


def _colour(p: float) -> A.BaseCompose:
    return A.OneOf([A.CLAHE(2), A.Sharpen(), A.Emboss(), A.RandomBrightnessContrast()], p=p)


def _policy(wanted: Augmentation) -> A.BasicTransform:
    if wanted.policy == "trivialaugment":
        return Policy(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=BARS))
    return Policy(
        v2.RandAugment(
            wanted.operations, wanted.magnitude, interpolation=InterpolationMode.BILINEAR, fill=BARS
        )
    )


class PiecewiseAffine(A.ImageOnlyTransform):  # type: ignore[misc]
    """Moves 4 x 4 points of a picture, and what is between them with them.

    Albumentations' own takes 900 ms for 288 px, this 1.
    """

    def apply(self, img: np.ndarray, moves: np.ndarray, **params: Any) -> np.ndarray:
        """Args: moves: (4, 4, 2) float32, of the points, to the right and down, in shares of the sides."""
        height, width = img.shape[:2]
        moved = cv2.resize(moves, (width, height), interpolation=cv2.INTER_LINEAR)
        x = (moved[..., 0] * width + np.arange(width, dtype=np.float32)).astype(np.float32)
        y = (moved[..., 1] * height + np.arange(height, dtype=np.float32)[:, None]).astype(np.float32)
        return np.asarray(cv2.remap(img, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))

    def get_params(self) -> dict[str, Any]:
        strength = self.py_random.uniform(0.03, 0.05)  # standard deviation
        return {"moves": self.random_generator.normal(0.0, strength, (4, 4, 2)).astype(np.float32)}


class Policy(A.ImageOnlyTransform):  # type: ignore[misc]
    """One of torchvision's policies. On Pillow's pictures: half the time of tensors."""

    def __init__(self, policy: v2.Transform) -> None:
        super().__init__(p=1.0)
        self.policy = policy

    def apply(self, img: np.ndarray, seed: int, **params: Any) -> np.ndarray:
        """Args: seed: decides everything; torch's own generator is as it was."""
        generator = torch.default_generator  # of the CPU: a GPU's is not touched
        before = generator.get_state()
        generator.manual_seed(seed)
        try:
            return np.asarray(self.policy(Image.fromarray(img)))
        finally:
            generator.set_state(before)

    def get_params(self) -> dict[str, Any]:
        return {"seed": self.py_random.getrandbits(32)}


def _affine(*, scale: float, rotate: float, shear: float, p: float) -> A.BasicTransform:
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        rotate=(-rotate, rotate),
        shear=(-shear, shear),
        translate_percent=(-0.05, 0.05),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )
