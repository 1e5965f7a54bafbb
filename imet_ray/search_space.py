"""Search spaces: what an experiment tries, over which ranges, on what data, with what budget.

Reading one from its YAML file is `imet_ray.space_file`. Running the search is `imet_ray.cluster`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from imet_ray.errors import ConfigError
from imet_ray.specs import (
    BatchNorm,
    Frozen,
    Hparam,
    SoupName,
    TrialSpec,
    Variant,
    default_pack_short_side,
)

First = Literal["own", "drawn"]

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


class SpaceSettings(Frozen):
    """What a file says of all variants together."""

    data: str = "demo"
    n_folds: Annotated[int, Field(ge=2)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # what numpy and scikit-learn take
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


class SearchSpace(SpaceSettings):
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
