"""Which variants wait for which others: what cannot be is named, and the rest put in order."""

from collections.abc import Collection, Mapping, Sequence

from imet_ray.errors import unknown_name
from imet_ray.specs import Variant


def problem_with_parents(
    variant: Variant, variants: Sequence[Variant], searched: Mapping[str, Collection[str]]
) -> str:
    """Why a variant cannot wait for those that it names; empty if it can, or names none.

    Args:
        searched: the settings that each variant searches.
    """
    known = {one.name: one for one in variants}
    for name in variant.after:
        if name not in known:
            return str(unknown_name("variant", name, known))
    if cycle := _cycle(variant.name, known):
        return f"variant {variant.name!r} would wait for itself: {' after '.join(cycle)}"
    for field in searched[variant.name]:
        if field in ("labels", "labels.add", "labels.add.source", "labels.add.strict"):
            return f"variant {variant.name!r} searches {field}: where its labels come from must be one place"
    if variant.parent is None:
        return ""
    parent = known[variant.parent]
    for one in (variant, parent):
        for field in ("weights", "architecture") if one is variant else ("architecture",):
            if field in searched[one.name]:
                return f"variant {one.name!r} searches its {field}, and {variant.name!r} begins from {parent.name!r}"
    if variant.architecture != parent.architecture:
        return (
            f"variant {variant.name!r} begins from {parent.name!r}, which is {parent.architecture}, not "
            f"{variant.architecture}: give both the same architecture"
        )
    return ""


def _cycle(name: str, known: Mapping[str, Variant]) -> list[str]:
    """The way from a variant over those that it waits for back to itself; empty if there is none."""
    ways, seen = [[name]], {name}
    while ways:
        way = ways.pop()
        for following in known[way[-1]].after if way[-1] in known else ():
            if following == name:
                return [*way, name]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def in_order(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, each behind all those that it waits for."""
    found: dict[str, Variant] = {}
    while len(found) < len(variants):
        ready = {
            one.name: one for one in variants if one.name not in found and set(one.after) <= found.keys()
        }
        assert ready, "a space has no cycle"
        found |= ready
    return list(found.values())
