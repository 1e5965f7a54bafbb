"""What a trial is: a variant, the hparams that were picked for it, a fold and a seed.

Everything here is frozen and strict: unknown keys and impossible values are refused. A trial's id is a hash
of all that decides its result, so one experiment has one name however it was asked for. Reading YAML,
with line numbers, is `imet_ray.space_file`. Names of losses, schedules, augmentations, crops, views and kept weights
are those of their registries: `imet_ray.training.recipe` checks them.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, ModelWrapValidatorHandler, Tag, model_validator

from imet_ray.augmentation_settings import Areas, Augmentation, Ratios, refuse_reversed
from imet_ray.dotted_names import dotted, with_parts
from imet_ray.frozen import Frozen as Frozen

BatchNorm = Literal["local", "sync"]
SoupName = Literal["greedy", "uniform"]

WEIGHTS = ("hub", "package", "none")  # anything else is the path of a file
FOLD = "{fold}"  # in such a path: a file for each fold

# what a checkpoint's model is and sees, whatever trained it
PREDICTED_BY = (
    "name",
    "architecture",
    "image_size",
    "dropout",
    "freeze",
    "batch_size",
    "precision",
    "crop",  # of random views
    "crop_area",
    "crop_aspect",
    "views",
)

Hparam = int | float | str | bool | None
Augmenting = Annotated[  # a preset's name, or settings of one's own; never both in one error
    Annotated[str, Tag("str")] | Annotated[Augmentation, Tag("Augmentation")],
    Discriminator(lambda given: "str" if isinstance(given, str) else "Augmentation"),
]


class Parent(Frozen):
    """Another variant of the space: its checkpoint of the same fold."""

    variant: str


class Sampler(Frozen):
    """Which training pictures an epoch shows, and how often (`imet_ray.data.samplers`); at 0 a setting is off."""

    rare: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0  # power of a picture's rarity by which it is drawn
    oversample: Annotated[int, Field(ge=0, le=10_000)] = 0  # pictures of each label in an epoch, at least

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.rare and self.oversample:
            raise ValueError(
                f"sampler: rare draws pictures and oversample repeats them: choose one, got rare={self.rare:g} and "
                f"oversample={self.oversample}"
            )
        return self


class AddedLabels(Frozen):
    """Pseudo-labels: what training pictures get of predictions that are sure (`imet_ray.training.pseudo_labels`)."""

    model_config = ConfigDict(validate_by_name=True)

    # a variant of the space, RUN/ENSEMBLE, or a file of predictions
    source: Annotated[str, Field(alias="from", min_length=1)]
    above: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7  # the probability that is sure enough
    at_most: Annotated[float, Field(gt=0.0)] | None = None  # labels per picture, in the mean: the surest ones
    soft: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # the target of an added label
    strict: bool = True  # fold k's training pictures get them from models of fold k alone

    @property
    def kind(self) -> Literal["variant", "ensemble", "file"]:
        """What the source is."""
        if self.source.endswith(".npz"):
            return "file"
        return "ensemble" if "/" in self.source else "variant"


class Labels(Frozen):
    """What training makes of the labels of the data."""

    add: AddedLabels


class Variant(Frozen):
    """A recipe that the blend weighs: architecture x augmentation x size x loss, and how it is trained."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,79}$")]
    architecture: str
    # one of WEIGHTS, or the path of a local file; `{fold}` in it is the fold's number
    weights: str | Parent = "hub"
    image_size: Annotated[int, Field(ge=16, le=2048)] = 224
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of the last block; stochastic depth

    augmentation: Augmenting = "medium"
    crop: str = "rectangular"
    crop_area: Areas = (0.4, 1.0)  # crop 'rectangular': of the picture's area
    crop_aspect: Ratios = (3 / 4, 4 / 3)  # crop 'rectangular': width over height
    mixup: Annotated[float, Field(ge=0.0)] = 0.0  # alpha of Beta(alpha, alpha); 0 is off
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0  # the same; with both, each batch gets one of them
    sampler: Sampler | None = None  # None: an epoch shows each picture once
    labels: Labels | None = None  # None: those of the data, and no others

    loss: str = "bce"
    loss_weight: Annotated[float, Field(ge=0.0)] | None = None  # None: the loss's own default
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # targets move so far towards 1/2

    optimizer: str = "adam"
    lr: Annotated[float, Field(gt=0.0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # None: the optimizer's own default
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    eps: Annotated[float, Field(gt=0.0)] | None = None
    amsgrad: bool = False
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    layer_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = (
        None  # of the rate, from layer to layer down
    )
    freeze: Annotated[int, Field(ge=0)] | str | None = None  # so many groups of layers, or up to this one
    schedule: str = "cosine"
    cycles: Annotated[int, Field(ge=1)] = 1  # how many, i.e. restarts + 1
    cycle_epochs: Annotated[int, Field(ge=1)] | None = None  # or this long, as many as fit; the last is cut
    cycle_plus: Annotated[int, Field(ge=0)] = 0  # epochs that each cycle is longer than the one before
    cycle_times: Annotated[int, Field(ge=1)] = 1  # or so many times as long
    cycle_longest: Annotated[int, Field(ge=1)] | None = None  # epochs
    min_lr: Annotated[float, Field(gt=0.0)] | None = None  # the least rate; plateau: training ends below it
    drop_every: Annotated[int, Field(ge=1)] | None = None  # step: epochs
    drop_at: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()  # multistep: epochs
    drop_factor: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # None: the schedule's own default
    power: Annotated[float, Field(gt=0.0)] = 1.0  # polynomial; 1 is a straight line
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    plateau_patience: Annotated[int, Field(ge=0)] = 2  # epochs without a better score
    plateau_improvement: Annotated[float, Field(ge=0.0)] = 1e-4  # a better score is better by more than this
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # or so many updates
    head_only_epochs: Annotated[int, Field(ge=0)] = 0
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=2)] = 16
    accumulate: Annotated[int, Field(ge=1)] = 1  # batches per update
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    swa_start: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # share of the epochs before it averages
    swa_lr: Annotated[float, Field(gt=0.0)] | None = None  # None: the schedule goes on
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    precision: Literal["bf16", "fp32"] = "bf16"  # on a GPU; a CPU always computes in fp32

    keep: str = "best"  # which epochs' weights; best is picked on the held-out fold
    soup: SoupName = "greedy"  # greedy is picked on the held-out fold
    soup_epochs: Annotated[int, Field(ge=2, le=20)] = 5  # the last ones, that a soup is made of
    views: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = ("centre", "flip")

    @model_validator(mode="wrap")
    @classmethod
    def _dotted_names(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """`{"augmentation": {"noise": 0.1}, "augmentation.blur": 0.2}`: a dotted name is one number of a setting."""
        if not isinstance(given, dict) or not (parts := dotted(given)):
            return handler(given)
        whole = handler({name: value for name, value in given.items() if name not in parts})
        return handler(with_parts(whole.model_dump(), parts))

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        refuse_reversed("crop_area", self.crop_area)
        refuse_reversed("crop_aspect", self.crop_aspect)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs={self.epochs}, got {self.warmup_epochs}")
        if self.head_only_epochs >= self.epochs:
            raise ValueError(
                f"head_only_epochs must be below epochs={self.epochs}, got {self.head_only_epochs}"
            )
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError("warmup_epochs and warmup_steps say the same: give one of them")
        if self.cycles > self.epochs:
            raise ValueError(f"cycles must not exceed epochs={self.epochs}, got {self.cycles}")
        return self

    @property
    def parent(self) -> str | None:
        """The variant of whose checkpoint of the same fold it begins."""
        return self.weights.variant if isinstance(self.weights, Parent) else None

    @property
    def after(self) -> tuple[str, ...]:
        """The variants whose trials of a fold must be complete before its own of that fold begins."""
        teacher = self.added.source if self.added is not None and self.added.kind == "variant" else None
        return tuple(dict.fromkeys(name for name in (self.parent, teacher) if name is not None))

    @property
    def added(self) -> AddedLabels | None:
        """The pseudo-labels of its training pictures."""
        return None if self.labels is None else self.labels.add

    def with_hparams(self, hparams: dict[str, Hparam]) -> Self:
        """The same variant with some settings, by name or dotted name, replaced and checked again."""
        return type(self).model_validate(self.model_dump() | hparams)

    def mixing(self, trials: int, how: SoupName) -> Self:
        """A variant that trains nothing, and has of this one what prediction asks for."""
        kept = {field: getattr(self, field) for field in PREDICTED_BY}
        soup = {"keep": "soup", "soup": how, "soup_epochs": trials, "epochs": trials, "weights": "none"}
        return type(self).model_validate(kept | soup)


class Mixed(Frozen):
    """Trials of a fold, of one variant, whose weights another one mixes."""

    trials: Annotated[tuple[str, ...], Field(min_length=2, max_length=20, strict=False)]
    how: SoupName = "greedy"


class TrialSpec(Frozen):
    """One variant with one set of hparams on one fold of one dataset, trained once."""

    variant: Variant
    hparams: Annotated[dict[str, Hparam], Field(default_factory=dict)]
    fold: Annotated[int, Field(ge=0)]
    n_folds: Annotated[int, Field(ge=2)]
    seed: int
    data_digest: str
    folds_digest: str
    pack_short_side: int
    metric: str = "f2"  # that the trial is judged by
    workers: Annotated[int, Field(ge=1)] = 1  # that train it together, batch_size pictures each at a time
    batch_norm: BatchNorm = "local"  # statistics of each worker's own pictures, or of all
    soup_of: Mixed | None = None  # it trains nothing, and is a soup of these
    after: dict[str, str] = {}  # by variant: the trial of the same fold that it begins from, or learns from

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.n_folds:
            raise ValueError(
                f"fold must be below n_folds={self.n_folds}, got fold={self.fold}: "
                f"choose 0..{self.n_folds - 1}"
            )
        return self

    @property
    def recipe(self) -> Variant:
        """The variant as it is trained: with the hparams in place. A soup's epochs are the trials that it mixes."""
        recipe = self.variant.with_hparams(self.hparams)
        return recipe if self.soup_of is None else recipe.mixing(len(self.soup_of.trials), self.soup_of.how)

    @property
    def told_hparams(self) -> dict[str, Hparam]:
        """What people are shown: of a soup the best set's, and how many are mixed."""
        return self.hparams if self.soup_of is None else self.hparams | {"soup_of": len(self.soup_of.trials)}

    @property
    def title(self) -> str:
        """What people are shown: variant, fold and id."""
        return f"{self.variant.name}-fold{self.fold}-{self.trial_id}"

    @property
    def trial_id(self) -> str:
        """Sixteen hex digits of the hash of all that decides the result.

        Fields at their defaults are left out, so that a new field leaves every older id as it is. A default must
        therefore never change: what is to behave differently gets a new field.
        """
        return hashlib.sha256(canonical_json(self._decided(exclude_defaults=True)).encode()).hexdigest()[:16]

    def same_trial(self, other: "TrialSpec") -> bool:
        """True if both decide the same result, however the hparams are divided from the variant."""
        return self._decided() == other._decided()

    def _decided(self, *, exclude_defaults: bool = False) -> dict[str, Any]:
        alone = {"workers", "batch_norm"} if self.workers == 1 else set()  # mean nothing to one
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=exclude_defaults),
            **self.model_dump(
                mode="json", exclude={"variant", "hparams"} | alone, exclude_defaults=exclude_defaults
            ),
        }


def of_fold(weights: str, fold: int) -> str:
    """The file of weights for a fold, where the path says `{fold}`."""
    return weights.replace(FOLD, str(fold))


def hparams_text(hparams: dict[str, Hparam]) -> str:
    """A set of hparams on one line."""
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in hparams.items())


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def default_pack_short_side(image_size: int) -> int:
    """Short side, in pixels, of the packed pictures for crops of `image_size`: an eighth more, in 32s."""
    return -(-image_size * 9 // 8 // 32) * 32
