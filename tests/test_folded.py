"""Batch norms folded into convolutions: the same function, or else the model as it was."""

import pytest
import torch

from imet_ray.models.folded import folded
from imet_ray.models.models import build_model
from imet_ray.models.snapshots import Snapshots


def made(architecture: str, seed: int = 0, size: int = 64) -> torch.nn.Module:
    """A model whose batch norms have seen something."""
    torch.manual_seed(seed)
    model = build_model(architecture, n_labels=5, image_size=size, dropout=0.0, weights="none")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval().to(memory_format=torch.channels_last)


def pictures(n: int, size: int = 64, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def norms(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    "architecture", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0", "cbam_resnet50"]
)
def test_a_folded_model_is_the_same_function_with_no_batch_norm_left(architecture):
    model = made(architecture)
    found = folded(model, pictures(1))
    assert norms(found) < norms(model) / 4
    with torch.inference_mode():
        assert torch.allclose(found(pictures(3, seed=2)), model(pictures(3, seed=2)), rtol=1e-3, atol=1e-3)
        assert torch.allclose(found.features(pictures(2)), model.features(pictures(2)), rtol=1e-2, atol=1e-2)


def test_snapshots_are_folded_each(monkeypatch):
    model = Snapshots([made("test_resnet", 0), made("test_resnet", 1)]).eval()
    found = folded(model, pictures(1))
    assert norms(found) == 0
    assert norms(model) > 0
    with torch.inference_mode():
        assert torch.allclose(found(pictures(2)), model(pictures(2)), rtol=1e-3, atol=1e-3)


class _Used(torch.nn.Module):
    """What a convolution gives is used twice: by a batch norm, and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.conv(images.float())
        return (self.norm(seen) + seen).mean((2, 3))


def test_a_model_that_folding_would_change_stays_as_it_is():
    model = _Used().eval()
    model.norm.running_var.fill_(4.0)
    assert folded(model, pictures(1)) is model


def test_a_model_without_batch_norms_stays_as_it_is():
    model = made("test_vit", size=160)
    assert folded(model, pictures(1, 160)) is model
