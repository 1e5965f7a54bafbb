"""The blend of what is predicted so far: weights renormalised over it, decoded as the blend fitted it."""

import numpy as np

from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.pooling import add_share, as_probability, on_scale
from kernel_builder.runtime.manifest import KernelMember, Manifest


class RunningBlend:
    """Adds up checkpoints, member by member, just as `launch.py --predict` does."""

    def __init__(self, manifest: Manifest, n_pictures: int) -> None:
        self.manifest, self.n = manifest, n_pictures
        self.members: list[str] = []  # those with a checkpoint in it
        self.checkpoints = 0
        # (n, C) float32: closed members on the scale, times their weights; and the sum of these weights
        self._total: np.ndarray | None = None
        self._weight = 0.0
        # (n, C) float32: the open member's checkpoints, each divided by the number of all of them
        self._open: KernelMember | None = None
        self._sum: np.ndarray | None = None
        self._count = 0

    def add(self, member: KernelMember, probs: np.ndarray) -> None:
        """Add a checkpoint's probabilities: (n, C) float16. A member's checkpoints follow each other."""
        if self._open is not member:
            self.close()
            self._open = member
            self.members.append(member.name)
        self._sum = add_share(self._sum, 1 / len(member.weights), probs, "probability")
        self._count += 1
        self.checkpoints += 1

    def close(self) -> None:
        """The open member gets no more checkpoints."""
        if self._open is not None:
            self._total = add_share(self._total, self._open.weight, self._mean(), self.manifest.scale)
            self._weight += self._open.weight
        self._open, self._sum, self._count = None, None, 0

    def probabilities(self) -> np.ndarray:
        """(n, C) float32; the labels' prior while nothing is predicted."""
        if not self.members:
            return np.tile(np.array(self.manifest.prior, np.float32), (self.n, 1))
        total, weight = self._total, self._weight
        if self._open is not None:
            share = np.float32(self._open.weight) * on_scale(self._mean(), self.manifest.scale)
            total = share if total is None else total + share
            weight += self._open.weight
        assert total is not None
        whole = len(self.members) == len(self.manifest.members)
        total = total.copy() if whole else total / np.float32(weight)
        return as_probability(total, self.manifest.scale, out=total)

    def decoder(self) -> Decoder:
        """The one that was fitted for these members, or else for as many of them."""
        prefixes = self.manifest.prefixes
        for prefix in prefixes:
            if set(prefix.members) == set(self.members):
                return prefix.decoder
        return prefixes[max(0, len(self.members) - 1)].decoder

    def decoded(self, unreadable: set[int]) -> np.ndarray:
        """Label sets, (n, C) bool, none empty; unreadable pictures get those of the prior."""
        probs = self.probabilities()
        probs[sorted(unreadable)] = np.array(self.manifest.prior, np.float32)
        return self.decoder().decode(probs)

    def _mean(self) -> np.ndarray:
        assert self._open is not None
        assert self._sum is not None
        if self._count == len(self._open.weights):
            return self._sum
        return np.asarray(self._sum * np.float32(len(self._open.weights) / self._count))
