"""Depthwise convolutions on small maps: torch's numbers, whatever the shape."""

import pytest
import timm
import torch

from imet_ray.models.depthwise_cpu import DepthwiseConv2d, train_small_maps_fast
from imet_ray.models.models import build_model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (4, 3), (2, 9), (5, 5), (8, 8)])
@pytest.mark.parametrize("taps", [3, 5])
def test_output_and_gradients_are_torchs(taps, height, width, layout, bias):
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Conv2d(12, 12, taps, padding=taps // 2, groups=12, bias=bias).double()
    ours = torch.nn.Conv2d(12, 12, taps, padding=taps // 2, groups=12, bias=bias).double()
    ours.load_state_dict(plain.state_dict())
    train_small_maps_fast(ours)
    assert type(ours) is DepthwiseConv2d
    images = torch.randn(3, 12, height, width, generator=generator, dtype=torch.float64)
    wanted = torch.randn(3, 12, height, width, generator=generator, dtype=torch.float64)
    found = []
    for conv in (plain, ours):
        given = images.clone(memory_format=layout).requires_grad_()
        output = conv(given)
        (output * wanted).sum().backward()
        found.append([output, given.grad, *(parameter.grad for parameter in conv.parameters())])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "conv",
    [
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.Conv2d(8, 16, 3, padding=1, groups=8),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2),
        torch.nn.Conv2d(8, 8, 3, padding=2, groups=8, dilation=2),
        torch.nn.Conv2d(8, 8, 3, groups=8),
        torch.nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8),
        torch.nn.Conv2d(8, 8, 1, groups=1),
    ],
    ids=["dense", "multiplier", "stride", "dilation", "valid", "oblong", "one"],
)
def test_other_convolutions_are_left_alone(conv):
    train_small_maps_fast(conv)
    assert type(conv) is torch.nn.Conv2d


def test_a_model_keeps_its_names_and_its_numbers():
    tagger = build_model(
        "tf_efficientnet_lite0", n_labels=5, image_size=64, dropout=0.0, weights="none"
    ).eval()
    assert sum(type(module) is DepthwiseConv2d for module in tagger.modules()) == 12
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    plain.load_state_dict(tagger.body.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(tagger.body(images), plain(images))
