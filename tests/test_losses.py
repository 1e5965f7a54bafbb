"""Each loss against a plain formula, and that its weight reaches the gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from imet_ray.errors import ConfigError
from imet_ray.training.losses import LOSSES, build_loss

EVERY = sorted(LOSSES)


def entries(seed: int, *, soft: bool = False, shape: tuple[int, int] = (6, 11)):
    """Logits and targets: hard ones, or mixed as mixup does."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    targets = (torch.rand(shape, generator=generator) < 0.3).float()
    return logits, 0.7 * targets + 0.3 * targets.roll(1, 0) if soft else targets


def gradient(name: str, weight: float | None, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    build_loss(name, weight)(leaf, targets).backward()
    assert leaf.grad is not None
    return leaf.grad


def plain(name: str, weight: float, logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The slow obvious version: one entry at a time, in Python's floats."""

    def bce(x: float, y: float, w: float = 1.0) -> float:
        p = 1 / (1 + math.exp(-x))
        return -w * y * math.log(p) - (1 - y) * math.log(1 - p)

    def focal(x: float, y: float, w: float = 1.0) -> float:
        p = 1 / (1 + math.exp(-x))
        return -w * y * (1 - p) ** 2 * math.log(p) - (1 - y) * p**2 * math.log(1 - p)

    def asymmetric(x: float, y: float) -> float:  # hard labels
        p = 1 / (1 + math.exp(-x))
        shifted = max(p - 0.05, 0.0)
        return -(1 - p) * math.log(p) if y else -(shifted**weight) * math.log(1 - shifted)

    def soft_f2(w: float) -> float:
        scores = []
        for xs, ys in zip(logits.tolist(), targets.tolist(), strict=True):
            ps = [1 / (1 + math.exp(-x)) for x in xs]
            hits = sum(p * y for p, y in zip(ps, ys, strict=True))
            scores.append((1 + 4 * w) * hits / (4 * w * sum(ys) + sum(ps) + 1e-6))
        return 1 - sum(scores) / len(scores)

    pairs = list(zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True))

    def mean(cost) -> float:
        return sum(cost(x, y) for x, y in pairs) / len(pairs)

    return {
        "bce": lambda: mean(lambda x, y: bce(x, y, weight)),
        "focal": lambda: mean(lambda x, y: focal(x, y, weight)),
        "soft_f2": lambda: soft_f2(weight),
        "forgiving": lambda: mean(bce) + weight * mean(lambda x, y: bce(x * y, y)),
        "bce+focal": lambda: mean(bce) + weight * mean(focal),
        "bce+f2": lambda: mean(bce) + weight * soft_f2(1.0),
        "asymmetric": lambda: mean(asymmetric),
    }[name]()


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), weight=st.floats(1.0, 6.0))
def test_a_loss_is_what_its_formula_says(name, seed, weight):
    logits, targets = entries(seed)
    assert build_loss(name, weight)(logits, targets).item() == pytest.approx(
        plain(name, weight, logits, targets), rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("name", [name for name in EVERY if name != "asymmetric"])
def test_soft_targets_follow_the_same_formula(name):
    logits, targets = entries(1, soft=True)
    assert build_loss(name, 2.0)(logits, targets).item() == pytest.approx(
        plain(name, 2.0, logits, targets), rel=1e-4
    )


@pytest.mark.parametrize("name", EVERY)
def test_the_weight_reaches_the_gradient(name):
    logits, targets = entries(2)
    low, high = (gradient(name, weight, logits, targets) for weight in (1.0, 3.0))
    assert (low - high).abs().max() > 0.01 * low.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_no_weight_is_the_documented_default(name):
    logits, targets = entries(3)
    default = {"asymmetric": 4.0}.get(name, 1.0)
    assert torch.equal(gradient(name, None, logits, targets), gradient(name, default, logits, targets))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weight", [0.0, None, 100.0])
def test_a_gradient_is_finite_at_extreme_logits(name, soft, weight):
    _, targets = entries(4, soft=soft)
    for size in (0.0, 30.0, 1e4):
        logits = size * (torch.rand(targets.shape).round() * 2 - 1)
        assert build_loss(name, weight)(logits, targets).isfinite()
        assert gradient(name, weight, logits, targets).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_picture_without_labels_has_a_finite_gradient(name):
    logits = torch.full((2, 5), -200.0)
    assert gradient(name, None, logits, torch.zeros(2, 5)).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_autocast_does_not_lower_the_precision(name):
    logits, targets = entries(5, shape=(4, 300))
    with torch.autocast("cpu", torch.bfloat16):
        cast = build_loss(name, None)(logits, targets)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, build_loss(name, None)(logits, targets))


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_logits_give_a_float32_loss(name):
    logits, targets = entries(6)
    loss = build_loss(name, None)
    assert torch.equal(loss(logits.bfloat16(), targets), loss(logits.bfloat16().float(), targets))


@pytest.mark.parametrize("name", EVERY)
def test_the_scale_does_not_depend_on_the_batch_size(name):
    logits, targets = entries(7)
    loss = build_loss(name, None)
    doubled = loss(torch.cat([logits, logits]), torch.cat([targets, targets]))
    assert doubled.item() == pytest.approx(loss(logits, targets).item(), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), weight=st.floats(0.0, 5.0))
def test_forgiving_has_the_gradient_of_bce_with_heavier_positives(seed, weight):
    logits, targets = entries(seed)
    assert torch.allclose(
        gradient("forgiving", weight, logits, targets),
        gradient("bce", 1 + weight, logits, targets),
        rtol=1e-4,
        atol=1e-7,
    )


def test_focal_of_hard_labels_is_torchvisions():
    logits, targets = entries(8)
    peer = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2, reduction="mean")
    assert build_loss("focal", None)(logits, targets).item() == pytest.approx(peer.item(), rel=1e-5)


def test_asymmetric_is_the_mean_of_timms_entries():
    logits, targets = entries(9, soft=True)
    peer = AsymmetricLossMultiLabel(gamma_neg=3.0, reduction="none")(logits, targets).mean()
    assert torch.equal(build_loss("asymmetric", 3.0)(logits, targets), peer)


def test_a_gamma_without_a_gradient_is_refused():
    with pytest.raises(ConfigError, match=r"0 or at least 1, got 0\.5"):
        build_loss("asymmetric", 0.5)


@pytest.mark.parametrize("name", EVERY)
def test_smoothing_moves_targets_towards_a_half(name):
    logits, targets = entries(3)
    smoothed = build_loss(name, None, smoothing=0.2)(logits, targets)
    assert torch.equal(smoothed, build_loss(name, None)(logits, targets * 0.8 + 0.1))
    assert torch.equal(
        build_loss(name, None, smoothing=0.0)(logits, targets), build_loss(name, None)(logits, targets)
    )
