"""A model as a folder that timm loads, from a disk (`local-dir:`) or from the Hugging Face hub (`hf-hub:`).

The folder has timm's own names of tensors, and the normalisation that our checkpoints hold beside them as settings.
Nothing is uploaded here.
"""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf

from imet_ray.errors import ConfigError, telling_line
from imet_ray.models.checkpoint import full_disk
from imet_ray.models.models import Tagger
from imet_ray.models.snapshots import Snapshots

TOLERANCE = 1e-4  # of a logit
OF_ORIGIN = (
    "tag",
    "license",
    "description",
    "origin_url",
    "paper_name",
    "paper_ids",
    "notes",
)  # other weights'


def models_of(model: torch.nn.Module) -> list[Tagger]:
    """The models of a checkpoint: one, or those that its probability is the mean of."""
    found = list(model.snapshots) if isinstance(model, Snapshots) else [model]
    assert all(isinstance(one, Tagger) for one in found)
    return found  # type: ignore[return-value]


def write_timm_folder(
    folder: Path, tagger: Tagger, *, image_size: int, label_names: Sequence[str], name: str
) -> None:
    """Write `config.json` and `model.safetensors`, and load them again.

    Args:
        tagger: in evaluation mode, on the CPU.
        label_names: one per label; of equal ones timm would keep the last.
        name: of the architecture, for errors.

    Raises:
        ConfigError: if timm makes another model of the folder.
        OSError: if the disk is full.
    """
    body = tagger.body.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mean, std = ((buffer / 255).flatten().tolist() for buffer in (tagger.mean, tagger.std))
    pictures = {
        "input_size": (3, image_size, image_size),
        "mean": tuple(round(value, 6) for value in mean),
        "std": tuple(round(value, 6) for value in std),
        "crop_pct": 1.0,  # the view `centre`: the square of the short side
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    origin = {key: None for key in OF_ORIGIN if key in body.pretrained_cfg}
    described = {"label_names": list(label_names), "pretrained_cfg": origin}
    try:
        save_for_hf(body, str(folder), described, safe_serialization=True, data_config=pictures)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise full_disk(error) from error
    shape = (2, 3, image_size, image_size)
    shown = torch.linspace(-2, 2, 2 * 3 * image_size**2).view(shape).sin()
    try:
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            difference = (again(shown) - body(shown)).abs().max().item()
    except Exception as error:  # whatever the model's own code raises for what it was not made with
        raise _other(name, telling_line(error)[:200]) from error
    if not difference <= TOLERANCE:
        raise _other(name, f"its logits differ by {difference:.1e}")


def _other(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"timm makes another model of {name} as a folder ({why}): leave --hub out, or the variant"
    )
