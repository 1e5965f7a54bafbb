"""The blend of what is predicted so far: weights renormalised over it, decoded as the blend fitted it.

Level 2 needs all members: until they are there, and where one of them fails, the weights predict.
"""

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
        self._whole = True
        self._means: dict[str, np.ndarray] = {}  # (n, C) float16 of closed members, for level 2

    def add(self, member: KernelMember, probs: np.ndarray, *, whole: bool = True) -> None:
        """Add a checkpoint's probabilities: (n, C) float16. A member's checkpoints follow each other.

        Args:
            whole: it predicted all pictures.
        """
        if self._open is not member:
            self.close()
            self._open = member
            self.members.append(member.name)
        self._sum = add_share(self._sum, 1 / len(member.weights), probs, "probability")
        self._count += 1
        self.checkpoints += 1
        self._whole &= whole

    def close(self) -> None:
        """The open member gets no more checkpoints."""
        if self._open is not None:
            mean, weight = self._mean(), self._open_weight()
            if weight > 0:
                self._total = add_share(self._total, weight, mean, self.manifest.scale)
                self._weight += weight
            if self.manifest.level2 is not None:
                self._means[self._open.name] = mean.astype(np.float16)
        self._open, self._sum, self._count = None, None, 0

    @property
    def by_level2(self) -> bool:
        """All members are there for level 2, each by a checkpoint at least."""
        all_there = self._whole and len(self.members) == len(self.manifest.members)
        return self.manifest.level2 is not None and all_there

    def probabilities(self) -> np.ndarray:
        """(n, C) float32; the labels' prior while nothing is predicted."""
        if not self.members:
            return np.tile(np.array(self.manifest.prior, np.float32), (self.n, 1))
        if self.by_level2:
            return self._stacked()
        total, weight = self._total, self._weight
        if self._open is not None and (own := self._open_weight()) > 0:
            share = np.float32(own) * on_scale(self._mean(), self.manifest.scale)
            total = share if total is None else total + share
            weight += own
        assert total is not None
        whole = self._weighted() == {member.name for member in self.manifest.members if member.weight > 0}
        total = total.copy() if whole else total / np.float32(weight)
        return as_probability(total, self.manifest.scale, out=total)

    def _open_weight(self) -> float:
        """Of the open member; one that level 2 alone needs is better than nothing, if no other is there."""
        assert self._open is not None
        return self._open.weight or float(self._total is None)

    def _stacked(self) -> np.ndarray:
        """What level 2 makes of all members."""
        assert self.manifest.level2 is not None
        means = dict(self._means)
        if self._open is not None:
            means[self._open.name] = self._mean().astype(np.float16)
        return self.manifest.level2.predict(means)

    def _weighted(self) -> set[str]:
        """Those of the members that have a weight."""
        return {member.name for member in self.manifest.members if member.weight > 0} & set(self.members)

    def decoder(self) -> Decoder:
        """The one that was fitted for these members, or else for as many of them."""
        if self.by_level2 and self.manifest.decoder is not None:
            return self.manifest.decoder
        prefixes, members = self.manifest.prefixes, self._weighted()
        for prefix in prefixes:
            if set(prefix.members) == members:
                return prefix.decoder
        return prefixes[max(0, len(members) - 1)].decoder

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
