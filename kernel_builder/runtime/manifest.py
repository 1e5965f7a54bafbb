"""What a kernel knows about its ensemble: members in the order of prediction, files by digest, decoders, limits."""

from imet_ray.prediction.decode import AnyDecoder
from imet_ray.prediction.ensemble import Prefix
from imet_ray.prediction.level2 import Level2
from imet_ray.prediction.pooling import Scale
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.specs import Frozen, Variant


class Weights(Frozen):
    """One checkpoint's file in a dataset. It is found by its digest, whatever its name there."""

    trial: str
    name: str
    sha256: str
    size: int  # bytes


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
    prior: list[float]  # (C,): the share of the training pictures that has each label
    views: ViewSet | None = None  # None: each recipe's own
    scale: Scale
    members: list[KernelMember]  # in the order of prediction
    # the k-th: how to decode when only the first k members of weight above 0 are there
    prefixes: list[Prefix]
    level2: Level2 | None = None  # what predicts instead of the weights once all members are there
    decoder: AnyDecoder | None = None  # of what level 2 predicts
    encrypted: bool  # the weights are
    key: str | None  # the text of a random key, where it is embedded
    limit: float  # seconds
    reserve: float  # seconds of the limit that are kept back
    competition: str | None = None  # the slug of the one whose pictures are meant

    @property
    def weights(self) -> list[Weights]:
        """All checkpoints', in the order of prediction."""
        return [weights for member in self.members for weights in member.weights]
