"""Errors that users see: one line each, with the rule, the value and the way out.

Everything raised on purpose descends from `ImetError`; the command lines print its text and exit with 1.
Faults of the set-up (`ConfigError`, `DataError`, `StoreError`) stop a sweep at once; a `TrialError` fails
one trial and the sweep goes on.
"""

import difflib
from collections.abc import Iterable


class ImetError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(ImetError):
    """A setting that cannot be meant: an unknown key, an impossible value."""


class SettingError(ConfigError):
    """A setting of a variant that cannot be meant; `field` is its name."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class DataError(ImetError):
    """Data that must not be trained on, or arrays that do not belong together."""


class StoreError(ImetError):
    """An artefact that cannot be written or read: full disk, missing or altered file."""


class TrialError(ImetError):
    """One trial failed for its own reasons (NaN loss, out of memory); others may go on."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, listed_as: str = "Known") -> ConfigError:
    """The error for a name that no registry knows, with the nearest known one.

    Args:
        kind: what is named, as the user would say it ("loss", "architecture").
        name: what the user wrote.
        known: all valid names.
        listed_as: what the known ones are.
    """
    names = sorted(known)
    hint = did_you_mean(name, names)
    listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return ConfigError(f"unknown {kind} {name!r}: {hint + ' ' if hint else ''}{listed_as}: {listed}")


def unknown_key(key: str, known: Iterable[str]) -> str:
    """`unknown key 'x': did you mean 'y'?`"""
    hint = did_you_mean(key, known) or f"known: {', '.join(known)}"
    return f"unknown key {key!r}: {hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question for the nearest known name; empty if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else ""


def telling_line(error: BaseException) -> str:
    """The line of an error that says what happened: the first, or the last one where the first only announces it.

    Announced are the tracebacks of other processes, and lists (`Error(s) in loading state_dict for X:`).
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announced = lines[0].endswith(":") or any("Traceback (most recent call last)" in line for line in lines)
    return lines[-1] if announced else lines[0]
