"""What a model sees: a function of picture and seed, of one size, with the labels mixed as the pixels are."""

import itertools
import pickle
import random

import cv2
import numpy as np
import pytest
import torch

from imet_ray.data.augmentation import PRESETS, TrainTransform, mixup
from imet_ray.data.crops import CROPS
from imet_ray.data.views import VIEWS, apply_view
from imet_ray.errors import ConfigError

SIZE = 24
SHAPES = [(1, 1), (1, 300), (300, 1), (2, 3), (24, 24), (40, 40), (37, 53), (24, 90), (90, 25)]

every_preset = pytest.mark.parametrize("preset", PRESETS)
every_crop = pytest.mark.parametrize("crop", CROPS)


def noise(height, width):
    """Random pixels that nobody may write to, as the pack's: (H, W, 3) uint8."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image.flags.writeable = False
    return image


def gradient(height, width):
    """Colours that tell where they were: (H, W, 3) uint8."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([230 * x + 10, 230 * y + 10, 200 - 80 * x], axis=2).astype(np.uint8)


@every_preset
@every_crop
def test_a_picture_of_any_shape_becomes_a_square_of_uint8_and_stays_as_it_was(preset, crop):
    transform = TrainTransform(preset, crop, SIZE)
    for height, width in SHAPES:
        image = noise(height, width)
        before = image.copy()
        for seed in range(5):
            made = transform(image, seed)
            assert (made.shape, made.dtype) == ((SIZE, SIZE, 3), np.uint8)
            assert not np.shares_memory(made, image)
        assert np.array_equal(image, before)


@every_preset
@every_crop
def test_the_same_picture_and_seed_give_the_same_pixels_whatever_came_between(preset, crop):
    image, transform = noise(40, 50), TrainTransform(preset, crop, SIZE)
    first = [transform(image, seed) for seed in range(20)]
    transform(noise(9, 9), 99)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 libraries may use it
    cv2.setRNGSeed(1)
    torch.manual_seed(1)
    again = pickle.loads(pickle.dumps(transform))
    for seed in reversed(range(20)):
        assert np.array_equal(transform(image, seed), first[seed])
        assert np.array_equal(again(image, seed), first[seed])


@every_preset
@every_crop
def test_other_seeds_give_other_pixels(preset, crop):
    transform = TrainTransform(preset, crop, SIZE)
    made = {transform(noise(90, 120), seed).tobytes() for seed in range(20)}
    assert len(made) > 15


def test_each_preset_is_stronger_than_the_one_before():
    image = gradient(64, 64)
    plain = TrainTransform("none", "random", SIZE)
    strength = []
    for preset in PRESETS:
        transform = TrainTransform(preset, "random", SIZE)
        away = [transform(image, s).astype(float) - plain(image, s) for s in range(150)]
        strength.append(np.abs(away).mean())
    assert strength[0] == 0
    assert all(weak < strong for weak, strong in itertools.pairwise(strength))


@every_crop
@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_lies_in_the_picture(crop, shape):
    numbers = random.Random(0)
    for _ in range(200):
        y, x, height, width = CROPS[crop](*shape, numbers)
        assert 0 <= y < y + height <= shape[0]
        assert 0 <= x < x + width <= shape[1]


@pytest.mark.parametrize(
    ("crop", "area", "aspect"), [("random", (0.51, 0.81), (1, 1)), ("rectangular", (0.4, 1), (3 / 4, 4 / 3))]
)
def test_crops_have_all_sizes_and_aspects_that_they_may_have(crop, area, aspect):
    numbers = random.Random(0)
    crops = np.array([CROPS[crop](800, 1000, numbers) for _ in range(1000)])
    for values, (low, high) in ((crops[:, 2] * crops[:, 3] / 8e5, area), (crops[:, 3] / crops[:, 2], aspect)):
        assert (values.min(), values.max()) == pytest.approx((low, high), abs=0.03)


def test_a_plain_picture_is_its_crop():
    image = noise(SIZE, 90)
    numbers = random.Random(5)
    y, x, side, _ = CROPS["random"](SIZE, 90, numbers)
    expected = cv2.resize(image[y : y + side, x : x + side], (SIZE, SIZE))
    assert np.array_equal(TrainTransform("none", "random", SIZE)(image, 5), expected)


def test_an_unknown_view_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown view 'center': did you mean 'centre'\?"):
        apply_view(noise(9, 9), "center", SIZE)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_any_shape_is_a_square_and_leaves_the_picture_as_it_was(view):
    for height, width in SHAPES:
        image = noise(height, width)
        made = apply_view(image, view, SIZE)
        assert (made.shape, made.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert made.flags.c_contiguous
        assert not np.shares_memory(made, image)


@pytest.mark.parametrize(
    ("view", "mirrored"),
    [("centre", "flip"), ("start", "start-flip"), ("end", "end-flip"), ("squash", "squash-flip")],
)
@pytest.mark.parametrize("shape", [(40, 70), (70, 41), (24, 24)])
def test_a_flip_is_the_mirror_of_its_view(view, mirrored, shape):
    image = noise(*shape)
    assert np.array_equal(apply_view(image, mirrored, SIZE), apply_view(image, view, SIZE)[:, ::-1])


@pytest.mark.parametrize(
    ("view", "place"), [("start", slice(0, SIZE)), ("centre", slice(18, 18 + SIZE)), ("end", slice(36, 60))]
)
def test_views_lie_along_the_long_side(view, place):
    wide = noise(SIZE, 60)
    assert np.array_equal(apply_view(wide, view, SIZE), wide[:, place])
    tall = wide.swapaxes(0, 1)
    assert np.array_equal(apply_view(tall, view, SIZE), tall[place])


def test_squash_shows_the_whole_picture():
    squashed = apply_view(gradient(30, 90), "squash", SIZE)
    corners = squashed[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert np.abs(corners - gradient(30, 90)[[0, 0, -1, -1], [0, -1, 0, -1]]).max() <= 12


@pytest.mark.parametrize("factor", [1, 3, 8])
def test_shrinking_does_not_alias(factor):
    lines = np.zeros((SIZE * factor, SIZE * factor, 3), np.uint8)
    lines[:, ::2] = 255  # one pixel in two
    seen = apply_view(lines, "centre", SIZE).astype(int)
    assert np.array_equal(seen, lines) if factor == 1 else np.abs(seen - 127).max() <= 45


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, 4, 4), np.uint8))
    return images, torch.eye(n)  # a row's target tells the picture


def test_mixup_mixes_targets_and_images_with_the_same_share():
    images, targets = batch(7)
    mixed, shares = mixup(images, targets, alpha=0.4, generator=np.random.default_rng(2))
    assert mixed.dtype == shares.dtype == torch.float32
    assert torch.allclose(shares.sum(dim=1), torch.ones(7))
    assert torch.allclose(mixed, torch.einsum("ij,jabc->iabc", shares, images.float()), atol=1e-3)
    assert 0.01 < shares.diagonal().min() < 0.99  # something was mixed


def test_mixup_leaves_its_batch_as_it_was():
    images, targets = batch(5)
    mixup(images, targets, alpha=1.0, generator=np.random.default_rng(0))
    assert torch.equal(images, batch(5)[0])
    assert torch.equal(targets, torch.eye(5))


def test_mixup_is_decided_by_its_generator():
    first, again, other = (
        mixup(*batch(6), alpha=0.3, generator=np.random.default_rng(seed))[0] for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mixup_shares_are_those_of_the_beta_distribution():
    generator = np.random.default_rng(0)
    shares = [mixup(*batch(3), alpha=0.3, generator=generator)[1].max(dim=1).values for _ in range(300)]
    near_one = float((torch.stack(shares).min(dim=1).values > 0.9).float().mean())
    assert 0.4 < near_one < 0.75  # Beta(0.3, 0.3) is below 0.1 or above 0.9 with probability 0.56


def test_a_batch_of_one_is_left_alone():
    images, targets = batch(1)
    mixed, shares = mixup(images, targets, alpha=0.3, generator=np.random.default_rng(0))
    assert torch.equal(mixed, images.float())
    assert torch.equal(shares, targets)
