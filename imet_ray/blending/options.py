"""What a person may ask of a blend, checked before any data are read."""

from dataclasses import dataclass

from imet_ray.blending.methods import METHODS, UNIFORM
from imet_ray.blending.stacking import ALL, STACKERS
from imet_ray.errors import ConfigError, unknown_name
from imet_ray.prediction.decode import DECODERS
from imet_ray.prediction.pooling import Scale


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
        return tuple(dict.fromkeys([UNIFORM, *asked, *([self.use] if self.use in METHODS else [])]))

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
