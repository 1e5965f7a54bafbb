"""From a packed picture to the pixels a model sees: random for training, fixed views for evaluation.

Everything works on uint8 RGB and gives uint8; normalising is the model's first step. A training picture is a
function of (picture, seed) alone.
"""

import random
from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np
import torch

from imet_ray.errors import unknown_name


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

        Raises:
            ConfigError: for an unknown name.
        """
        if preset not in PRESETS:
            raise unknown_name("augmentation", preset, PRESETS)
        if crop not in CROPS:
            raise unknown_name("crop", crop, CROPS)
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
        cropped = _resize(image[y : y + h, x : x + w], self.image_size, self.image_size)
        self.compose.set_random_state(np.random.Generator(np.random.PCG64(seed)), numbers)
        augmented: np.ndarray = self.compose(image=cropped)["image"]
        return augmented

    def __reduce__(self) -> tuple[type["TrainTransform"], tuple[str, str, int]]:
        return TrainTransform, (self.preset, self.crop, self.image_size)


def _square(height: int, width: int, numbers: random.Random) -> tuple[int, int, int, int]:
    """A square whose side is 0.8 to 1 of the short side: y, x, height, width."""
    side = max(1, round(min(height, width) * numbers.uniform(0.8, 1.0)))
    return numbers.randint(0, height - side), numbers.randint(0, width - side), side, side


def _rectangle(height: int, width: int, numbers: random.Random) -> tuple[int, int, int, int]:
    """A rectangle of 0.4 to 1 of the area and aspect 3/4 to 4/3, where it fits: y, x, height, width."""
    for _ in range(10):
        area = height * width * numbers.uniform(0.4, 1.0)
        aspect = np.exp(numbers.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return numbers.randint(0, height - h), numbers.randint(0, width - w), h, w
    return _square(height, width, numbers)  # a long thin picture


CROPS: dict[str, Callable[[int, int, random.Random], tuple[int, int, int, int]]] = {
    "random": _square,
    "rectangular": _rectangle,
}


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    return _short_side_crop(image, size, 0.5)


def _start(image: np.ndarray, size: int) -> np.ndarray:
    """The left or upper end of the long side."""
    return _short_side_crop(image, size, 0.0)


def _end(image: np.ndarray, size: int) -> np.ndarray:
    """The right or lower end of the long side."""
    return _short_side_crop(image, size, 1.0)


def _squash(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture, its aspect given up."""
    return _resize(image, size, size)


VIEWS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "centre": _centre,
    "flip": lambda image, size: _centre(image, size)[:, ::-1],
    "start": _start,
    "end": _end,
    "squash": _squash,
    "start-flip": lambda image, size: _start(image, size)[:, ::-1],
    "end-flip": lambda image, size: _end(image, size)[:, ::-1],
    "squash-flip": lambda image, size: _squash(image, size)[:, ::-1],
}


def apply_view(image: np.ndarray, view: str, image_size: int) -> np.ndarray:
    """One fixed view of a picture: (H, W, 3) uint8 to (image_size, image_size, 3) uint8."""
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    return np.ascontiguousarray(VIEWS[view](image, image_size))


def mixup(
    images: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture with another of the batch (Zhang et al. 2018), one share a batch from Beta(alpha, alpha).

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


def _short_side_crop(image: np.ndarray, size: int, where: float) -> np.ndarray:
    """The square of the short side, at a share of the free way along the long side, scaled to `size`."""
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = round((height - side) * where), round((width - side) * where)
    return _resize(image[y : y + side, x : x + side], size, size)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale; by area when shrinking to less than two thirds, so that nothing aliases.

    Nearer to 1 two-point interpolation aliases hardly at all and takes 130 us for 288 px instead of 800.
    """
    if image.shape[:2] == (height, width):
        return image.copy()
    shrinks = 2 * image.shape[0] > 3 * height or 2 * image.shape[1] > 3 * width
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=filter_))


def _affine(*, scale: float, rotate: float, shear: float, p: float) -> A.BasicTransform:
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        rotate=(-rotate, rotate),
        shear=(-shear, shear),
        translate_percent=(-0.05, 0.05),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )
