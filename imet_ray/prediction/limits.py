"""Limits on the number of labels of a picture, and of its label groups, such as 0 to 3 cultures and 1 to 8 tags.

Any decoder's label sets keep to them in the order of probability: what is too many loses its least probable labels,
what is too few gets the most probable of those that it lacks. Groups come first. The picture's own limit then takes
nothing that a group needs, and gives nothing that a group forbids.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from imet_ray.errors import ConfigError, unknown_name
from imet_ray.specs import Frozen

RANGE = re.compile(r"(?P<least>[0-9]{0,6})\.\.(?P<most>[0-9]{0,6})")
PICTURE = ""  # the picture's own limit, where limits have names


class Range(Frozen):
    """How many labels there may be."""

    least: Annotated[int, Field(ge=0)] = 0
    most: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _some_number_fits(self) -> Self:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"a limit must rise, got {self}")
        return self

    def __str__(self) -> str:
        return f"{self.least}..{'' if self.most is None else self.most}"


class Limits(Frozen):
    """What label sets keep to."""

    picture: Range = Range()
    groups: dict[str, Range] = {}  # by the name of a label group
    group_of: Annotated[tuple[int, ...], Field(strict=False)] = ()  # (C,) a place in `groups`; -1: in none

    @classmethod
    def of(cls, ranges: Mapping[str, Range], label_groups: Sequence[str]) -> Self:
        """The limits of a data set.

        Args:
            ranges: by label group; that of `PICTURE` is the picture's own.
            label_groups: (C,) the group of each label; none where there are no groups.

        Raises:
            ConfigError: for a group that the labels lack, or limits that cannot all hold.
        """
        known = tuple(dict.fromkeys(label_groups))
        groups = {name: limit for name, limit in ranges.items() if name != PICTURE}
        picture = ranges.get(PICTURE, Range())
        for name in groups:
            if len(known) < 2:
                raise ConfigError(
                    f"--limits {name}={groups[name]} needs label groups: a column `group` in labels.csv, or names such "
                    f"as culture::french; --limits {groups[name]} is of the whole picture"
                )
            if name not in known:
                raise unknown_name("label group", name, known)
        for name, limit in ranges.items():
            labels = sum(name in (PICTURE, group) for group in label_groups)
            if label_groups and limit.least > labels:
                raise ConfigError(
                    f"--limits {name + '=' if name else ''}{limit} needs {limit.least} labels, and there are {labels}: "
                    "lower it"
                )
        needed = sum(limit.least for limit in groups.values())
        if picture.most is not None and needed > picture.most:
            raise ConfigError(
                f"--limits: the groups need {needed} labels, and a picture may have {picture.most}: raise that, or "
                "lower what a group needs"
            )
        closed = bool(known) and groups.keys() == set(known) and not any(map(_room, groups.values()))
        if picture.most == 0 or closed:
            raise ConfigError("--limits leaves a picture no label at all: raise one")
        places = {name: place for place, name in enumerate(groups)}
        return cls(
            picture=picture,
            groups=groups,
            group_of=tuple(places.get(name, -1) for name in label_groups) if groups else (),
        )

    def applied(self, probs: np.ndarray, decoded: np.ndarray, *, negatives: bool) -> np.ndarray:
        """Label sets that keep to the limits: (N, C) bool.

        Args:
            probs: (N, C) float, or margins.
            decoded: (N, C) bool.
            negatives: a set may be empty.

        Raises:
            ConfigError: if the limits are of other labels.
        """
        if self.groups and len(self.group_of) != probs.shape[1]:
            raise ConfigError(
                f"the limits are of {len(self.group_of)} labels, not {probs.shape[1]}: blend again"
            )
        decoded = decoded.copy()
        of = np.array(self.group_of, dtype=np.int64)
        needed = np.zeros(decoded.shape, dtype=bool)  # what the picture's limit must not take
        room = np.ones(decoded.shape, dtype=bool)  # what it may give
        least = self.picture.least if negatives else max(1, self.picture.least)
        ranged = self.picture.most is not None or least > 0
        for place, limit in enumerate(self.groups.values()):
            columns = np.flatnonzero(of == place)
            own, chosen = probs[:, columns], within(probs[:, columns], decoded[:, columns], limit)
            decoded[:, columns] = chosen
            if ranged and limit.least:
                needed[:, columns] = most_probable(own, chosen, limit.least)
            if ranged and limit.most is not None:
                free = np.maximum(limit.most - np.count_nonzero(chosen, axis=1), 0)
                room[:, columns] = most_probable(own, ~chosen, free)
        count = np.count_nonzero(decoded, axis=1)
        if self.picture.most is not None:
            rows = np.flatnonzero(count > self.picture.most)
            kept, chosen = needed[rows], decoded[rows]
            free = self.picture.most - np.count_nonzero(kept, axis=1)
            decoded[rows] = kept | most_probable(probs[rows], chosen & ~kept, free)
        rows = np.flatnonzero(count < least)
        chosen = decoded[rows]
        decoded[rows] = chosen | most_probable(probs[rows], room[rows] & ~chosen, least - count[rows])
        return decoded

    def __str__(self) -> str:
        """As `--limits` takes them."""
        named = [f"{name}={limit}" for name, limit in self.groups.items()]
        return ",".join([*([str(self.picture)] if self.picture != Range() else []), *named]) or "none"


def parse_limits(text: str) -> dict[str, Range]:
    """`1..10,culture=0..3` as ranges by label group; a range without a name is the picture's own.

    Raises:
        ConfigError: if it is not of that form.
    """
    found: dict[str, Range] = {}
    for part in text.split(","):
        name, equals, numbers = part.strip().rpartition("=")
        fits = RANGE.fullmatch(numbers.strip())
        least, most = (fits["least"], fits["most"]) if fits else ("", "")
        if not least + most or (equals and not name.strip()):
            raise ConfigError(
                f"--limits takes ranges such as 1..10 of a picture or culture=0..3 of a label group, got {part!r}"
            )
        if most and int(most) < int(least or 0):
            raise ConfigError(f"--limits must rise, got {part!r}: write {most}..{least}")
        if name.strip() in found:
            raise ConfigError(f"--limits names {name.strip() or 'the picture'} twice: once is enough")
        found[name.strip()] = Range(least=int(least or 0), most=int(most) if most else None)
    return found


def within(probs: np.ndarray, decoded: np.ndarray, limit: Range) -> np.ndarray:
    """The label sets of one group, as many as its limit allows: (N, G) bool."""
    count = np.count_nonzero(decoded, axis=1)
    decoded = decoded.copy()
    if limit.most is not None:
        rows = np.flatnonzero(count > limit.most)
        decoded[rows] = most_probable(probs[rows], decoded[rows], limit.most)
    rows = np.flatnonzero(count < limit.least)
    decoded[rows] |= most_probable(probs[rows], ~decoded[rows], limit.least - count[rows])
    return decoded


def most_probable(probs: np.ndarray, among: np.ndarray, k: np.ndarray | int) -> np.ndarray:
    """For each picture the k most probable of some labels, or all of them; the first of equals: (N, C) bool.

    Args:
        among: (N, C) bool.
        k: (N,) int, or one number for all.
    """
    key = np.where(among, -probs.astype(np.float32), np.float32(np.inf))
    order = np.argsort(key, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    return np.asarray(among & (rank < np.reshape(k, (-1, 1))))


def _room(limit: Range) -> bool:
    return limit.most is None or limit.most > 0
