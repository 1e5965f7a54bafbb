"""What is wrong with a setting, in one line: pydantic's errors in the words of this project."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

Place = tuple[str | int, ...]  # where a value stands in the YAML tree


def unknown_key(key: str, known: Sequence[str] | Any) -> str:
    """`unknown key 'x': did you mean 'y'?`"""
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown key {key!r}: {hint}"


def describe(problem: Any, loc: Place, model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors."""
    key = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        fields: Any = model.model_fields
        for part in loc[:-1]:  # an unknown key of a nested model: name that model's keys
            inner = fields[part].annotation if part in fields else None
            for candidate in (inner, *getattr(inner, "__args__", ())):
                if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                    fields = candidate.model_fields
        return unknown_key(str(loc[-1]), list(fields))
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    got = problem["input"]
    if problem["type"] == "literal_error" and isinstance(got, str):
        expected = problem["ctx"]["expected"]
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        nearest = difflib.get_close_matches(got, choices, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        return f"{key} must be one of {expected}, got {got!r}. {hint}".rstrip()
    rule = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{key} must be {rule}, got {got!r}{_as_number(got)}"


def _as_number(got: object) -> str:
    """The hint for 1e-4, which YAML 1.1 takes for a word."""
    if not isinstance(got, str):
        return ""
    try:
        return f": write {float(got)!r}" if "e" not in repr(float(got)) else f": write {float(got):.6e}"
    except ValueError:
        return ""


def is_type_name(part: str | int) -> bool:
    """Pydantic puts the names of a union's members into the path of an error."""
    return isinstance(part, str) and (
        "[" in part or part.startswith("constrained-") or part in {"float", "int", "str", "bool", "none"}
    )
