"""Each kind of thing that people add has one registry: one of each is added here from outside, and run."""

import albumentations as A
import numpy as np
import pytest
import torch

from imet_ray.data import augmentation
from imet_ray.errors import ConfigError
from imet_ray.search_space import read_space
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training import losses, optim
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial


class Halved(optim.Schedule):
    """Half of the rate from the second epoch on."""

    def __init__(self, optimizer, recipe, *, total, warmup):
        self.optimizer, self.lr, self.half = optimizer, recipe.lr, total // recipe.epochs

    def before_update(self, update):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr / 2 if update >= self.half else self.lr


def squared_error(weight):
    return lambda logits, targets: weight * ((logits.sigmoid() - targets) ** 2).mean()


def grey(calls):
    def augmentations():
        calls.append("grey")
        return [A.ToGray(p=1.0)]

    return augmentations


def corner(calls):
    def crop(height, width, numbers):
        calls.append("corner")
        return 0, 0, height // 2, width // 2

    return crop


def upside_down(calls):
    def view(image, size):
        calls.append("upside-down")
        return augmentation.VIEWS["centre"](image, size)[::-1]

    return view


KINDS = {  # what is added: its registry, and the setting that names it
    "loss": (losses.LOSSES, lambda calls: (squared_error, 2.0), {"loss": "mine"}),
    "schedule": (optim.SCHEDULES, lambda calls: Halved, {"schedule": "mine"}),
    "augmentation": (augmentation.PRESETS, grey, {"augmentation": "mine"}),
    "crop": (augmentation.CROPS, corner, {"crop": "mine"}),
    "view": (augmentation.VIEWS, upside_down, {"views": ["mine", "centre"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_recipe_names_is_one_entry_in_one_registry(kind, monkeypatch, tmp_path, tiny_data, make_spec):
    registry, make, setting = KINDS[kind]
    calls = []
    space = tmp_path / "space.yml"
    base = {"architecture": "test_resnet", "weights": "none", "image_size": 32, "epochs": 2, "lr": 0.003}
    space.write_text(f"variants: [{ {'name': 'a'} | base | setting }]\n")
    with pytest.raises(ConfigError, match="line 1: unknown .* 'mine'"):
        read_space(space, check=check_recipe)

    monkeypatch.setitem(registry, "mine", make(calls))
    variant = read_space(space, check=check_recipe).variants[0]
    spec = make_spec().model_copy(update={"variant": variant})
    trial = RunDirectory(tmp_path).trial(spec.trial_id)
    rates = []
    result = train_trial(
        spec,
        tiny_data,
        trial,
        device=torch.device("cpu"),
        report=lambda metrics: rates.append(metrics["lr"]),
    )
    assert result.status == "complete"
    assert np.isfinite(result.score)
    if kind == "schedule":
        assert rates == [0.003, 0.0015]
    elif kind != "loss":
        assert calls
