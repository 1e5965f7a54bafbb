"""Settings inside settings, by dotted names: `augmentation.blur`, `augmentation.erase.area.1`.

A dotted name is one number of a setting that is a mapping or a list. What the settings mean is said where they stand.
"""

from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from imet_ray.errors import SettingError, unknown_key


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that have dotted names."""
    return {name: value for name, value in settings.items() if "." in name}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The first settings with the second over them: a whole setting replaces all that is said of its parts.

    >>> merged({"augmentation": {"blur": 0.1}, "augmentation.noise": 0.2}, {"augmentation": "light"})
    {'augmentation': 'light'}
    """
    return {k: v for k, v in first.items() if not any(k.startswith(f"{s}.") for s in second)} | dict(second)


def with_parts(settings: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, as nested dicts and lists, with those replaced that dotted names give.

    >>> with_parts({"augmentation": {"blur": 0.1, "noise": 0.2}}, {"augmentation.blur": 0.3})
    {'augmentation': {'blur': 0.3, 'noise': 0.2}}

    Raises:
        SettingError: naming what is a part of something that has none.
    """
    found: Any = dict(settings)
    for name, value in parts.items():
        found = _replaced(found, name, name.split("."), value)
    return dict(found)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their dotted names; lists stay whole.

    >>> flat({"lr": 0.1, "augmentation": {"erase": {"area": [0.02, 0.4]}}})
    {'lr': 0.1, 'augmentation.erase.area': [0.02, 0.4]}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in flat(value).items()}
        else:
            found[name] = value
    return found


def value_at(settings: BaseModel, name: str) -> Any:
    """The value of a setting that may be inside others; None where what it is a part of is off, or has no parts."""
    here: Any = settings
    for part in name.split("."):
        here = here[int(part)] if isinstance(here, tuple) else getattr(here, part, None)
    return here


def type_at(model: type[BaseModel], name: str) -> Any:
    """The annotation of a setting that may be inside others.

    Raises:
        SettingError: if there is none of that name.
    """
    here: Any = model
    for part in name.split("."):
        inner = model_in(here)
        items = next((get_args(one) for one in _members(here) if get_origin(one) is tuple), ())
        if inner is not None and part in inner.model_fields:
            here = inner.model_fields[part].annotation
        elif part.isascii() and part.isdigit() and int(part) < len(items):
            here = items[int(part)]
        else:
            known = names_in(inner) if inner is not None else [str(i) for i in range(len(items))]
            raise SettingError(name, unknown_key(part if known else name, known or names_in(model)))
    return here


def names_in(model: type[BaseModel]) -> list[str]:
    """The settings of a model, as people write them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a setting of this annotation may be."""
    for one in _members(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _members(annotation: Any) -> list[Any]:
    """What a union is made of, without remarks."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (None, tuple, list, dict) or not get_args(annotation):
        return [annotation]
    return [member for one in get_args(annotation) for member in _members(one)]


def _replaced(whole: Any, name: str, path: list[str], value: Any) -> Any:
    """`whole` with the part at `path`, the end of `name`, replaced."""
    if not path:
        return value
    part, *rest = path
    if whole is None:  # off, as long as nothing is said of it
        whole = {}
    if isinstance(whole, Mapping):
        return {**whole, part: _replaced(whole.get(part), name, rest, value)}
    if isinstance(whole, list | tuple) and part.isascii() and part.isdigit() and int(part) < len(whole):
        i = int(part)
        return [*whole[:i], _replaced(whole[i], name, rest, value), *whole[i + 1 :]]
    above = name.removesuffix(f".{'.'.join(path)}")
    raise SettingError(
        name,
        f"{name} is a part of {above}, and {above} is {whole!r}: write {above} as a mapping, "
        f"{above}: {{{part}: ...}}, or leave {name} out",
    )
