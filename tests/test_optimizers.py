"""Optimizers by name, and that what is set of them reaches the update."""

import copy

import pytest
import torch

from imet_ray.errors import ConfigError, SettingError
from imet_ray.models.freezing import frozen_parameters
from imet_ray.models.models import build_model, check_model, train_mode
from imet_ray.specs import Variant
from imet_ray.training.optimizers import OPTIMIZERS, build_optimizer, check_optimizer


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = (
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.Linear(4, 5),
        )

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def recipe(**settings):
    return Variant.model_validate({"name": "a", "architecture": "x", "lr": 0.01} | settings)


def trained(settings, *, interrupted=False):
    """The weights after eight updates."""
    torch.manual_seed(0)
    model = Small()
    optimizer = build_optimizer(model, recipe(**settings))
    for update in range(8):
        if interrupted and update == 4:
            state, model = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model)
            optimizer = build_optimizer(model, recipe(**settings))
            optimizer.load_state_dict(state)
        torch.manual_seed(update)
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(8, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    return torch.cat([one.detach().flatten() for one in model.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_and_goes_on_bit_for_bit(name):
    settings = {"optimizer": name, "weight_decay": 0.01}
    through = trained(settings)
    assert through.isfinite().all()
    assert torch.equal(trained(settings, interrupted=True), through)


OTHER = {"beta1": 0.5, "beta2": 0.5, "eps": 0.1, "amsgrad": True, "momentum": 0.5}


@pytest.mark.parametrize("setting", OTHER)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_setting_of_an_optimizer_is_ignored(name, setting):
    settings = {"optimizer": name, setting: OTHER[setting], "weight_decay": 0.01}
    try:
        check_optimizer(recipe(**settings))
    except SettingError:
        return
    assert not torch.equal(trained(settings), trained({"optimizer": name, "weight_decay": 0.01}))


def test_what_needs_more_than_a_gradient_is_not_offered():
    assert {"adam", "adamw", "sgd", "nadam", "lamb", "lion", "radam", "rmsprop"} < set(OPTIMIZERS)
    assert not {"adahessian", "bnbadam", "fusedadam", "kron"} & set(OPTIMIZERS)


def test_rates_decay_from_layer_to_layer_down():
    model = build_model("test_vit", n_labels=3, image_size=160, dropout=0.0, weights="none")
    groups = build_optimizer(model, recipe(layer_decay=0.5, weight_decay=0.1)).param_groups
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    by_name = {name: scale[id(parameter)] for name, parameter in model.body.named_parameters()}
    blocks = len(model.body.blocks)
    assert by_name["head.weight"] == 1
    assert [by_name[f"blocks.{i}.mlp.fc1.weight"] for i in range(blocks)] == [
        0.5 ** (blocks - i) for i in range(blocks)
    ]
    assert by_name["patch_embed.proj.weight"] == 0.5 ** (blocks + 1)


def test_frozen_parameters_are_not_the_optimizers():
    model = build_model("test_resnet", n_labels=3, image_size=32, dropout=0.0, weights="none")
    train_mode(model, head_only=False, freeze=2)
    held = {id(one) for group in build_optimizer(model, recipe()).param_groups for one in group["params"]}
    names = {name.split(".")[0] for name, one in model.body.named_parameters() if id(one) in held}
    assert names == {"layer2", "layer3", "layer4", "fc"}
    assert not model.body.bn1.training
    assert not model.body.layer1.training
    assert model.body.layer2.training


@pytest.mark.parametrize("freeze", [None, 0])
def test_nothing_is_frozen_by_default(freeze):
    assert frozen_parameters(torch.nn.Linear(2, 2), freeze) == frozenset()


def test_a_count_and_a_name_freeze_the_same_layers():
    body = build_model("test_resnet", n_labels=3, image_size=32, dropout=0.0, weights="none").body
    assert frozen_parameters(body, "layer1") == frozen_parameters(body, 2)
    assert frozen_parameters(body, "layer2.0.conv1") == frozen_parameters(body, 3)


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (9, "6 groups of layers, the head among them: freeze at most 5"),
        ("fc", "freeze at most 5"),
        ("layer", "no layer is named 'layer': freeze takes names such as conv1"),
    ],
)
def test_layers_that_are_not_there_are_not_frozen(freeze, expected):
    with pytest.raises(ConfigError, match=expected):
        check_model("test_resnet", 32, 0.0, 0.0, freeze)


def test_an_architecture_without_drop_path_refuses_it_by_name():
    with pytest.raises(ConfigError, match=r"vgg11 ignores drop_path \(got 0.2\): set drop_path: 0"):
        check_model("vgg11", 32, 0.0, 0.2)
    check_model("test_vit", 160, 0.0, 0.2)


def test_blocks_are_left_out_while_training_only():
    torch.manual_seed(0)
    model = build_model("test_vit", n_labels=3, image_size=160, dropout=0.0, weights="none", drop_path=0.9)
    pictures = torch.randint(0, 256, (4, 3, 160, 160), dtype=torch.uint8)
    assert not torch.equal(model(pictures), model(pictures))
    model.eval()
    assert torch.equal(model(pictures), model(pictures))
