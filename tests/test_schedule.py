"""The kernel against a clock: on slow machines, after a stall, and when checkpoints fail."""

import numpy as np
import pytest
from simulated_machine import BATCH, TRUE, C, Machine, N

from imet_ray.errors import StoreError
from kernel_builder.runtime.running_blend import RunningBlend
from kernel_builder.runtime.schedule import Deadline, steady_seconds


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
    machine = Machine(1, stalls=(25,), stall=3600)
    outcome = machine.run(limit=3600 + 250)
    assert outcome.checkpoints >= 2
    assert outcome.stopped
    assert machine.clock.now < 3600 + 250
    assert machine.published[-1][1].any(axis=1).all()


@pytest.mark.parametrize("stalls", [(5,), (11, 13), (12, 25, 38), (10, 11, 12, 13, 14, 15)])
def test_stalls_do_not_make_what_is_left_look_slow(stalls):
    machine = Machine(1, stalls=stalls, stall=100)
    whole = 2 + 6 * 62 + 100 * len(stalls)
    assert machine.run(limit=50 + whole + 4).checkpoints == 6
    assert machine.clock.now < 50 + whole


@pytest.mark.parametrize("trial", [0, 1])
def test_a_checkpoint_that_took_long_does_not_make_the_next_look_slow(trial):
    """Member a has three checkpoints: the third is expected to take as long as the faster of the two before it."""
    machine = Machine(1, stalls=tuple(range(10 * trial, 10 * trial + 10)), stall=40)  # 460 s, else 60 s
    a, b, c = machine.manifest.members
    third = a.weights[1].model_copy(update={"trial": "a2"})
    members = [a.model_copy(update={"weights": [*a.weights, third]}), b, c]
    machine.manifest = machine.manifest.model_copy(update={"members": members})
    assert machine.run(limit=50 + 2 + 7 * 62 + 400 + 4).checkpoints == 7


def test_a_set_up_that_took_long_once_does_not_make_the_next_look_slow():
    machine = Machine(1, model=5, slow_models={"a1": 300})
    assert machine.run(limit=50 + 2 + 6 * 67 + 300 + 4).checkpoints == 6


def test_pictures_of_another_size_are_not_expected_to_take_as_long_as_those_of_the_first():
    machine = Machine(1, packing=300, new_sizes="b")
    machine.packed.add(64)  # the second size takes no time
    assert machine.run(limit=50 + 2 + 300 + 6 * 62 + 4).checkpoints == 6


def test_a_writing_that_took_long_once_does_not_keep_time_free_for_ever():
    machine = Machine(1)
    machine.slow_writing = {1: 200.0}
    assert machine.run(limit=50 + 2 + 6 * 62 + 200 + 10).checkpoints == 6


def test_a_first_batch_that_stalled_does_not_end_the_first_checkpoint():
    machine = Machine(1, stalls=(0,), stall=300)
    assert machine.run(limit=50 + 2 + 300 + 62 + 10).checkpoints == 1


def test_a_batch_that_was_halved_is_no_slower_per_picture():
    machine = Machine(1, sizes=lambda start: 10 if start < 50 else 2)
    assert machine.run(limit=50 + 2 + 6 * 62 + 4).checkpoints == 6
    assert machine.batches == 6 * (5 + 25)


def test_time_is_kept_for_writing_what_was_predicted_last():
    machine = Machine(1)
    machine.writing = 40
    outcome = machine.run(limit=50 + 40 + 100 + 85)  # the next would be ready, and hardly be written
    assert (outcome.checkpoints, machine.opened) == (1, ["a0"])
    assert machine.published[-1][0] == machine.clock.now


def test_a_limit_within_the_first_checkpoint_leaves_the_pictures_that_were_predicted():
    machine = Machine(20)
    outcome = machine.run()
    decoded = machine.published[-1][1]
    assert (outcome.checkpoints, outcome.written) == (0, 0)
    assert "the others by the prior" in outcome.stopped
    assert decoded[0].tolist() == [True, False, True]
    assert decoded[-1].tolist() == [False, True, False]


def test_a_limit_within_a_first_checkpoint_that_predicts_nan_leaves_the_prior():
    machine = Machine(20)

    def nan(weights):
        for _ in range(10):
            machine.clock.now += 120
            yield np.full((BATCH, C), np.nan, np.float16)

    machine.predict = nan
    outcome = machine.run()
    assert outcome.written == 0
    assert outcome.stopped.endswith("pictures")
    assert machine.published[-1][1].tolist() == [[False, True, False]] * N


def test_weights_are_renormalised_and_the_decoder_is_that_of_the_prefix():
    machine = Machine(3)
    machine.run(limit=800)
    assert machine.blend.members == ["a", "b"]
    assert machine.blend.decoder().threshold == 0.4
    assert machine.blend.probabilities()[0] == pytest.approx(TRUE, abs=1e-3)


def test_a_broken_checkpoint_is_left_out_with_its_reason_and_the_others_count():
    machine = Machine(1, broken=("a0", "b0", "b1"))
    outcome = machine.run()
    assert [text.partition(":")[0] for text in outcome.failed] == ["a-f0", "b-f0", "b-f1"]
    assert "the file is damaged" in outcome.failed[0]
    assert outcome.dropped == ["b"]
    assert (outcome.checkpoints, machine.blend.members) == (3, ["a", "c"])
    assert machine.blend.probabilities()[0] == pytest.approx(TRUE, abs=1e-3)


def test_where_nothing_can_be_predicted_there_is_the_prior():
    machine = Machine(1, broken=("a0", "a1", "b0", "b1", "c0", "c1"))
    outcome = machine.run()
    assert (outcome.checkpoints, outcome.dropped) == (0, ["a", "b", "c"])
    assert machine.published[-1][1][:, 1].all()


def test_what_sets_a_checkpoint_up_is_not_taken_for_its_batches():
    machine = Machine(model=5, packing=120)  # 2 + 120 + 6 * (5 + 60 + 2) = 524 s
    assert machine.run(limit=50 + 530).checkpoints == 6


def test_decoding_the_pictures_does_not_make_the_next_checkpoints_look_slow():
    machine = Machine(packing=600)
    assert machine.run(limit=50 + 2 + 600 + 3 * 62 + 10).checkpoints == 3


def test_a_new_member_is_tried_whatever_others_took():
    machine = Machine()
    seconds = 2 + 4 * 62.0  # a and b
    outcome = machine.run(limit=50 + seconds + 20)
    assert (outcome.checkpoints, machine.opened) == (4, ["a0", "a1", "b0", "b1", "c0"])
    assert outcome.stopped == "c-f0: reached after 30 of 100 pictures"


def test_seconds_before_the_deadline_was_made_count():
    deadline = Deadline(1000.0, 100.0, lambda: 7.0, spent=40.0)
    assert (deadline.elapsed(), deadline.left(), deadline.end - deadline.start) == (40.0, 860.0, 900.0)


def test_batches_that_come_in_bursts_do_not_end_a_run_too_early_or_too_late():
    whole = 2 + 6 * 62
    assert Machine(burst=5).run(limit=50 + whole + 10).checkpoints == 6
    machine = Machine(burst=5)
    outcome = machine.run(limit=50 + whole - 15)
    assert outcome.checkpoints == 5
    assert machine.clock.now < 50 + whole - 15


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([9.0], 9.0),
        ([9.0, 1.0, 1.0], 1.0),  # the first one starts things up
        ([1.0, 1.0, 400.0, 1.0], 1.0),  # a stall
        ([6.0, 0.0, 0.0, 6.0, 0.0, 0.0, 6.0, 0.0, 0.0], 2.0),
    ],
)
def test_seconds_per_batch_are_those_of_the_long_run(times, expected):
    assert steady_seconds(times) == expected


def test_a_submission_that_cannot_be_written_again_stays_and_that_is_said():
    machine = Machine()
    machine.full = {4, 5, 6, 7}
    outcome = machine.run()
    assert (outcome.checkpoints, outcome.written) == (6, 3)
    assert outcome.unwritten == "StoreError: disk full while writing submission.csv"
    machine = Machine()
    machine.full = {4, 5, 6}  # and then there is room again
    outcome = machine.run()
    assert (outcome.written, outcome.unwritten) == (6, "")


def test_a_checkpoint_that_predicts_nan_is_left_out():
    machine = Machine()
    original = machine.predict

    def predict(weights):
        for batch in original(weights):
            yield np.full_like(batch, np.nan) if weights.trial == "a0" else batch

    machine.predict = predict
    outcome = machine.run()
    assert outcome.failed == ["a-f0: ValueError: it predicts NaN"]
    assert (outcome.checkpoints, machine.blend.checkpoints) == (5, 5)


def test_without_a_first_submission_there_is_nothing_to_go_on_with():
    machine = Machine()
    machine.full = {0}
    with pytest.raises(StoreError, match="disk full"):
        machine.run()
    assert machine.opened == []


def test_a_fault_outside_a_checkpoint_leaves_what_is_written(monkeypatch):
    machine = Machine()

    def add(self, member, probs) -> None:
        raise MemoryError("no room for the sum")

    monkeypatch.setattr(RunningBlend, "add", add)
    outcome = machine.run()
    assert outcome.written == 0
    assert outcome.failed == ["all that would have followed: MemoryError: no room for the sum"]
