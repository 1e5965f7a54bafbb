"""A machine whose clock advances only when something is done, for a kernel of three members."""

from collections.abc import Callable, Iterator

import numpy as np

from imet_ray.errors import StoreError
from imet_ray.prediction.decode import Threshold
from imet_ray.prediction.ensemble import Prefix
from imet_ray.specs import Variant
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.schedule import Deadline, Outcome, Schedule

N, C, BATCH = 100, 3, 10
TRUE = np.array([0.9, 0.2, 0.6])


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_manifest(sizes: str = "") -> Manifest:
    """Three members of two checkpoints.

    Args:
        sizes: names of members whose pictures have another size.
    """
    members = [
        KernelMember(
            name=name,
            weight=weight,
            recipe=Variant(name=name, architecture="test_resnet"),
            pack_short_side=64 if name in sizes else 32,
            weights=[
                Weights(trial=f"{name}{fold}", name=f"{name}-f{fold}", sha256="", size=1) for fold in range(2)
            ],
        )
        for name, weight in (("a", 0.5), ("b", 0.3), ("c", 0.2))
    ]
    return Manifest(
        ensemble="e",
        label_ids=["x", "y", "z"],
        prior=[0.1, 0.3, 0.2],
        scale="probability",
        members=members,
        prefixes=[
            Prefix(members=list("abc"[: k + 1]), decoder=Threshold(threshold=t), score=0.5)
            for k, t in enumerate((0.3, 0.4, 0.5))
        ],
        encrypted=False,
        key=None,
        limit=1000.0,
        reserve=50.0,
    )


class Machine:
    """Predicts TRUE; a batch takes 6 s at speed 1, so that all six checkpoints take 360 s."""

    def __init__(
        self,
        slowness: float = 1,
        *,
        stalls: tuple[int, ...] = (),
        stall: float = 0.0,
        sizes: Callable[[int], int] = lambda start: BATCH,
        broken: tuple[str, ...] = (),
        model: float = 0.0,
        packing: float = 0.0,
        burst: int = 1,
        new_sizes: str = "",
        slow_models: dict[str, float] | None = None,
    ) -> None:
        """
        Args:
            stalls: the batches that take `stall` seconds more.
            sizes: of a batch, by its first picture.
            broken: trials that fail in the middle.
            model: seconds that the set-up of a model takes.
            packing: seconds that pictures of a new size take.
            burst: batches that come together, after as many times their time.
            new_sizes: members whose pictures have another size.
            slow_models: seconds more for the models of these trials.
        """
        self.clock, self.slowness, self.broken = Clock(), slowness, broken
        self.stalls, self.stall, self.sizes, self.batches = stalls, stall, sizes, 0
        self.model, self.packing, self.burst = model, packing, burst
        self.manifest = make_manifest(new_sizes)
        self.packed: set[int] = set()
        self.opened: list[str] = []
        self.published: list[tuple[float, np.ndarray]] = []
        self.writing = 2.0  # seconds
        self.slow_writing: dict[int, float] = {}  # seconds more
        self.slow_models = slow_models or {}
        self.full: set[int] = set()  # writings that fail, from 0

    def open(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        self.opened.append(weights.trial)
        if member.pack_short_side not in self.packed:
            self.clock.now += self.packing * self.slowness
            self.packed.add(member.pack_short_side)
        self.clock.now += self.model * self.slowness + self.slow_models.get(weights.trial, 0.0)
        return self.predict(weights)

    def predict(self, weights: Weights) -> Iterator[np.ndarray]:
        start = 0
        while start < N:
            if weights.trial in self.broken and start >= 50:
                raise RuntimeError("the file is damaged")
            size = self.sizes(start)
            if start // BATCH % self.burst == 0:
                self.clock.now += 6 * self.slowness * self.burst * size / BATCH
            if self.batches in self.stalls:
                self.clock.now += self.stall
            self.batches += 1
            start += size
            yield np.tile(TRUE, (size, 1)).astype(np.float16)

    def run(self, limit: float = 1000.0) -> Outcome:
        writings = 0

        def publish(blend) -> None:
            nonlocal writings
            writings += 1
            if writings - 1 in self.full:
                raise StoreError("disk full while writing submission.csv")
            self.clock.now += self.writing * self.slowness + self.slow_writing.get(writings - 1, 0.0)
            self.published.append((self.clock.now, blend.decoded(set())))

        deadline = Deadline(limit, self.manifest.reserve, self.clock)
        schedule = Schedule(self.manifest, N, deadline, publish, lambda text: None, lambda text: None)
        schedule.begin()
        outcome = schedule.run(self.open)
        self.blend = schedule.blend
        return outcome
