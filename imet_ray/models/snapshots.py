"""Snapshots: several models of one architecture as one, whose probability is the mean of theirs (Huang et al. 2017).

To all that predicts it is a model as any other: pictures in, logits out, one file of weights. Which weights of a trial
become snapshots is `imet_ray.training.kept_weights`.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn.functional import logsigmoid

PREFIX = "snapshots."  # of the names of its tensors; the number of the snapshot follows


class Snapshots(torch.nn.Module):
    """Pictures in, the logits of the mean probability out."""

    def __init__(self, models: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.snapshots = torch.nn.ModuleList(models)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) uint8, or float in 0..255, to (B, C) float32 logits; as exact near 0 and 1 as one model's."""
        logits = torch.stack([model(images).float() for model in self.snapshots])
        return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the classifiers see, one behind the other: (B, the sum of their D)."""
        return torch.cat([model.features(images) for model in self.snapshots], dim=1)  # type: ignore[operator]


def count_snapshots(names: Iterable[str]) -> int:
    """How many snapshots the tensors of these names are of; 0 if they are one model's."""
    return len({name.split(".")[1] for name in names if name.startswith(PREFIX)})


def last_snapshot(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the last snapshot under the names that they have in its model; one model's as they are."""
    n = count_snapshots(tensors)
    own = f"{PREFIX}{n - 1}." if n else ""
    return {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
