"""What a kernel knows of its ensemble: members in the order of prediction, files by digest, decoders, limits."""

from typing import Literal

from imet_ray.prediction.ensemble import Prefix
from imet_ray.prediction.pooling import Scale
from imet_ray.specs import Frozen, Variant

Dtype = Literal["float16", "float32"]


class Stored(Frozen):
    """One file of a data set."""

    name: str  # it was written under; files are found by their digest
    sha256: str
    size: int  # bytes


class Weights(Frozen):
    """One checkpoint's weights."""

    trial: str
    plain: Stored  # as they are used: a safetensors file
    pieces: list[
        Stored
    ]  # as they were written: that file, encrypted or not, in one piece or several, in order
    encrypted: bool


class KernelMember(Frozen):
    """One variant's checkpoints."""

    name: str
    weight: float
    recipe: Variant
    pack_short_side: int  # pixels
    weights: list[Weights]


class Manifest(Frozen):
    """What the builder packs beside the sources."""

    ensemble: str
    label_ids: list[str]
    prior: list[float]  # (C,) share of the training pictures with each label
    scale: Scale
    members: list[KernelMember]  # in the order of prediction
    prefixes: list[Prefix]  # the k-th: how to decode when the first k members are there
    dtype: Dtype
    key: str | None  # embedded: the text of a random key
    limit: float  # seconds
    reserve: float  # seconds of it that are kept back
    versions: dict[str, str]

    @property
    def checkpoints(self) -> int:
        return sum(len(member.weights) for member in self.members)
