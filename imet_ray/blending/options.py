"""What may be asked of a blend: names that exist, limits that can be, decoders that the data allow."""

from collections.abc import Sequence

from imet_ray.blending.fit_jobs import EXPECTED, GROUPS, THRESHOLD, known_methods
from imet_ray.blending.level2 import STACKS
from imet_ray.errors import ConfigError, unknown_name

DECODERS = (THRESHOLD, GROUPS, EXPECTED)


def check_request(
    methods: Sequence[str] | None,
    use: str | None,
    decoders: Sequence[str] | None,
    level2: str | None,
    min_weight: float,
    max_members: int | None,
) -> None:
    """Refuse names that nobody knows and limits that cannot be; arguments as of `evaluate`.

    Raises:
        ConfigError: naming what it may be.
    """
    for kind, names, known in (
        ("method", [*(methods or ()), *([use] if use is not None else [])], known_methods()),
        ("decoder", decoders or (), DECODERS),
        ("level 2", [level2] if level2 is not None else [], tuple(STACKS)),
    ):
        for name in names:
            if name not in known:
                raise unknown_name(kind, name, known)
    if not 0 <= min_weight <= 1:
        raise ConfigError(
            f"--min-weight must be in 0..1, got {min_weight}: 0.02 leaves out members below 2 %"
        )
    if max_members is not None and max_members < 1:
        raise ConfigError(f"--max-members must be at least 1, got {max_members}")


def possible_decoders(decoders: Sequence[str] | None, grouped: bool, margins: bool) -> tuple[str, ...]:
    """Those that are asked for, or all that these data allow.

    Args:
        grouped: the labels have groups.
        margins: the members' thresholds are subtracted already.

    Raises:
        ConfigError: for one that cannot be had, with the reason.
    """
    possible = [d for d in DECODERS if (d != GROUPS or grouped) and (d != EXPECTED or not margins)]
    for decoder in decoders or ():
        if decoder not in possible:
            reason = (
                "labels.csv needs a column `group` with two groups, or names such as culture::french"
                if decoder == GROUPS
                else "the members' thresholds are subtracted already: it needs probabilities"
            )
            raise ConfigError(f"the decoder {decoder!r} cannot be had: {reason}")
    return tuple(possible if decoders is None else dict.fromkeys(decoders))
