"""What a person may ask of a blend, checked before any data are read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from imet_ray.blending.methods import METHODS, UNIFORM
from imet_ray.blending.stacking import ALL, STACKERS
from imet_ray.errors import ConfigError, unknown_name
from imet_ray.prediction.decode import DECODERS
from imet_ray.prediction.limits import Range
from imet_ray.prediction.pooling import Scale

BY_HAND = "by-hand"  # the method of weights that are given


@dataclass(frozen=True)
class BlendOptions:
    """What a person may ask of a blend."""

    methods: tuple[str, ...] | None = None  # to compare; all if None. Uniform weights always are among them
    use: str | None = None  # the method or stacker to take, whatever it is worth; the best nested one if None
    decoders: tuple[str, ...] | None = None  # to compare; all that can be had if None
    min_weight: float = 0.0  # a member that would get less is left out
    max_members: int | None = None  # of weight above 0
    seconds: float | None = None  # that prediction may take
    images: int | None = None  # test pictures; those of the data if None
    size: int | None = None  # bytes that checkpoints may take
    scale: Scale | None = None  # on which to average; the one whose uniform blend is better, nested, if None
    replace: bool = False  # an ensemble of that name goes, also where the new one lacks a member of it
    level2: tuple[
        str, ...
    ] = ()  # of `STACKERS`, or "all": judged beside the blend, and taken where one is better
    weights: Mapping[str, float] | None = (
        None  # by hand, of all members; they are taken, whatever they are worth
    )
    # weights of earlier blends by name: each is compared, and each is where searches start, too
    starts: Mapping[str, Mapping[str, float]] | None = None
    threshold: float | None = None  # by hand
    limits: Mapping[str, Range] | Literal["fit"] | None = None  # on the number of labels, by label group

    def check(self) -> None:
        """Refuse names that nobody knows and limits that cannot be.

        Raises:
            ConfigError: naming what it may be.
        """
        for kind, names, known in (
            ("method", self.methods or (), tuple(METHODS)),
            ("method", [self.use], (*METHODS, *STACKERS)),
            ("decoder", self.decoders or (), tuple(DECODERS)),
            ("level 2", self.level2, (*STACKERS, ALL)),
        ):
            for name in names:
                if name is not None and name not in known:
                    raise unknown_name(kind, name, known)
        if not 0 <= self.min_weight <= 1:
            raise ConfigError(
                f"--min-weight must be in 0..1, got {self.min_weight}: 0.02 leaves out members below 2 %"
            )
        if self.weights is not None and not (
            all(0 <= weight < math.inf for weight in self.weights.values()) and sum(self.weights.values()) > 0
        ):
            raise ConfigError(
                "--weights takes numbers of at least 0, one of them above: --weights a=0.3,b=0.7"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"--threshold must be above 0 and below 1, got {self.threshold}: 0.2 is usual")
        if self.max_members is not None and self.max_members < 1:
            raise ConfigError(f"--max-members must be at least 1, got {self.max_members}")
        if self.min_weight > 0 and (self.level2 or self.use in STACKERS):
            raise ConfigError(
                "level 2 needs all members, but --min-weight leaves some out: name them with --members"
            )

    def methods_for(self, n_members: int) -> tuple[str, ...]:
        """What is compared, uniform weights first."""
        if n_members == 1:
            return (UNIFORM,)
        asked = METHODS if self.methods is None else self.methods
        own = [name for name in (self.taken, *self.given) if name is not None and name not in STACKERS]
        return tuple(dict.fromkeys([UNIFORM, *asked, *own]))

    @property
    def taken(self) -> str | None:
        """The method that is taken, whatever it is worth; None: it is chosen."""
        return BY_HAND if self.weights is not None else self.use

    @property
    def given(self) -> dict[str, Mapping[str, float]]:
        """Weights that are not fitted, by the method that the report calls them."""
        by_hand = {} if self.weights is None else {BY_HAND: self.weights}
        return by_hand | {f"as {name}": weights for name, weights in (self.starts or {}).items()}

    def weights_of(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """`given` in the order of the members, with sum 1: (M,) float64 each.

        Raises:
            ConfigError: for a member that is not blended, or is not named.
        """
        if self.weights is not None:
            for name in self.weights:
                if name not in names:
                    raise unknown_name("member", name, names, listed_as="Blended")
            missing = [name for name in names if name not in self.weights]
            if missing:
                raise ConfigError(
                    f"--weights must name every member, and lacks {', '.join(missing)}: give it 0 to leave it out"
                )
        for label, start in (self.starts or {}).items():
            lost = [name for name, weight in start.items() if weight > 0 and name not in names]
            if lost:
                raise ConfigError(
                    f"--start {label} has {', '.join(lost)}, not among the members: blend it, too"
                )
        found = {}
        for method, weights in self.given.items():
            values = np.array([weights.get(name, 0.0) for name in names], dtype=np.float64)
            found[method] = values / values.sum()
        return found

    @property
    def remarks(self) -> list[str]:
        """What was given and not fitted, so that no fold is held out from it."""
        words = {"weights": self.weights, "threshold": self.threshold}
        by_hand = [word for word, value in words.items() if value is not None]
        by_hand += ["limits"] * (self.limits not in (None, "fit"))
        found = []
        if by_hand:
            found.append(
                f"given by hand: {', '.join(by_hand)}; pictures that these were chosen on flatter them"
            )
        if self.weights is not None and abs(sum(self.weights.values()) - 1) > 1e-6:
            found.append(f"weights by hand add up to {sum(self.weights.values()):g}: divided by that")
        found += [
            f"optimistic: the weights of {name} may have been fitted on the pictures that are scored"
            for name in self.starts or {}
        ]
        return found

    def stackers(self, n_members: int) -> tuple[str, ...]:
        """What of level 2 is compared.

        Raises:
            ConfigError: if there are more members than `max_members`.
        """
        asked = [*self.level2, *([self.use] if self.use in STACKERS else [])]
        if asked and self.max_members is not None and n_members > self.max_members:
            raise ConfigError(
                f"level 2 needs all members, and there are {n_members}, but --max-members allows {self.max_members}: "
                "name the best with --members"
            )
        return tuple(dict.fromkeys(STACKERS if ALL in asked else asked))
