"""Search spaces: one YAML file per experiment, read into frozen models.

A file names variants (a `grid`, a list, or both, over the settings of `base`), the ranges that Optuna searches
and the budget. Each mistake is reported with file, line, key and the nearest valid key. Running the search is
`imet_ray.cluster`.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from imet_ray.dotted_names import merged, model_in, type_at, value_at
from imet_ray.errors import ConfigError, SettingError, did_you_mean, unknown_key
from imet_ray.specs import (
    WEIGHTS,
    BatchNorm,
    Frozen,
    Hparam,
    SoupName,
    TrialSpec,
    Variant,
    default_pack_short_side,
)
from imet_ray.units import user_path
from imet_ray.variant_order import problem_with_parents

Model = TypeVar("Model", bound=BaseModel)
Check = Callable[[Variant], None]  # raises SettingError
Place = tuple[str | int, ...]  # where a value stands in the YAML tree
First = Literal["own", "drawn"]

FIRST = "first"  # beside the hparams in `search:`

AUTO = "auto"  # the value of lr: the learning-rate finder's


class Range(Frozen):
    """What Optuna picks one hparam from: `choices`, or the numbers from `low` to `high`."""

    choices: Annotated[tuple[Hparam, ...], Field(strict=False)] | None = None
    low: float | None = None
    high: float | None = None
    step: Annotated[float, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None:
                raise ValueError("a range is a list of choices, or low and high")
        elif self.low is None or self.high is None or self.low > self.high:
            raise ValueError("a range needs low and high with low <= high, or a list of choices")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log range needs low > 0 and no step")
        return self

    def __str__(self) -> str:
        if self.choices is not None:
            return str(list(self.choices))
        step = f" in steps of {self.step:g}" if self.step is not None else ""
        return f"{self.low:g}..{self.high:g}{' (log)' if self.log else ''}{step}"

    def corners(self) -> tuple[Hparam, ...]:
        """The values that must be valid for all of the range to be."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def holds(self, value: object) -> bool:
        """True if this value may be picked."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return self.low <= value <= self.high and abs(steps - round(steps)) < 1e-8


class Asha(Frozen):
    """Early stopping of searching trials (Li et al. 2020): after `grace_epochs`, then each `factor` times as late."""

    grace_epochs: Annotated[int, Field(ge=1)] = 1
    factor: Annotated[int, Field(ge=2)] = 3


class SoupOf(Frozen):
    """The best sets of hparams are all trained on all folds, and on each fold their weights are mixed."""

    sets: Annotated[int, Field(ge=2, le=20)] = 3
    how: SoupName = "greedy"


class Resources(Frozen):
    """What one trial holds while it runs; where several workers train it together, each of them."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"  # auto: one, where there are any
    loader_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    workers_per_trial: Annotated[int, Field(ge=1)] = 1  # together, batch_size pictures each at a time
    batch_norm: BatchNorm = "local"  # sync: statistics over all workers; on GPUs only

    @model_validator(mode="after")
    def _one_gpu_per_worker(self) -> Self:
        gpus = self.gpus_per_trial
        if gpus != "auto" and gpus > 1:
            raise ValueError(
                f"gpus_per_trial is one GPU at most, or a fraction, got {gpus:g}: workers_per_trial trains on several"
            )
        if self.batch_norm == "sync" and (self.workers_per_trial == 1 or gpus == 0):
            raise ValueError("batch_norm 'sync' is for several workers_per_trial, on GPUs: leave it out")
        return self


class _Settings(Frozen):
    """What a file says of all variants together."""

    data: str = "demo"
    n_folds: Annotated[int, Field(ge=2)] = 5
    seed: int = 0
    trials_per_variant: Annotated[int, Field(ge=1)] = 1
    search_folds: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (0,)
    pack_short_side: Annotated[int, Field(ge=16)] | None = None  # None: from each image_size
    metric: str = "f2"  # that trials are judged by
    level2: Annotated[
        tuple[str, ...], Field(strict=False)
    ] = ()  # stackers that the sweep's blend judges, or "all"
    asha: Asha | None = None
    soup_of: SoupOf | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _folds_exist(self) -> Self:
        for fold in self.search_folds:
            if not 0 <= fold < self.n_folds:
                raise ValueError(
                    f"search_folds must be below n_folds={self.n_folds}, got {fold}: "
                    f"choose 0..{self.n_folds - 1}"
                )
        if len(set(self.search_folds)) != len(self.search_folds):
            raise ValueError("search_folds names a fold twice")
        return self


class SearchSpace(_Settings):
    """A whole experiment: what is tried, on what data, with what budget."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,79}$")]
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, strict=False)]
    ranges: dict[str, dict[str, Range]]  # variant name -> hparam -> range
    # variant name -> what its first set is, where the file says so; else its own values
    first: dict[str, First] = {}
    auto_lr: Annotated[tuple[str, ...], Field(strict=False)] = ()  # variants whose rate the finder gives

    def with_rates(self, rates: Mapping[str, float]) -> Self:
        """The space with these variants' learning rates in place."""
        variants = [
            one.with_hparams({"lr": rates[one.name]}) if one.name in rates else one for one in self.variants
        ]
        return self.model_copy(update={"variants": tuple(variants)})

    def trial(
        self,
        variant: Variant,
        hparams: dict[str, Hparam],
        fold: int,
        *,
        digests: tuple[str, str],
        after: dict[str, str],
    ) -> TrialSpec:
        """A trial of this experiment.

        Args:
            digests: of the data and of the folds.
            after: the trials that it needs, by variant.
        """
        image_size = variant.with_hparams(hparams).image_size
        return TrialSpec(
            variant=variant,
            hparams=hparams,
            fold=fold,
            n_folds=self.n_folds,
            seed=self.seed,
            data_digest=digests[0],
            folds_digest=digests[1],
            pack_short_side=self.pack_short_side or default_pack_short_side(image_size),
            metric=self.metric,
            workers=self.resources.workers_per_trial,
            batch_norm=self.resources.batch_norm,
            after=after,
        )

    def check_fold(self, fold: int) -> None:
        """Refuse a fold that is none.

        Raises:
            ConfigError: naming those that there are.
        """
        if not 0 <= fold < self.n_folds:
            raise ConfigError(
                f"fold must be below n_folds={self.n_folds}, got {fold}: choose 0..{self.n_folds - 1}"
            )

    @property
    def after_search(self) -> int:
        """Trials of a variant after its search, if none fails: of its best set, or of those to be mixed, and soups."""
        other = self.n_folds - len(self.search_folds)
        return other if self.soup_of is None else self.soup_of.sets * other + self.n_folds

    @model_validator(mode="after")
    def _sets_can_be_mixed(self) -> Self:
        if self.soup_of is None:
            return self
        if self.soup_of.sets > self.trials_per_variant:
            raise ValueError(
                f"soup_of mixes {self.soup_of.sets} sets of hparams of a variant: raise "
                f"trials_per_variant={self.trials_per_variant}, or leave soup_of out"
            )
        for variant in self.variants:
            ranges = self.ranges.get(variant.name, {})
            for field in sorted(ranges.keys() & {"architecture", "image_size", "weights"}):
                raise ValueError(
                    f"soup_of mixes weights of one architecture, size and start, and {variant.name!r} searches "
                    f"its {field}"
                )
            keeps = ranges["keep"].corners() if "keep" in ranges else (variant.keep,)
            if "cycles" in keeps:
                raise ValueError(
                    f"soup_of mixes single models, and {variant.name!r} keeps several: set another keep than 'cycles'"
                )
        return self


class _Search(Frozen):
    """What `search:` says beside the hparams."""

    first: First


class _File(_Settings):
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
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
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
        if key == "name" or key.partition(".")[0] not in Variant.model_fields:
            raise ConfigError(f"--set: {unknown_key(key, list(Variant.model_fields))}")
    return settings


class _Reader:
    """Turns the file's content into models; knows the line of each value for the errors."""

    def __init__(self, path: Path, tree: yaml.Node, check: Check) -> None:
        self.path, self.tree, self.check = path, tree, check

    def space(self, content: dict[str, Any], overrides: dict[str, Any]) -> SearchSpace:
        of_variants = {k: v for k, v in overrides.items() if k.partition(".")[0] in Variant.model_fields}
        of_file = {k: v for k, v in overrides.items() if k not in of_variants}
        file = self.validate(_File, content | of_file, ())
        variants, ranges, auto = [], {}, []
        first: dict[str, First] = {}
        places: dict[str, Place] = {}  # of what each variant says of its weights
        for settings, origin in self.settings(file):
            wished = file.search | settings.pop("search", {})
            said = self.first(wished)
            search = self.ranges(wished)
            settings = merged(settings, of_variants)
            search = {key: wanted for key, wanted in search.items() if not _fixed(key, of_variants)}
            if isinstance(weights := settings.get("weights"), str) and weights not in WEIGHTS:
                settings["weights"] = str(user_path(weights).resolve())  # workers run elsewhere
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
            places[variant.name] = origin.get("weights", origin.get("", ()))
        if not variants:
            raise self.error((), "no variants: give `grid:`, `variants:` or both")
        for variant in variants:
            if problem := problem_with_parents(variant, variants, ranges):
                raise self.error(places[variant.name], problem)
        whole = {key: getattr(file, key) for key in _Settings.model_fields}
        name = file.name or self.path.stem
        whole |= {"name": name, "variants": variants, "ranges": ranges, "auto_lr": auto, "first": first}
        return self.validate(SearchSpace, whole, ())

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
                raise self.error(where, unknown_key(key, Variant.model_fields))
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
            # where a name or settings may stand, what is wrong with the settings is enough
            told = [p for p in problems if not (p["type"] == "string_type" and isinstance(p["input"], dict))]
            lines = []
            for problem in told or problems:
                loc = _named(problem)
                place = _place(loc, origin) if origin is not None else where + loc
                lines.append(f"{self.at(place)}{_describe(problem, loc, model)}")
            raise ConfigError("\n".join(dict.fromkeys(lines))) from None

    def error(self, where: Place, text: str) -> ConfigError:
        return ConfigError(f"{self.at(where)}{text}")

    def at(self, where: Place) -> str:
        """`file line n: ` of the deepest part of `where` that stands in the file."""
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
    problem = error.errors()[0]
    return _describe(problem, _named(problem), model)


def _named(problem: Any) -> Place:
    """Where one of pydantic's errors lies, by the names of settings."""
    return tuple(part for part in problem["loc"] if not _is_type_name(part))


def is_whole(annotation: Any) -> bool:
    """True for a field that takes whole numbers, and no others; perhaps None, or words."""
    inside = get_args(annotation)
    return annotation is int or (bool(inside) and float not in inside and any(map(is_whole, inside)))


def _describe(problem: Any, loc: Place, model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors."""
    key = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        fields: Any = model.model_fields
        for part in loc[:-1]:  # an unknown key of a nested model: name that model's keys
            inner = model_in(fields[part].annotation) if part in fields else None
            fields = inner.model_fields if inner is not None else fields
        return unknown_key(str(loc[-1]), list(fields))
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    got = problem["input"]
    if problem["type"] == "literal_error" and isinstance(got, str):
        expected = problem["ctx"]["expected"]
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        return f"{key} must be one of {expected}, got {got!r}. {did_you_mean(got, choices)}".rstrip()
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


def _is_type_name(part: str | int) -> bool:
    """Pydantic puts the names of a union's members into the path of an error."""
    return isinstance(part, str) and (
        part[:1].isupper()  # of a model
        or "[" in part
        or part.startswith("constrained-")
        or part in {"float", "int", "str", "bool", "none"}
    )
