"""What a kernel that trains knows: the trial, its folds, the weights it begins from, limits."""

from imet_ray.specs import Frozen, TrialSpec
from kernel_builder.runtime.manifest import Weights


class TrainingManifest(Frozen):
    """What the builder packs beside the sources."""

    run: str  # the run's name
    spec: TrialSpec
    folds: list[int]  # of each training picture, in the order of the data
    start: Weights | None  # the untrained weights; None: the recipe begins from none
    encrypted: bool  # the weights are
    key: str | None  # the text of a random key, where it is embedded
    limit: float  # seconds
    reserve: float  # seconds of the limit that are kept back
