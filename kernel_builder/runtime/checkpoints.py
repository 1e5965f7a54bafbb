"""Checkpoints as models, and the device that they predict on."""

import logging

import safetensors.torch
import torch

from imet_ray.errors import telling_line
from imet_ray.models.checkpoint import build_tagger
from imet_ray.prediction.predict import half_of
from imet_ray.specs import Variant

logger = logging.getLogger(__name__)


def load_model(recipe: Variant, n_labels: int, weights: bytes, device: torch.device) -> torch.nn.Module:
    """The model of a checkpoint, on the device."""
    model = build_tagger(recipe, n_labels, safetensors.torch.load(weights))
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def usable_device() -> torch.device:
    """The GPU if a small convolution works on it, in float32 and in the half precision that models use there.

    A build of torch has no code for GPUs that are much older or newer than itself; the first operation fails there.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda")
    try:
        convolution = torch.nn.Conv2d(3, 8, 3).to(device)
        for dtype in (None, half_of(device)):
            with torch.inference_mode(), torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                convolution(torch.ones(1, 3, 8, 8, device=device)).float().sum().item()
    except Exception as error:  # of any kind: the CPU is there
        logger.warning("the GPU cannot be used (%s): predicting on the CPU", telling_line(error))
        return torch.device("cpu")
    return device
