"""The searcher's duties to Tune; no Ray is started."""

import errno
from types import SimpleNamespace

import pytest
from one_variant import space_of, write
from ray.tune.search import Searcher

from imet_ray.cluster import sweep
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.session import Session
from imet_ray.cluster.tune_searcher import StopOnFault, SweepSearcher
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.search_space import SearchSpace
from imet_ray.specs import TrialSpec
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import failures, read_result
from imet_ray.storage.run_directory import RunDirectory


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    return space_of(tmp_path)


@pytest.fixture
def policy(space, store) -> Policy:
    return Policy(space, store, "data", "folds")


@pytest.fixture
def changes() -> list[str]:
    return []


@pytest.fixture
def searcher(policy, changes) -> SweepSearcher:
    return SweepSearcher(
        policy, lambda: changes.append("changed"), StopOnFault(), lambda: 100, WorkerFailures()
    )


def wear_out(searcher) -> None:
    """The trial has lost its worker too often."""
    trial = SimpleNamespace(trial_id="tune", error_file=None, max_failures=3, last_result=None)
    for trial.num_failures in range(1, 5):
        searcher.worker_failures.note(trial)


def train(store, trial_id, *scores) -> None:
    """An epoch for each score, and no result."""
    rows = [
        {
            "epoch": i,
            "score": f2,
            "threshold": 0.2,
            "expected_score": f2 + 0.01,
            "seconds": 10.0,
            "evaluate_s": 2.0,
        }
        for i, f2 in enumerate(scores, start=1)
    ]
    write_json_lines(store.trial(trial_id).metrics, [row | {"images_per_s": 9.0} for row in rows])


def suggested(searcher, name="tune") -> TrialSpec:
    """The next trial's spec, written where its worker would."""
    config = searcher.suggest(name)
    assert isinstance(config, dict), config
    spec = TrialSpec.model_validate_json(config["spec"])
    write_json(searcher.policy.store.trial(spec.trial_id).spec, spec.model_dump(mode="json"))
    return spec


def states(policy) -> list[str]:
    return [trial.state.name for trial in policy.studies["a"].study.trials]


def test_a_whole_sweep_is_suggested_trial_by_trial_and_then_finished(searcher, store):
    phases = []
    while (config := searcher.suggest(f"t{len(phases)}")) != Searcher.FINISHED:
        spec = TrialSpec.model_validate_json(config["spec"])
        write(store, spec)
        searcher.on_trial_complete(f"t{len(phases)}", {"score": 0.5})
        phases.append((config["phase"], spec.fold))
    assert phases == [("search", 0), ("search", 0), ("promote", 1), ("promote", 2)]


def test_while_all_depends_on_trials_that_run_tune_is_to_ask_again(searcher, store):
    first, second = suggested(searcher, "t0"), suggested(searcher, "t1")
    assert searcher.suggest("t2") is None
    for name, spec in (("t0", first), ("t1", second)):
        write(store, spec)
        searcher.on_trial_complete(name)
    assert searcher.suggest("t2")["phase"] == "promote"


def test_an_epochs_score_reaches_optuna(searcher, policy):
    suggested(searcher)
    searcher.on_trial_result("tune", {"epoch": 1, "score": 0.25})
    searcher.on_trial_result("tune", {"failed": "NaN"})
    assert policy.studies["a"].study.trials[0].intermediate_values == {1: 0.25}


def test_a_trial_that_is_told_to_have_ended_twice_counts_once(searcher, store, policy, changes):
    spec = suggested(searcher)
    write(store, spec, score=0.75)
    searcher.on_trial_complete("tune", {"score": 0.75})
    written = store.trial(spec.trial_id).result.read_bytes()
    searcher.on_trial_complete("tune", error=True)
    searcher.on_trial_complete("never heard of")
    assert store.trial(spec.trial_id).result.read_bytes() == written
    assert states(policy) == ["COMPLETE"]
    assert changes == ["changed"]


def test_a_trial_that_was_stopped_early_gets_its_result_from_its_epochs(searcher, store, policy):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3, 0.5, 0.4)
    searcher.on_trial_complete("tune", {"score": 0.4, "epoch": 3})
    result = read_result(store.trial(spec.trial_id))
    assert (result.status, result.score, result.epoch, result.epochs) == ("stopped", 0.5, 2, 3)
    assert result.seconds == 36.0  # in training and evaluation
    assert states(policy) == ["PRUNED"]


def test_a_stopped_trial_that_went_on_and_was_cut_short_counts_its_new_epochs(searcher, store):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3, 0.5)
    searcher.on_trial_complete("tune", {"score": 0.5})
    other = suggested(searcher)
    write(store, other, "failed", None)
    searcher.on_trial_complete("tune", {"failed": "NaN"})
    assert suggested(searcher, "again") == spec  # promoted
    train(store, spec.trial_id, 0.3, 0.5, 0.6)
    searcher.on_trial_complete("again", {"score": 0.6})
    assert read_result(store.trial(spec.trial_id)).epochs == 3


def test_a_trial_whose_worker_died_too_often_has_failed(searcher, store, policy):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3)
    wear_out(searcher)
    searcher.on_trial_complete("tune", error=True)
    assert [(found.trial_id, why) for found, why in failures(store)] == [
        (spec.trial_id, "4 times without an epoch in between: its worker died")
    ]
    assert states(policy) == ["FAIL"]


def test_a_trial_that_tune_gave_up_before_it_was_worn_out_is_trained_on_by_another(searcher, store, policy):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3)
    searcher.on_trial_complete(
        "tune", error=True
    )  # it waited for a worker when Tune heard of the death again
    assert read_result(store.trial(spec.trial_id)) is None
    assert suggested(searcher, "again") == spec
    assert states(policy)[0] == "RUNNING"


def test_a_trial_whose_worker_died_before_it_wrote_anything_is_listed_as_failed(searcher, store):
    config = searcher.suggest("tune")
    wear_out(searcher)
    searcher.on_trial_complete("tune", error=True)
    assert [spec.model_dump_json() for spec, _ in failures(store)] == [config["spec"]]


def test_a_result_that_is_complete_outlives_its_workers_death(searcher, store, policy):
    spec = suggested(searcher)
    write(store, spec, score=0.75)
    searcher.on_trial_complete("tune", error=True)
    assert read_result(store.trial(spec.trial_id)).status == "complete"
    assert states(policy) == ["COMPLETE"]


def test_a_trial_that_met_a_fault_of_the_set_up_is_issued_again_in_the_next_sitting(searcher, store):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3)
    searcher.on_trial_complete("tune", {"fatal": "disk full"})
    again = Policy(searcher.policy.space, store, "data", "folds")
    assert again.next().spec == spec


def test_a_full_disk_in_the_driver_stops_the_sweep_with_one_line(searcher, store, policy, monkeypatch):
    spec = suggested(searcher)
    write(store, spec, score=0.75)

    def full(trial_id):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(policy, "done", full)
    searcher.on_trial_complete("tune")
    assert searcher.stopper.stop_all()
    assert searcher.stopper.fault.startswith("disk full while writing")


def test_a_trial_that_a_dead_drivers_worker_took_over_is_handed_out_again(searcher, store):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3)
    searcher.on_trial_complete("tune", {"score": 0.3, "superseded": True})
    assert read_result(store.trial(spec.trial_id)) is None
    assert suggested(searcher).trial_id == spec.trial_id


def test_trials_that_are_stopped_by_a_fault_are_only_interrupted(searcher, store):
    spec = suggested(searcher)
    train(store, spec.trial_id, 0.3)
    searcher.stopper.fault = "disk full"
    searcher.on_trial_complete("tune", {"score": 0.3})
    assert read_result(store.trial(spec.trial_id)) is None


def test_no_more_trials_are_handed_out_than_fit_and_more_when_the_cluster_grows(policy):
    fit = 1
    searcher = SweepSearcher(policy, lambda: None, StopOnFault(), lambda: fit, WorkerFailures())
    first = searcher.suggest("t0")
    assert isinstance(first, dict)
    assert searcher.suggest("t1") is None
    fit = 2
    assert isinstance(searcher.suggest("t1"), dict)
    assert searcher.suggest("t2") is None


def test_when_tune_itself_breaks_off_one_line_says_what_to_do(space, store, monkeypatch):
    class Broken:
        def __init__(self, *args, **settings) -> None:
            pass

        def fit(self) -> None:
            raise RuntimeError("Caught unexpected exception: gone\nmore of it")

    monkeypatch.setattr(sweep.tune, "Tuner", Broken)
    monkeypatch.setattr(sweep, "_trainable", lambda *given: None)  # puts data into Ray's object store
    data = SimpleNamespace(split=SimpleNamespace(digest="data"), folds_digest="folds")
    with pytest.raises(sweep.TuneError, match=r"\(Caught unexpected exception: gone\): the same command"):
        sweep.run_sweep(space, store, data, Session(None, 1, 0, 0, 1, lambda: 1))
