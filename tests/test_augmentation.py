"""What a model sees: a function of picture and seed, of one size, with the labels mixed as the pixels are."""

import itertools
import pickle
import random

import cv2
import numpy as np
import pytest
import torch

from imet_ray.augmentation_settings import AFFINE, Augmentation
from imet_ray.data.augmentation import PRESETS, PiecewiseAffine, TrainTransform, transforms
from imet_ray.data.crops import CROPS, Cropping, rectangle, square
from imet_ray.data.views import VIEWS, apply_view
from imet_ray.errors import ConfigError

SIZE = 24
SHAPES = [(1, 1), (1, 300), (300, 1), (2, 3), (24, 24), (40, 40), (37, 53), (24, 90), (90, 25)]

WHOLE = ("letterbox", "squash")  # crops that draw nothing
OWN = Augmentation(
    vflip=0.2,
    rotate90=0.3,
    affine="hard",
    noise=0.5,
    blur=0.5,
    distortion=0.8,
    colour=0.5,
    erase=0.5,
    global_prob=0.9,
)
# Means of the first eight pictures, as trials had them that people have trained: other draws would be other trials.
PINNED = {
    ("light", "random"): (133.9, 174.6, 126.2, 137.5, 111.3, 148.4, 164.5, 128.2),
    ("light", "rectangular"): (148.9, 94.7, 160.5, 134.4, 179.1, 145.6, 125.8, 123.8),
    ("medium", "random"): (137.7, 146.6, 126.2, 139.7, 132.2, 143.8, 124.8, 105.5),
    ("medium", "rectangular"): (209.3, 106.0, 148.1, 134.4, 139.4, 139.7, 116.0, 148.6),
    ("hard", "random"): (138.1, 150.1, 124.0, 140.4, 137.1, 126.2, 118.5, 80.3),
    ("hard", "rectangular"): (229.4, 88.6, 144.9, 145.2, 169.8, 112.8, 111.7, 151.1),
    ("strong", "random"): (193.3, 117.5, 122.9, 83.8, 79.5, 221.6, 118.2, 137.8),
    ("strong", "rectangular"): (144.0, 191.6, 112.5, 77.8, 120.7, 37.3, 140.7, 137.8),
}

every_preset = pytest.mark.parametrize("preset", [*PRESETS, OWN], ids=[*PRESETS, "own"])
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
    assert len(made) == 1 if preset == "none" and crop in WHOLE else len(made) > (6 if crop in WHOLE else 15)


@pytest.mark.parametrize(("preset", "crop"), PINNED)
def test_presets_that_trials_were_trained_with_draw_what_they_drew(preset, crop):
    transform = TrainTransform(preset, crop, SIZE)
    means = [transform(gradient(70, 50), seed).mean() for seed in range(8)]
    assert means == pytest.approx(PINNED[preset, crop], abs=0.3)


def test_each_preset_is_stronger_than_the_one_before():
    image = gradient(64, 64)
    plain = TrainTransform("none", "random", SIZE)
    strength = []
    for preset in ("none", "light", "medium", "hard", "strong"):
        transform = TrainTransform(preset, "random", SIZE)
        away = [transform(image, s).astype(float) - plain(image, s) for s in range(150)]
        strength.append(np.abs(away).mean())
    assert strength[0] == 0
    assert all(weak < strong for weak, strong in itertools.pairwise(strength))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_lies_in_the_picture(shape):
    numbers = random.Random(0)
    for _ in range(200):
        for y, x, height, width in (square(*shape, numbers), rectangle(*shape, Cropping(SIZE), numbers)):
            assert 0 <= y < y + height <= shape[0]
            assert 0 <= x < x + width <= shape[1]


@pytest.mark.parametrize(
    ("draw", "area", "aspect"),
    [
        (square, (0.51, 0.81), (1, 1)),
        (lambda h, w, numbers: rectangle(h, w, Cropping(SIZE), numbers), (0.4, 1), (3 / 4, 4 / 3)),
        (
            lambda h, w, numbers: rectangle(h, w, Cropping(SIZE, (0.1, 0.3), (0.5, 1.0)), numbers),
            (0.1, 0.3),
            (0.5, 1),
        ),
    ],
    ids=["random", "rectangular", "bounds"],
)
def test_crops_have_all_sizes_and_aspects_that_they_may_have(draw, area, aspect):
    numbers = random.Random(0)
    crops = np.array([draw(800, 1000, numbers) for _ in range(1000)])
    for values, (low, high) in ((crops[:, 2] * crops[:, 3] / 8e5, area), (crops[:, 3] / crops[:, 2], aspect)):
        assert (values.min(), values.max()) == pytest.approx((low, high), abs=0.03)


def test_a_native_crop_is_pixels_of_the_picture_as_they_are_and_comes_from_everywhere():
    image = np.arange(30 * 50 * 3, dtype=np.uint32).reshape(30, 50, 3).astype(np.uint8)
    windows = {image[y : y + SIZE, x : x + SIZE].tobytes(): (y, x) for y in range(7) for x in range(27)}
    transform = TrainTransform("none", "native", SIZE)
    seen = {windows[transform(image, seed).tobytes()] for seed in range(2000)}
    assert seen == set(windows.values())


@pytest.mark.parametrize("shape", [(10, 50), (50, 3), (1, 1), (23, 24), (7, 7)])
def test_a_native_crop_mirrors_what_is_smaller(shape):
    image = noise(*shape)
    above, left = (max(0, SIZE - side) // 2 for side in shape)
    below, beside = max(0, SIZE - shape[0]) - above, max(0, SIZE - shape[1]) - left
    mirrored = np.pad(image, ((above, below), (left, beside), (0, 0)), mode="reflect")
    y, x = ((side - SIZE) // 2 for side in mirrored.shape[:2])
    assert np.array_equal(apply_view(image, "native", SIZE), mirrored[y : y + SIZE, x : x + SIZE])


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (10, 20), (40, 40)])
def test_a_letterbox_has_the_whole_picture_in_its_aspect(shape):
    framed = apply_view(gradient(*shape), "letterbox", 60)
    bars = (framed == (124, 116, 104)).all(axis=2)
    rows, columns = np.flatnonzero(~bars.all(axis=1)), np.flatnonzero(~bars.all(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(height, width) == 60
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.05)
    assert abs((rows[0] + rows[-1]) / 2 - 29.5) <= 0.5
    assert abs((columns[0] + columns[-1]) / 2 - 29.5) <= 0.5
    corners = framed[[rows[0], rows[-1]], [columns[0], columns[-1]]].astype(int)
    assert np.abs(corners - gradient(*shape)[[0, -1], [0, -1]]).max() <= 16


@pytest.mark.parametrize("crop", ["if-needed", "if-needed-2x"])
@pytest.mark.parametrize("shape", [(20, 20), (20, 100), (100, 20), (60, 100), (24, 48), (10, 30)])
def test_if_needed_cuts_only_what_exceeds_the_size(crop, shape):
    longest = 2 * SIZE if crop.endswith("2x") else SIZE
    kept = tuple(min(side, longest) for side in shape)
    image, transform = gradient(*shape), TrainTransform("none", crop, SIZE)
    spans = []
    for made in [transform(image, seed) for seed in range(40)] + [apply_view(image, crop, SIZE)]:
        # the gradient's range tells how much of the picture there is
        across, down = np.ptp(made[..., 0].astype(int)), np.ptp(made[..., 1].astype(int))
        assert (down, across) == pytest.approx([230 * kept[i] / shape[i] for i in (0, 1)], abs=25)
        spans.append(made.tobytes())
    assert (len(set(spans)) == 1) == (kept == shape)


def test_a_plain_picture_is_its_crop():
    image = noise(SIZE, 90)
    numbers = random.Random(5)
    y, x, side, _ = square(SIZE, 90, numbers)
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
    [
        ("centre", "flip"),
        *((view, f"{view}-flip") for view in ("start", "end", "squash", "native", "letterbox")),
        *((view, f"{view}-flip") for view in ("if-needed", "if-needed-2x")),
    ],
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


@pytest.mark.parametrize("crop", ["letterbox", "squash"])
def test_a_crop_that_cuts_nothing_is_its_view(crop):
    image = noise(33, 51)
    assert np.array_equal(TrainTransform("none", crop, SIZE)(image, 3), apply_view(image, crop, SIZE))


def test_each_crop_that_draws_has_a_view_of_its_centre():
    assert {crop for crop in CROPS if crop not in ("random", "rectangular")} <= VIEWS.keys()


def changed(augmentation, n=400):
    """The share of seeds that change a picture."""
    image, transform = noise(SIZE, SIZE), TrainTransform(augmentation, "squash", SIZE)
    return np.mean([not np.array_equal(transform(image, seed), image) for seed in range(n)])


ALONE = {"hflip": 0.0}  # else it changes pictures, too


@pytest.mark.parametrize("name", ["vflip", "noise", "blur", "distortion", "colour", "erase", "hflip"])
@pytest.mark.parametrize("p", [0.0, 0.08, 0.6])
def test_each_thing_happens_as_often_as_its_probability_says_however_small(name, p):
    assert changed(Augmentation.model_validate(ALONE | {name: p})) == pytest.approx(p, abs=0.08 if p else 0)
    assert (changed(Augmentation.model_validate(ALONE | {name: p})) > 0) == (p > 0)


@pytest.mark.parametrize(("name", "p"), [("soft", 0.75), ("medium", 0.2), ("hard", 0.75), ("none", 0.0)])
def test_affine_by_its_name_happens_as_often_as_in_2019(name, p):
    assert changed(Augmentation.model_validate(ALONE | {"affine": name})) == pytest.approx(p, abs=0.08)
    assert Augmentation.model_validate({"affine": name}).affine == AFFINE[name]


def test_a_turn_by_90_degrees_is_one_of_four():
    image, transform = (
        noise(SIZE, SIZE),
        TrainTransform(Augmentation(hflip=0.0, rotate90=1.0), "squash", SIZE),
    )
    made = {transform(image, seed).tobytes() for seed in range(60)}
    assert made == {np.ascontiguousarray(np.rot90(image, k)).tobytes() for k in range(4)}


def test_what_happens_happens_together_and_the_flip_whatever_the_rest_does():
    both = Augmentation(hflip=0.0, vflip=1.0, erase=1.0, global_prob=0.4)
    image, transform = noise(SIZE, SIZE), TrainTransform(both, "squash", SIZE)
    kept = black = 0
    for made in (transform(image, seed) for seed in range(300)):
        if np.array_equal(made, image):
            kept += 1
        else:
            black += (made == 0).all(axis=2).any() and not np.array_equal(made, image[::-1])
    assert kept / 300 == pytest.approx(0.6, abs=0.08)
    assert kept + black == 300
    assert changed(Augmentation(hflip=1.0, vflip=1.0, global_prob=0.0)) == 1


def test_groups_have_the_weights_of_2019():
    groups = transforms(Augmentation(noise=1, blur=1, distortion=1, colour=1))[1].transforms
    shares = []
    for group in groups:
        weighed = zip(group.transforms, group.transforms_ps, strict=True)
        shares.append([(type(one).__name__, round(share, 3)) for one, share in weighed])
    assert shares == [
        [("GaussNoise", 0.5), ("GaussNoise", 0.5)],
        [("MotionBlur", 0.5), ("MedianBlur", 0.25), ("Blur", 0.25)],
        [("OpticalDistortion", 0.429), ("GridDistortion", 0.143), ("PiecewiseAffine", 0.429)],
        [("CLAHE", 0.25), ("Sharpen", 0.25), ("Emboss", 0.25), ("RandomBrightnessContrast", 0.25)],
    ]


def test_piecewise_affine_moves_what_is_there_and_nothing_else():
    image = gradient(60, 80)
    still = PiecewiseAffine().apply(image, np.zeros((4, 4, 2), np.float32))
    right = PiecewiseAffine().apply(image, np.full((4, 4, 2), (0.25, 0.0), np.float32))
    assert np.array_equal(still, image)
    assert np.array_equal(right[:, :60], image[:, 20:])


def test_a_policy_draws_nothing_from_the_generator_that_dropout_uses():
    before = torch.random.get_rng_state()
    for policy in ("trivialaugment", "randaugment"):
        TrainTransform(policy, "random", SIZE)(noise(40, 40), 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_randaugment_does_more_at_a_greater_magnitude():
    image, away = gradient(64, 64), []
    for magnitude in (1, 28):
        wanted = Augmentation(hflip=0.0, policy="randaugment", magnitude=magnitude)
        transform = TrainTransform(wanted, "squash", SIZE)
        plain = TrainTransform("none", "squash", SIZE)(image, 0).astype(float)
        away.append(np.mean([np.abs(transform(image, s) - plain).mean() for s in range(80)]))
    assert away[1] > 2 * away[0]
