"""Search spaces as YAML files: one per experiment, read into `SearchSpace`.

A file names variants (a `grid`, a list, or both, over the settings of `base`), the ranges that Optuna searches
and the budget. Each mistake is reported with file, line, key and the nearest valid key.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from imet_ray.dotted_names import merged, model_in, names_in, type_at, value_at
from imet_ray.errors import ConfigError, SettingError, did_you_mean, unknown_key
from imet_ray.search_space import AUTO, First, Range, SearchSpace, SpaceSettings
from imet_ray.specs import (
    WEIGHTS,
    Frozen,
    Variant,
)
from imet_ray.units import user_path
from imet_ray.variant_order import problem_with_parents

Model = TypeVar("Model", bound=BaseModel)
Check = Callable[[Variant], None]  # raises SettingError
Place = tuple[str | int, ...]  # where a value stands in the YAML tree

COMMAND_LINE = ""  # the first part of the place of what does not stand in the file
FIRST = "first"  # beside the hparams in `search:`
KINDS = {  # what pydantic's errors say was wanted
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "settings (key: value)",
    "model_type": "settings (key: value)",
}
NO_SETTING = "name tells variants apart, and is no setting: leave it out"
NAMES = "letters, digits, '.', '_', '+' and '-', a letter or digit first, and 80 of them at most"


class _Search(Frozen):
    """What `search:` says beside the hparams."""

    first: First


class _File(SpaceSettings):
    """The YAML file as it is written."""

    name: str | None = None
    base: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    variants: list[dict[str, Any]] = []
    search: dict[str, Any] = {}


def read_space(path: Path, overrides: dict[str, Any] | None = None, *, check: Check) -> SearchSpace:
    """Read a search space.

    Args:
        path: the YAML file.
        overrides: settings that replace the file's, such as `{"trials_per_variant": 4, "epochs": 2}`; those that
            are a variant's settings hold for all variants.
        check: refuses a variant that could not be trained; `imet_ray.training.recipe.check_recipe`.

    Raises:
        ConfigError: naming file, line and key of each mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        known = sorted(str(found) for found in path.parent.glob("*.yml"))
        raise ConfigError(
            f"no search space at {path}: choose one of {', '.join(known) or 'search_spaces/*.yml'}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    if tree is None or not isinstance(content, dict):
        raise ConfigError(f"{path}: expected settings such as 'variants:', got {content!r}")
    reader = _Reader(path, tree, check)
    reader.refuse_repeated_keys(tree)
    return reader.space(content, overrides or {})


def settings_of_all(settings: dict[str, Any]) -> dict[str, Any]:
    """What `--set` says of all variants of a space, as `read_space` takes it.

    Raises:
        ConfigError: for what is no setting of a variant.
    """
    for key in settings:
        if key == "name":
            raise ConfigError(f"--set: {NO_SETTING}")
        if key.partition(".")[0] not in Variant.model_fields:
            raise ConfigError(f"--set: {unknown_key(key, list(Variant.model_fields))}")
    return settings


class _Reader:
    """Turns the file's content into models; knows the line of each value for the errors."""

    def __init__(self, path: Path, tree: yaml.Node, check: Check) -> None:
        self.path, self.tree, self.check = path, tree, check

    def space(self, content: dict[str, Any], overrides: dict[str, Any]) -> SearchSpace:
        of_variants = {k: v for k, v in overrides.items() if k.partition(".")[0] in Variant.model_fields}
        of_file = {k: v for k, v in overrides.items() if k not in of_variants}
        whole_places: dict[str, Place] = {key: (key,) for key in content} | _on_command_line(of_file)
        file = self.validate(_File, content | of_file, (), whole_places)
        variants, ranges, auto = [], {}, []
        first: dict[str, First] = {}
        places: dict[str, Place] = {}  # of what each variant says of its weights
        for settings, in_file in self.settings(file):
            origin = merged(in_file, _on_command_line(of_variants))
            wished = file.search | settings.pop("search", {})
            said = self.first(wished)
            search = self.ranges(wished)
            settings = merged(settings, of_variants)
            search = {key: wanted for key, wanted in search.items() if not _fixed(key, of_variants)}
            if isinstance(weights := settings.get("weights"), str) and weights not in WEIGHTS:
                settings["weights"] = str(user_path(weights).resolve())  # workers run elsewhere
            settings = _with_resolved_labels(settings)
            finds = settings.get("lr") == AUTO
            if finds:
                del settings["lr"]  # found before the first trial
                if "lr" in search:
                    raise self.error(("search", "lr"), "lr is auto, and searched: choose one of them")
            variant = self.variant(settings, origin)
            if finds:
                auto.append(variant.name)
            if variant.name in ranges:
                raise self.error(("variants",), f"two variants are named {variant.name!r}")
            for key, wanted in search.items():
                for value in wanted.corners():
                    self.variant(merged(settings, {key: value}), origin | {key: ("search", key)})
            if said is not None:
                first[variant.name] = said
            if said == "own":
                self.refuse_own_outside(variant, search, origin)
            variants.append(variant)
            ranges[variant.name] = search
            places[variant.name] = origin.get(
                "labels" if variant.parent is None else "weights", origin.get("", ())
            )
        if not variants:
            raise self.error((), "no variants: give `grid:`, `variants:` or both")
        for variant in variants:
            if problem := problem_with_parents(variant, variants, ranges):
                raise self.error(places[variant.name], problem)
        whole = {key: getattr(file, key) for key in SpaceSettings.model_fields}
        name = file.name or self.path.stem
        whole |= {"name": name, "variants": variants, "ranges": ranges, "auto_lr": auto, "first": first}
        return self.validate(SearchSpace, whole, (), whole_places)

    def variant(self, settings: dict[str, Any], origin: dict[str, Place]) -> Variant:
        try:
            variant = self.validate(Variant, settings, (), origin)
            self.check(variant)
        except SettingError as error:
            raise self.error(_place(tuple(error.field.split(".")), origin), str(error)) from None
        return variant

    def settings(self, file: _File) -> list[tuple[dict[str, Any], dict[str, Place]]]:
        """Each variant's settings, and where each of them stands in the file."""
        found: list[tuple[dict[str, Any], dict[str, Place]]] = []
        base_origin: dict[str, Place] = {key: ("base", key) for key in file.base}
        if file.grid:
            axes = [[(key, i, v) for i, v in enumerate(vs)] for key, vs in file.grid.items()]
            for point in itertools.product(*axes):
                name = "-".join(_in_a_name(key, i, value) for key, i, value in point)
                settings = {"name": name} | merged(file.base, {key: value for key, _, value in point})
                places: dict[str, Place] = {key: ("grid", key, i) for key, i, _ in point}
                found.append((settings, base_origin | places))
        for i, entry in enumerate(file.variants):
            places = {key: ("variants", i, key) for key in entry}
            found.append((merged(file.base, entry), base_origin | places | {"": ("variants", i)}))
        return found

    def first(self, search: dict[str, Any]) -> First | None:
        """Take out what `search:` says of the first set; None: nothing."""
        if FIRST not in search:
            return None
        return self.validate(_Search, {FIRST: search.pop(FIRST)}, ("search",)).first

    def refuse_own_outside(
        self, variant: Variant, search: dict[str, Range], origin: dict[str, Place]
    ) -> None:
        """Where a file says `first: own`, the own values must be among those that are searched."""
        for key, wanted in search.items():
            value = value_at(variant, key)
            if value is not None and not wanted.holds(value):
                raise self.error(
                    origin.get(key, ("search", key)),
                    f"first: own, and {variant.name}'s own {key}={value} is not in {wanted}: widen the range, or leave "
                    "`first: own` out",
                )

    def ranges(self, search: dict[str, Any]) -> dict[str, Range]:
        ranges = {}
        for key, value in search.items():
            where = ("search", key)
            if key == "name":
                raise self.error(where, NO_SETTING)
            try:
                kind = type_at(Variant, key)
            except SettingError as error:
                raise self.error(where, str(error)) from None
            if parts := [other for other in search if other.startswith(f"{key}.")]:
                raise self.error(
                    where, f"{key} is searched as a whole, and {parts[0]} is a part of it: search one of them"
                )
            given = {"choices": value} if isinstance(value, list) else value
            if not isinstance(given, dict):
                raise self.error(where, f"{key} must be a list or {{low: , high: }}, got {value!r}")
            wanted = self.validate(Range, given, where)
            low, high = wanted.low, wanted.high
            whole = is_whole(kind)
            if whole and low is not None and high is not None:
                if any(number != int(number) for number in (low, high, wanted.step or 1)):
                    raise self.error(where, f"{key} is a whole number, got {value!r}")
                wanted = wanted.model_copy(update={"low": int(low), "high": int(high)})
            ranges[key] = wanted
        return ranges

    def validate(
        self, model: type[Model], given: Any, where: Place, origin: dict[str, Place] | None = None
    ) -> Model:
        try:
            return model.model_validate(given)
        except ValidationError as error:
            problems = error.errors()
            lines = []
            for problem in [p for p in problems if not _told_by_another(p, problems)] or problems:
                loc = _named(problem)
                place = _place(loc, origin) if origin is not None else where + loc
                kinds = [p["type"] for p in problems if _named(p) == loc]
                lines.append(f"{self.at(place)}{_describe(problem, loc, model, kinds)}")
            raise ConfigError("\n".join(dict.fromkeys(lines))) from None

    def error(self, where: Place, text: str) -> ConfigError:
        return ConfigError(f"{self.at(where)}{text}")

    def at(self, where: Place) -> str:
        """`file line n: ` of the deepest part of `where` that stands in the file, if it is not the command line's."""
        if where[:1] == (COMMAND_LINE,):
            return "command line: "
        node: yaml.Node = self.tree
        line = node.start_mark.line
        for part in where:
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == str(part):
                        node, line = value, key.start_mark.line
                        break
                else:
                    break
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
            else:
                break
        return f"{self.path} line {line + 1}: "

    def refuse_repeated_keys(self, node: yaml.Node) -> None:
        """YAML lets a later key silently replace an earlier one; we do not."""
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"{self.path} line {line}: {key.value!r} stands there twice")
                seen.add(key.value)
                self.refuse_repeated_keys(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.refuse_repeated_keys(item)


def _with_resolved_labels(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the whole path of a file that pseudo-labels come from; what is wrong is said elsewhere."""
    labels = settings.get("labels")
    if not (isinstance(labels, dict) and isinstance(added := labels.get("add"), dict)):
        return settings
    if not str(added.get("from")).endswith(".npz"):
        return settings
    path = user_path(str(added["from"])).resolve()
    return settings | {"labels": labels | {"add": added | {"from": str(path)}}}


def _on_command_line(settings: Iterable[str]) -> dict[str, Place]:
    return {key: (COMMAND_LINE, key) for key in settings}


def _fixed(name: str, given: dict[str, Any]) -> bool:
    """True if the setting, what it is a part of, or a part of it is among those given."""
    return any(f"{one}.".startswith(f"{name}.") or f"{name}.".startswith(f"{one}.") for one in given)


def _in_a_name(key: str, i: int, value: Any) -> str:
    """What a grid's value is called in the name of a variant: itself; of a mapping or a list the number."""
    return f"{key}{i + 1}" if isinstance(value, dict | list) else str(value)


def _place(loc: Place, origin: dict[str, Place]) -> Place:
    """Where a setting stands: itself, else what it is a part of, else a part of it, else its variant."""
    for n in range(len(loc), 0, -1):
        name = ".".join(map(str, loc[:n]))
        if name in origin:
            return origin[name] + loc[n:]
        if inside := [one for one in origin if one.startswith(f"{name}.")]:
            return origin[inside[0]]
    return origin.get("", ())


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for what is wrong with settings that stand in no file."""
    problems = error.errors()
    loc = _named(problems[0])
    return _describe(problems[0], loc, model, [p["type"] for p in problems if _named(p) == loc])


def _told_by_another(problem: Any, problems: Iterable[Any]) -> bool:
    """True if another problem says it better: that a key is misspelt, or what is wrong with the settings."""
    if problem["type"] == "missing":
        *where, key = problem["loc"]
        beside = [
            p["loc"][-1] for p in problems if p["type"] == "extra_forbidden" and [*p["loc"][:-1]] == where
        ]
        return any(where or did_you_mean(str(unknown), [key]) for unknown in beside)
    # where a name or settings may stand
    return bool(problem["type"] == "string_type" and isinstance(problem["input"], dict))


def _named(problem: Any) -> Place:
    """Where one of pydantic's errors lies, by the names of settings."""
    return tuple(part for part in problem["loc"] if not _is_type_name(part))


def is_whole(annotation: Any) -> bool:
    """True for a field that takes whole numbers, and no others; perhaps None, or words."""
    inside = get_args(annotation)
    return annotation is int or (bool(inside) and float not in inside and any(map(is_whole, inside)))


def _describe(problem: Any, loc: Place, model: type[BaseModel], kinds: Sequence[str]) -> str:
    """One line for one of pydantic's errors; `kinds`: the types of all errors at this place."""
    key = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        fields: Any = model.model_fields
        known = names_in(model)
        for part in loc[:-1]:  # an unknown key of a nested model: name that model's keys
            inner = model_in(fields[part].annotation) if part in fields else None
            if inner is not None:
                fields, known = inner.model_fields, names_in(inner)
        return unknown_key(str(loc[-1]), known)
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    got = problem["input"]
    if "[key]" in problem["loc"]:
        return f"a key must be text, got {got!r}"
    if problem["type"] == "literal_error" and isinstance(got, str):
        expected = problem["ctx"]["expected"]
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        return f"{key} must be one of {expected}, got {got!r}. {did_you_mean(got, choices)}".rstrip()
    if problem["type"] in KINDS and all(kind in KINDS for kind in kinds):
        allowed = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds))
        return f"{key} must be {allowed}, got {got!r}{_as_number(got)}"
    if problem["type"] == "string_pattern_mismatch":  # names alone have a pattern
        return f"{key} takes {NAMES}, got {got!r}"
    _, should, rule = problem["msg"].partition(" should ")  # "Tuple should have at least 1 item after ..."
    rule = rule.partition(" after ")[0] if should else f"be right: {problem['msg']}"
    return f"{key} must {rule}, got {got!r}{_as_number(got)}"


def _as_number(got: object) -> str:
    """The hint for 1e-4, which YAML 1.1 takes for a word, and for 0,001."""
    if not isinstance(got, str):
        return ""
    try:
        number = float(got.replace(",", "."))
        return f": write {number!r}" if "e" not in repr(number) else f": write {number:.6e}"
    except ValueError:
        return ""


def _is_type_name(part: str | int) -> bool:
    """Pydantic puts the names of a union's members into the path of an error."""
    return isinstance(part, str) and (
        part[:1].isupper()  # of a model
        or "[" in part
        or part.startswith("constrained-")
        or part in {"float", "int", "str", "bool", "none"}
    )
