"""The sweep's policy under accidents: kills, cut-off journals, sets that cannot be trained; no Ray is started."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from one_variant import SPACE, space_of, write
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from imet_ray.cluster.policy import Policy
from imet_ray.errors import StoreError
from imet_ray.specs import TrialSpec
from imet_ray.storage.results import standings
from imet_ray.storage.run_directory import RunDirectory


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def policy(tmp_path, store) -> Policy:
    return Policy(space_of(tmp_path), store, "data", "folds")


def run_out(policy) -> list[TrialSpec]:
    """Train everything that comes, one after another."""
    done = []
    while (given := policy.next()) != "finished":
        assert given is not None, "nothing runs that it could wait for"
        write(policy.store, given.spec)
        policy.done(given.spec.trial_id)
        done.append(given.spec)
    return done


@pytest.mark.parametrize("search", ["{}", "{batch_size: [16]}"])
def test_when_the_last_set_repeats_one_that_was_tried_its_promotion_still_comes(tmp_path, store, search):
    _, _, searched = SPACE.partition("search: ")
    space = space_of(tmp_path, (searched.strip(), search))
    run_out(Policy(space, store, "data", "folds"))
    assert [standing.whole for standing in standings(store, ["a"])] == [True]


def test_a_set_that_was_being_drawn_at_a_kill_is_not_trained_with_hparams_missing(policy, store):
    study = policy.studies["a"].study
    study._storage.create_new_trial(study._study_id)  # the journal's first entry of `ask`
    done = run_out(Policy(policy.space, store, "data", "folds"))
    assert {frozenset(spec.hparams) for spec in done} == {frozenset({"dropout", "lr"})}


@pytest.mark.parametrize("written", range(13))  # hparams, in the journal at the kill; a set has two
def test_a_set_that_was_half_drawn_at_a_kill_is_failed_and_another_asked_for(tmp_path, written, monkeypatch):
    space = space_of(tmp_path, ("trials_per_variant: 2", "trials_per_variant: 7"))  # the first 4 are random
    undisturbed = run_out(Policy(space, RunDirectory(tmp_path / "undisturbed"), "data", "folds"))
    left = iter(range(written))
    write_param = JournalStorage.set_trial_param

    def killed(*args):
        next(left)
        write_param(*args)

    with monkeypatch.context() as patch:
        patch.setattr(JournalStorage, "set_trial_param", killed)
        with pytest.raises(StopIteration):
            run_out(Policy(space, RunDirectory(tmp_path / "killed"), "data", "folds"))
    run_out(again := Policy(space, RunDirectory(tmp_path / "killed"), "data", "folds"))
    sets = again.studies["a"].study.trials
    assert [trial.number for trial in sets if trial.state.name == "FAIL"] == [written // 2]
    whole = [trial.params for trial in sets if trial.state.name != "FAIL"]
    assert whole == [spec.hparams for spec in undisturbed[:7]]


def test_hparams_that_do_not_go_together_fail_alone(tmp_path, store):
    space = space_of(
        tmp_path,
        ("trials_per_variant: 2", "trials_per_variant: 12"),
        ("dropout: {low: 0.0, high: 0.5}", "epochs: [2, 4], warmup_epochs: [0.0, 3.0]"),
    )
    done = run_out(Policy(space, store, "data", "folds"))
    assert all(spec.recipe.warmup_epochs < spec.recipe.epochs for spec in done)
    assert [standing.whole for standing in standings(store, ["a"])] == [True]


def test_a_journal_that_a_full_disk_cut_off_is_gone_on_with(policy, store):
    policy.next()
    store.journal.write_bytes(store.journal.read_bytes()[:-9])
    Policy(policy.space, store, "data", "folds").next()  # writes behind the cut
    run_out(Policy(policy.space, store, "data", "folds"))  # reads it
    assert [standing.whole for standing in standings(store, ["a"])] == [True]


@pytest.mark.parametrize("place", [0, 3, None])
def test_a_damaged_journal_is_one_line(policy, store, place):
    policy.next()
    lines = store.journal.read_text().splitlines(keepends=True)
    lines.insert(len(lines) if place is None else place, "garbage\n")
    store.journal.write_text("".join(lines))
    with pytest.raises(StoreError, match=r"studies\.journal is damaged"):
        Policy(policy.space, store, "data", "folds")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a file that is open just then
def test_ctrl_c_at_any_line_of_the_journal_is_ctrl_c_and_leaves_it_whole(tmp_path, store):
    space = space_of(tmp_path)
    interrupts = 0
    while interrupted_at_line(interrupts, lambda: Policy(space, store, "data", "folds").next()):
        interrupts += 1
    assert interrupts > 20
    assert [path.name for path in store.root.iterdir()] == [store.journal.name]
    run_out(Policy(space, store, "data", "folds"))
    assert [standing.whole for standing in standings(store, ["a"])] == [True]


def interrupted_at_line(number: int, work: Callable[[], object]) -> bool:
    """Ctrl-C before the line of that number, of those by which Optuna writes its journal; whether there was one."""
    left, writer = number, JournalFileBackend.append_logs.__code__.co_filename

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != writer or frame.f_code.co_name == "read_logs":
            return None
        if event == "line":
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_a_variant_whose_interrupted_trial_is_still_to_come_has_not_failed(policy, store):
    first = policy.next()
    write(store, first.spec)
    policy.done(first.spec.trial_id)
    policy.next()  # interrupted
    less = policy.space.model_copy(update={"trials_per_variant": 1})
    again = Policy(less, store, "data", "folds")
    assert not again.studies["a"].failed
