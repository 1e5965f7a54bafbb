"""The processes that train one trial together: each has a share of every batch, and their gradients are averaged.

Torch's DistributedDataParallel and collectives, in one place; for a trial in one process nothing is called. Whoever
starts the processes has joined them to a process group before (`imet_ray.cluster.ddp_trial`).
"""

import contextlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class SplitError(Exception):
    """The processes of a team found different states: all must begin again."""


@dataclass(frozen=True)
class Team:
    """This process within it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """It writes the artefacts."""
        return self.rank == 0

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The model whose backward pass averages gradients over the team; of a team of one, itself."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def averages(self, wrapped: torch.nn.Module, now: bool) -> "contextlib.AbstractContextManager[None]":
        """Within it a backward pass averages all gradients that were added up; if not `now`, it only adds its own."""
        if now or not isinstance(wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Of a scalar over the team."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def broadcast(self, value: T) -> T:
        """What the leader says."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, 0)
        return said[0]

    def broadcast_buffers(self, *models: torch.nn.Module) -> None:
        """Give each process the leader's buffers: running means and variances are each process's own otherwise."""
        if self.size > 1:
            for model in models:
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)

    def shard(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of (n,) rows: each size-th."""
        return rows[self.rank :: self.size]

    def gather(self, part: np.ndarray, n: int) -> np.ndarray:
        """The whole, (n, ...), in the order of the rows that were shared."""
        if self.size == 1:
            return part
        parts: list[np.ndarray] = [part] * self.size
        dist.all_gather_object(parts, part)
        whole = np.empty((n, *part.shape[1:]), part.dtype)
        for rank, found in enumerate(parts):
            whole[rank :: self.size] = found
        return whole

    def barrier(self) -> None:
        """Until all are here: what the leader wrote can be read."""
        if self.size > 1:
            dist.barrier()


ONE_PROCESS = Team()


@dataclass(frozen=True)
class Hardware:
    """What this process trains with."""

    device: torch.device
    loader_workers: int = 0  # processes that load pictures; 0: this one
    team: Team = ONE_PROCESS
