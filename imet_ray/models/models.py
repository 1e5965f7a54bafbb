"""Models: any of timm's by name, and `cbam_resnet50`, with the normalisation built in.

A `Tagger` takes uint8 pictures and gives logits; mean and std are part of its state, so a checkpoint is all that
inference needs. Where pretrained weights come from is `imet_ray.models.pretrained`.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import DropPath

from imet_ray.errors import ConfigError, SettingError, telling_line, unknown_name
from imet_ray.models.depthwise_cpu import train_small_maps_fast
from imet_ray.models.freezing import frozen_parameters
from imet_ray.models.pretrained import (
    classifier_parameters,
    hub_options,
    load_file,
    load_package,
    load_tensors,
    no_hub,
    output_layers,
)

CBAM = "cbam_resnet50"
STEPS = (14, 16, 32, 64, 128)  # pixels: multiples are tried where an architecture does not take a size
RARE = 1e-4  # a label that the training fold lacks starts at this probability


class Tagger(torch.nn.Module):
    """Pictures in, logits out."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """
        Args:
            body: (B, 3, S, S) normalised float to (B, C) logits.
            mean, std: of the pretrained config, for pixels in 0..1.
        """
        super().__init__()
        self.body = body
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8, or float in 0..255, to (B, C) logits."""
        logits: torch.Tensor = self.body((images.float() - self.mean) / self.std)
        return logits

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8, or float in 0..255, to what the classifier sees: (B, D)."""
        seen = self.body.forward_features((images.float() - self.mean) / self.std)  # type: ignore[operator]
        pooled: torch.Tensor = self.body.forward_head(seen, pre_logits=True)  # type: ignore[operator]
        return pooled


def check_architecture(name: str) -> None:
    """Refuse an architecture that neither timm nor we know, naming the nearest.

    Raises:
        ConfigError: for an unknown name, or an unknown pretrained tag after the dot.
    """
    if name == CBAM:
        return
    if not timm.is_model(name):
        error = unknown_name("architecture", name, [*timm.list_models(), CBAM])
        raise ConfigError(str(error).partition("Known:")[0] + "any name of timm.list_models() is known")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(name.partition(".")[0])) or "none"
        raise ConfigError(f"unknown architecture {name!r}: {error} With weights: {known}") from None


@lru_cache(maxsize=256)
def check_model(
    architecture: str,
    image_size: int,
    dropout: float,
    drop_path: float = 0.0,
    freeze: int | str | None = None,
) -> None:
    """Refuse what only the first forward pass would find out: pictures go through the model, without numbers.

    It takes 0.1 to 1 s, and once per process.

    Raises:
        ConfigError: as `build_model`; for a size, naming sizes that the architecture takes.
    """
    try:
        tagger = _try_size(architecture, image_size, dropout, drop_path)
    except SettingError as error:
        near = {
            s for step in STEPS for s in ((image_size - 1) // step * step, (image_size // step + 1) * step)
        }
        if architecture != CBAM:
            near.add(timm.get_pretrained_cfg(architecture).input_size[-1])
        takes = [size for size in sorted(near) if size > 0 and _takes(architecture, size, dropout)]
        sizes = ", ".join(map(str, takes)) or "none near it"
        raise ConfigError(f"{error}. Sizes that it takes: {sizes}") from None
    try:
        frozen_parameters(tagger.body, freeze)
    except SettingError as error:
        raise ConfigError(f"{architecture}: {error}") from None


def _takes(architecture: str, image_size: int, dropout: float) -> bool:
    try:
        _try_size(architecture, image_size, dropout)
    except SettingError:
        return False
    return True


def _try_size(architecture: str, image_size: int, dropout: float, drop_path: float = 0.0) -> Tagger:
    """Build the model and run it, on torch's device of shapes alone.

    Raises:
        SettingError: if the architecture does not take the size.
    """
    with torch.device("meta"), torch.no_grad():
        tagger = build_model(
            architecture,
            n_labels=2,
            image_size=image_size,
            dropout=dropout,
            drop_path=drop_path,
            weights="none",
        )
        try:
            for pictures, training in ((2, True), (1, False)):
                tagger.train(training)(torch.zeros(pictures, 3, image_size, image_size, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise _unfit(architecture, image_size, error) from error
    return tagger


def build_model(
    architecture: str,
    *,
    n_labels: int,
    image_size: int,
    dropout: float,
    weights: str,
    prior: np.ndarray | None = None,
    drop_path: float = 0.0,
) -> Tagger:
    """Build a model in training mode.

    Args:
        architecture: timm's name, or `cbam_resnet50`.
        image_size: pixels; given to those models that are built for one size. `check_model` runs them.
        dropout: rate before the classifier.
        weights: hub, package, none, or the path of a .safetensors or .pth file.
        prior: (C,) shares of pictures with each label: the bias of a new classifier starts there, if it has one.
        drop_path: rate at which the last block is left out while training, rising from 0 at the first.

    Raises:
        ConfigError: for an unknown architecture, a size it cannot be built for, weights that are not there or do not
            fit, or a dropout or drop_path that the architecture would ignore.
    """
    check_architecture(architecture)
    body = _create(architecture, n_labels, image_size, dropout, drop_path, pretrained=weights == "hub")
    if dropout_rate(body) != dropout:
        raise ConfigError(f"{architecture} ignores dropout (got {dropout}): set dropout: 0")
    if drop_path and not drop_path_rate(body):
        raise ConfigError(f"{architecture} ignores drop_path (got {drop_path}): set drop_path: 0")
    train_small_maps_fast(body)
    config = _config(body)
    tagger = Tagger(body, tuple(config["mean"]), tuple(config["std"]))
    head_is_new = True
    if weights == "hub" and architecture == CBAM:
        parent = build_model("resnet50", n_labels=1, image_size=image_size, dropout=0.0, weights="hub")
        load_tensors(body, parent.body.state_dict(), "resnet50's weights", may_be_new=".se.")
    elif weights == "package":
        load_package(body, architecture)
    elif weights not in ("hub", "none"):
        head_is_new = not load_file(body, Path(weights))
    if prior is not None and head_is_new:
        _start_at_prior(tagger, prior)
    return tagger


def dropout_rate(body: torch.nn.Module) -> float:
    """The rate that stands in the built model before its classifier; 0 where there is none.

    timm's models have a Dropout in or beside their head, or else pass `drop_rate` to the function. Checked with one
    architecture of each of timm's families: the rate that is asked for is read back from all.
    """
    modules = [
        module.p
        for name, module in body.named_modules()
        if isinstance(module, torch.nn.Dropout) and name.split(".")[0] in ("head", "head_drop")
    ]
    return max(modules) if modules else float(getattr(body, "drop_rate", 0.0))


def drop_path_rate(body: torch.nn.Module) -> float:
    """The largest rate at which one of the built model's blocks is left out; 0 where none is."""
    return max(
        (float(module.drop_prob) for module in body.modules() if isinstance(module, DropPath)), default=0.0
    )


def train_mode(tagger: Tagger, *, head_only: bool, freeze: int | str | None = None) -> None:
    """Prepare for training: of the head only, with the body's batch norms as they are, or of everything.

    Args:
        freeze: lowest layers that are never trained, as `frozen_parameters` has them; their batch norms stay, too.
    """
    tagger.train(not head_only)
    head = {id(parameter) for parameter in classifier_parameters(tagger.body)}
    frozen = frozen_parameters(tagger.body, freeze)
    for name, parameter in tagger.body.named_parameters():
        parameter.requires_grad_((not head_only or id(parameter) in head) and name not in frozen)
    for name, module in tagger.body.named_modules() if frozen else ():
        inside = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        if inside and frozen.issuperset(inside):
            module.eval()


def _create(
    architecture: str,
    n_labels: int,
    image_size: int,
    dropout: float,
    drop_path: float = 0.0,
    *,
    pretrained: bool = False,
) -> torch.nn.Module:
    """timm's model, with the weights of its hub if `pretrained`; cbam_resnet50 has none of its own there."""
    options: dict[str, object] = {"num_classes": n_labels, "drop_rate": dropout}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if architecture == CBAM:
        options["block_args"] = {"attn_layer": "cbam"}
    else:
        if timm.get_pretrained_cfg(architecture).fixed_input_size:
            options["img_size"] = image_size
        if pretrained:
            options |= hub_options(architecture)
    try:
        body = _with_what_it_takes("resnet50" if architecture == CBAM else architecture, options)
    except (OSError, RuntimeError) as error:
        if pretrained:
            raise no_hub(architecture, telling_line(error)) from error
        raise
    except (AssertionError, TypeError, ValueError) as error:
        raise _unfit(architecture, image_size, error) from error
    if not hasattr(body, "get_classifier"):
        raise ConfigError(
            f"{architecture} gives features and no labels: choose an architecture that classifies"
        )
    if pretrained and _config(body)["num_classes"] == n_labels:
        body.reset_classifier(n_labels)  # type: ignore[operator]  # the hub's labels are not ours
    return body


def _with_what_it_takes(name: str, options: Mapping[str, object]) -> torch.nn.Module:
    """timm's model with the options that its class knows: a few know no dropout, or no size."""
    try:
        model: torch.nn.Module = timm.create_model(name, **options)
        return model
    except TypeError as error:
        known = {key: value for key, value in options.items() if f"'{key}'" not in str(error)}
        if len(known) == len(options):
            raise
        return _with_what_it_takes(name, known)


def _unfit(architecture: str, image_size: int, error: Exception) -> SettingError:
    return SettingError(
        "image_size",
        f"{architecture} does not take image_size {image_size}: {telling_line(error).rstrip('.')}",
    )


def _config(body: torch.nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
    return found


def _start_at_prior(tagger: Tagger, prior: np.ndarray) -> None:
    logits = torch.logit(torch.from_numpy(np.clip(prior, RARE, 1 - RARE)).float())
    with torch.no_grad():
        for layer in output_layers(tagger.body):
            if layer.bias is not None:
                layer.bias.copy_(logits)
