"""From a packed picture to the pixels that a model learns from: a random crop, then a preset of augmentations; mixup.

Everything but mixup works on uint8 RGB and gives uint8; normalising is the model's first step. A training picture
depends only on (picture, seed). Fixed views for evaluation are `imet_ray.data.views`.
"""

import random
from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np
import torch

from imet_ray.data.crops import CROPS
from imet_ray.data.images import resize


def _flips() -> list[A.BasicTransform]:
    return [A.HorizontalFlip(p=0.5)]


def _none() -> list[A.BasicTransform]:
    return []


def _light() -> list[A.BasicTransform]:
    return [*_flips(), A.RandomBrightnessContrast(0.15, 0.15, p=0.5)]


def _medium() -> list[A.BasicTransform]:
    return [
        *_flips(),
        _affine(scale=0.1, rotate=10, shear=5, p=0.4),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
        A.HueSaturationValue(10, 20, 10, p=0.3),
        A.OneOf([A.GaussianBlur((3, 5)), A.GaussNoise(std_range=(0.01, 0.05))], p=0.15),
    ]


def _hard() -> list[A.BasicTransform]:
    return [
        *_flips(),
        _affine(scale=0.2, rotate=15, shear=8, p=0.6),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.6),
        A.HueSaturationValue(15, 30, 15, p=0.5),
        A.OneOf([A.GaussianBlur((3, 5)), A.MotionBlur((3, 7)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.3),
        A.OneOf([A.GridDistortion(distort_limit=0.2), A.OpticalDistortion(distort_limit=0.2)], p=0.2),
        A.Erasing(scale=(0.02, 0.15), p=0.3),
    ]


def _strong() -> list[A.BasicTransform]:
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


PRESETS: dict[str, Callable[[], list[A.BasicTransform]]] = {
    "none": _none,
    "light": _light,
    "medium": _medium,
    "hard": _hard,
    "strong": _strong,
}


class TrainTransform:
    """A random crop, then the augmentations of a preset."""

    def __init__(self, preset: str, crop: str, image_size: int) -> None:
        """
        Args:
            preset: a name of `PRESETS`.
            crop: a name of `CROPS`.
            image_size: S, pixels.
        """
        self.preset, self.crop, self.image_size = preset, crop, image_size
        self.compose = A.Compose(PRESETS[preset]())

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """One training picture.

        Args:
            image: (H, W, 3) uint8 RGB; only the crop's pixels are read.
            seed: decides everything.

        Returns:
            (S, S, 3) uint8.
        """
        numbers = random.Random(seed)
        height, width = image.shape[:2]
        y, x, h, w = CROPS[self.crop](height, width, numbers)
        cropped = resize(image[y : y + h, x : x + w], self.image_size, self.image_size)
        self.compose.set_random_state(np.random.Generator(np.random.PCG64(seed)), numbers)
        augmented: np.ndarray = self.compose(image=cropped)["image"]
        return augmented

    def __reduce__(self) -> tuple[type["TrainTransform"], tuple[str, str, int]]:
        return TrainTransform, (self.preset, self.crop, self.image_size)


def mixup(
    images: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture with another of the batch (Zhang et al. 2018), one share per batch from Beta(alpha, alpha).

    Args:
        images: (B, 3, S, S) uint8 or float.
        targets: (B, C) float.

    Returns:
        (B, 3, S, S) float32 in 0..255 and (B, C) float32.
    """
    share = float(generator.beta(alpha, alpha))
    partner = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    images = images.float()
    return images.lerp(images[partner], 1 - share), targets.lerp(targets[partner], 1 - share)


def _affine(*, scale: float, rotate: float, shear: float, p: float) -> A.BasicTransform:
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        rotate=(-rotate, rotate),
        shear=(-shear, shear),
        translate_percent=(-0.05, 0.05),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )
