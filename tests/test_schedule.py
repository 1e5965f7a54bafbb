"""The kernel against a clock: on slow machines, after a stall, and when checkpoints fail."""

from collections.abc import Iterator

import numpy as np
import pytest

from imet_ray.decode import Decoder
from imet_ray.ensemble import Prefix
from imet_ray.specs import Variant
from kernel_builder.runtime.manifest import KernelMember, Manifest, Stored, Weights
from kernel_builder.runtime.schedule import Deadline, Outcome, Run

N, C, BATCH = 100, 3, 10
TRUE = np.array([0.9, 0.2, 0.6])


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_manifest() -> Manifest:
    members = [
        KernelMember(
            name=name,
            weight=weight,
            recipe=Variant(name=name, architecture="test_resnet"),
            pack_short_side=32,
            seconds=2 * 60.0 / N,
            weights=[
                Weights(
                    trial=f"{name}{fold}",
                    plain=Stored(name=f"{name}-f{fold}", sha256="", size=1),
                    pieces=[],
                    encrypted=False,
                )
                for fold in range(2)
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
            Prefix(members=list("abc"[: k + 1]), decoder=Decoder(name="threshold", threshold=t), f2=0.5)
            for k, t in enumerate((0.3, 0.4, 0.5))
        ],
        dtype="float32",
        key=None,
        limit=1000.0,
        reserve=50.0,
        versions={},
    )


class Machine:
    """Predicts TRUE; a batch takes 6 s at speed 1, so that all six checkpoints take 360 s."""

    def __init__(self, slowness: float, *, stall_at: int = -1, stall: float = 0.0, broken=()) -> None:
        self.clock, self.slowness, self.broken = Clock(), slowness, broken
        self.stall_at, self.stall, self.batches = stall_at, stall, 0
        self.published: list[tuple[float, np.ndarray]] = []

    def predict(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        for start in range(0, N, BATCH):
            if weights.trial in self.broken and start == 50:
                raise RuntimeError("the file is damaged")
            self.clock.now += 6 * self.slowness
            if self.batches == self.stall_at:
                self.clock.now += self.stall
            self.batches += 1
            yield np.tile(TRUE, (BATCH, 1)).astype(np.float16)

    def run(self, limit: float = 1000.0) -> Outcome:
        def publish(tally) -> None:
            self.clock.now += 2 * self.slowness
            self.published.append((self.clock.now, tally.decoded(set())))

        manifest = make_manifest()
        deadline = Deadline(limit, manifest.reserve, self.clock)
        run = Run(manifest, N, self.predict, deadline, publish, lambda text: None)
        outcome = run()
        self.tally = run.tally
        return outcome


@pytest.mark.parametrize(("slowness", "checkpoints"), [(1, 6), (3, 5), (10, 1), (20, 0), (60, 0)])
def test_a_machine_of_any_speed_ends_before_the_limit_with_a_submission_of_all_pictures(
    slowness, checkpoints
):
    machine = Machine(slowness)
    outcome = machine.run()
    when, decoded = machine.published[-1]
    assert outcome.checkpoints == checkpoints
    assert bool(outcome.stopped) == (checkpoints < 6)
    assert machine.clock.now < 1000
    assert when <= machine.clock.now
    assert decoded.shape == (N, C)
    assert decoded.any(axis=1).all()


def test_a_stall_of_an_hour_costs_the_later_checkpoints_and_no_more():
    machine = Machine(1, stall_at=25, stall=3600)
    outcome = machine.run(limit=3600 + 250)
    assert outcome.checkpoints >= 2
    assert outcome.stopped
    assert machine.clock.now < 3600 + 250
    assert machine.published[-1][1].any(axis=1).all()


def test_a_stall_does_not_make_the_checkpoints_after_it_look_slow():
    machine = Machine(1, stall_at=5, stall=400)
    assert machine.run().checkpoints == 6


def test_a_limit_within_the_first_checkpoint_leaves_the_pictures_that_were_predicted():
    machine = Machine(20)
    outcome = machine.run()
    decoded = machine.published[-1][1]
    assert (outcome.checkpoints, "the others by the prior" in outcome.stopped) == (0, True)
    assert decoded[0].tolist() == [True, False, True]
    assert decoded[-1].tolist() == [False, True, False]


def test_weights_are_renormalised_and_the_decoder_is_that_of_the_prefix():
    machine = Machine(3)
    machine.run(limit=850)
    assert machine.tally.members == ["a", "b"]
    assert machine.tally.decoder().threshold == 0.4
    assert machine.tally.probabilities()[0] == pytest.approx(TRUE, abs=1e-3)


def test_a_broken_checkpoint_is_left_out_with_its_reason_and_the_others_count():
    machine = Machine(1, broken=("a0", "b0", "b1"))
    outcome = machine.run()
    assert [text.partition(":")[0] for text in outcome.failed] == ["a-f0", "b-f0", "b-f1"]
    assert "the file is damaged" in outcome.failed[0]
    assert outcome.dropped == ["b"]
    assert (outcome.checkpoints, machine.tally.members) == (3, ["a", "c"])
    assert machine.tally.probabilities()[0] == pytest.approx(TRUE, abs=1e-3)


def test_where_nothing_can_be_predicted_there_is_the_prior():
    machine = Machine(1, broken=("a0", "a1", "b0", "b1", "c0", "c1"))
    outcome = machine.run()
    assert (outcome.checkpoints, outcome.dropped) == (0, ["a", "b", "c"])
    assert machine.published[-1][1][:, 1].all()
