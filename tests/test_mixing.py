"""Batches that are mixed: labels as the pixels are, and everything from one generator."""

import numpy as np
import pytest
import torch

from imet_ray.data.mixing import cutmix, mixed, mixup


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


def test_mixup_leaves_a_batch_of_one_alone():
    images, targets = batch(1)
    mixed, shares = mixup(images, targets, alpha=0.3, generator=np.random.default_rng(0))
    assert torch.equal(mixed, images.float())
    assert torch.equal(shares, targets)


def coloured(n, size=16):
    """Pictures of one colour each, (n, 3, size, size) uint8, and several soft labels of each, (n, 5)."""
    colours = torch.arange(1, n + 1, dtype=torch.uint8)
    images = colours[:, None, None, None].expand(n, 3, size, size).clone()
    return images, torch.rand((n, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_mixes_labels_by_the_area_that_comes_from_each_picture(seed):
    images, targets = coloured(6)
    made, labels = cutmix(images, targets, alpha=1.0, generator=np.random.default_rng(seed))
    assert made.dtype == images.dtype
    for i in range(6):
        shares = torch.stack([(made[i, 0] == colour).float().mean() for colour in range(1, 7)])
        assert shares.sum() == 1
        assert torch.allclose(labels[i], shares @ targets, atol=1e-6)


def test_cutmix_puts_one_rectangle_at_the_same_place_of_all():
    images, targets = coloured(8)
    made, _ = cutmix(images, targets, alpha=1.0, generator=np.random.default_rng(1))
    foreign = made[:, 0] != images[:, 0]
    place = foreign.any(dim=0)
    assert 0 < int(place.sum()) < place.numel()
    assert int(place.sum()) == int(place.any(dim=0).sum() * place.any(dim=1).sum())
    for one in foreign:
        assert torch.equal(one, place) or not one.any()  # its own partner


def test_cutmix_leaves_its_batch_as_it_was():
    images, targets = coloured(5)
    cutmix(images, targets, alpha=1.0, generator=np.random.default_rng(0))
    assert torch.equal(images, coloured(5)[0])
    assert torch.equal(targets, coloured(5)[1])


def test_cutmix_shares_are_those_of_the_beta_distribution_less_what_lies_outside():
    generator = np.random.default_rng(0)
    images, _ = coloured(2, size=32)
    shares = []
    for _ in range(400):
        _, labels = cutmix(images, torch.eye(2), alpha=1.0, generator=generator)
        shares.append(float(labels[0].min()))
    assert (
        0.1 < np.mean(shares) < 0.25
    )  # uniform shares have 1/2 in the mean before the cut and the half that swaps
    assert min(shares) == 0


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha", "cuts"), [(0.3, 0, 0), (0, 0.3, 1), (0.3, 0.3, 0.5)])
def test_with_both_each_batch_gets_one_of_them(mixup_alpha, cutmix_alpha, cuts):
    generator = np.random.default_rng(0)
    kinds = []
    for _ in range(200):
        made, _ = mixed(*coloured(4), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, generator=generator)
        kinds.append(made.dtype == torch.uint8)  # what is cut keeps its type
    assert np.mean(kinds) == pytest.approx(cuts, abs=0.1 if cuts == 0.5 else 0)


def test_mixup_alone_is_what_it_was_before_there_was_cutmix():
    one, other = (np.random.default_rng(3) for _ in range(2))
    made, labels = mixed(*batch(6), mixup_alpha=0.3, cutmix_alpha=0, generator=one)
    before, targets = mixup(*batch(6), alpha=0.3, generator=other)
    assert torch.equal(made, before)
    assert torch.equal(labels, targets)
