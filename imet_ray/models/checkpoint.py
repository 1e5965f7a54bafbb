"""Checkpoints: weights with their spec, and the state from which an interrupted trial goes on.

`best.safetensors` is self-contained: weights, spec, label ids and scores in its header. `last.pt` holds what
training needs to go on as if nothing had happened; it is read with `weights_only=True`.
"""

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from imet_ray.errors import StoreError
from imet_ray.models.models import build_model
from imet_ray.models.snapshots import Snapshots, count_snapshots
from imet_ray.specs import TrialSpec, Variant
from imet_ray.storage.checked_read import damaged, regular
from imet_ray.storage.files import LOCAL, Files

STATE = {"epoch", "model", "optimizer", "schedule", "ema", "history"}  # what `last.pt` holds


@dataclass(frozen=True)
class CheckpointInfo:
    """What stands beside the weights."""

    spec: TrialSpec
    label_ids: tuple[str, ...]
    epoch: int
    score: float
    threshold: float


def save_weights(path: Path, model: torch.nn.Module, info: CheckpointInfo, files: Files = LOCAL) -> None:
    """Write `best.safetensors`, atomically."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    metadata = {
        "spec": info.spec.model_dump_json(),
        "label_ids": json.dumps(info.label_ids),
        "epoch": str(info.epoch),
        "score": repr(float(info.score)),
        "threshold": repr(float(info.threshold)),
    }
    with files.writing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise full_disk(error) from error


def full_disk(error: SafetensorError) -> OSError:
    """What Python would raise where safetensors could not write."""
    full = "No space left" in str(error)
    return OSError(errno.ENOSPC if full else 0, str(error))


def read_info(path: Path) -> CheckpointInfo:
    """Read what stands beside the weights, without the weights.

    Raises:
        StoreError: if the file is missing, damaged or not one of ours.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None
    if "spec" not in metadata:
        raise StoreError(f"{path} is no checkpoint of imet_ray: its header has no spec")
    try:
        return CheckpointInfo(
            spec=TrialSpec.model_validate_json(metadata["spec"]),
            label_ids=tuple(map(str, json.loads(metadata["label_ids"]))),
            epoch=int(metadata["epoch"]),
            score=float(metadata.get("score") or metadata["f2"]),  # earlier versions wrote `f2`
            threshold=float(metadata["threshold"]),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from None


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Load the weights of `best.safetensors` into a model of the same architecture."""
    with _reading(path) as tensors:
        model.load_state_dict(tensors)


def load_tagger(path: Path, device: torch.device) -> tuple[torch.nn.Module, CheckpointInfo]:
    """Build the model of a checkpoint, in evaluation mode, on a device."""
    info = read_info(path)
    with _reading(path) as tensors:
        model = build_tagger(info.spec.recipe, len(info.label_ids), tensors)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), info


def build_tagger(recipe: Variant, n_labels: int, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The model that a checkpoint's tensors are of: a `Tagger`, or the `Snapshots` of a trial.

    Raises:
        RuntimeError: if the tensors are of another model.
    """
    n = count_snapshots(tensors)
    models = [
        build_model(
            recipe.architecture,
            n_labels=n_labels,
            image_size=recipe.image_size,
            dropout=recipe.dropout,
            weights="none",
        )
        for _ in range(max(1, n))
    ]
    model = Snapshots(models) if n else models[0]
    model.load_state_dict(tensors)
    return model


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a file, and its error for those that do not fit."""
    try:
        with safe_open(regular(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        yield tensors
    except (OSError, SafetensorError, RuntimeError) as error:
        raise damaged(path, error) from None


def save_state(path: Path, state: dict[str, Any], files: Files = LOCAL) -> None:
    """Write `last.pt`, atomically."""
    with files.writing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's zip writer hides the errno of a full disk
            free = os.statvfs(path.parent).f_bavail
            raise OSError(errno.ENOSPC if free < 1024 else 0, str(error)) from error


def load_state(path: Path) -> dict[str, Any] | None:
    """Read `last.pt`; None if there is none, or if it was damaged (the trial then begins again)."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(regular(path), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= STATE:
            raise ValueError("parts of the state are missing")
        return state
    except Exception as error:  # a damaged file raises whatever its first bad byte causes
        logging.getLogger(__name__).warning("%s is damaged (%s): beginning again", path, error)
        return None
