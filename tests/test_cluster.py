"""What adapts the sweep to Ray, without a Ray: slots and early stopping."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from bare_spec import bare_spec
from ray.tune.schedulers import TrialScheduler

import imet_ray
from imet_ray.cluster import own_ray, session
from imet_ray.cluster.session import Session, _fit
from imet_ray.cluster.sweep import SearchOnlyAsha
from imet_ray.cluster.tune_searcher import StopOnFault
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.errors import ConfigError
from imet_ray.search_space import Resources, SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 2
asha: {grace_epochs: 1, factor: 2}
base: {epochs: 4}
variants: [{name: a, architecture: resnet18}, {name: b, architecture: resnet34}]
search: {dropout: {low: 0.0, high: 0.5}}
"""
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    (tmp_path / "space.yml").write_text(SPACE)
    return read_space(tmp_path / "space.yml", check=check_recipe)


def fit(
    cpus_per_trial=1.0,
    gpus_per_trial="auto",
    loader_workers="auto",
    total=(2, 0),
    workers=1,
    batch_norm="local",
    **more,
) -> Session:
    wanted = Resources(
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        loader_workers=loader_workers,
        workers_per_trial=workers,
        batch_norm=batch_norm,
    )
    how = {"concurrency": None, "joined": False} | more
    return _fit(wanted, lambda: {"CPU": float(total[0]), "GPU": float(total[1]), "memory": 1e9}, **how)


@pytest.mark.parametrize(
    ("cpus_per_trial", "gpus_per_trial", "total", "slots"),
    [
        (1, "auto", (2, 0), 2),
        (3, "auto", (8, 0), 2),
        (0.5, "auto", (2, 0), 4),
        (0.1, "auto", (2, 0), 20),  # 2 // 0.1 is 19
        (1, "auto", (16, 2), 2),
        (4, "auto", (6, 2), 1),
        (1, 0, (16, 2), 16),
        (1, 0.5, (16, 2), 4),
        (1, 0.1, (16, 1), 10),
        (1, 0.6, (16, 2), 2),  # a fraction lies on one GPU
    ],
)
def test_as_many_trials_run_at_once_as_fit(cpus_per_trial, gpus_per_trial, total, slots):
    assert fit(cpus_per_trial, gpus_per_trial, total=total).slots == slots


@pytest.mark.parametrize(
    ("gpus_per_trial", "gpus", "expected"), [("auto", 0, 0.0), ("auto", 4, 1.0), (0, 4, 0.0), (0.25, 4, 0.25)]
)
def test_a_trial_gets_a_gpu_where_there_are_any_unless_told_otherwise(gpus_per_trial, gpus, expected):
    assert fit(gpus_per_trial=gpus_per_trial, total=(8, gpus)).gpus_per_trial == expected


@pytest.mark.parametrize(
    ("workers", "gpus", "total", "slots"),
    [(2, "auto", (2, 0), 1), (2, "auto", (16, 8), 4), (3, 0.5, (16, 2), 1), (4, 1, (16, 9), 2)],
)
def test_a_trial_of_several_workers_takes_as_many_places(workers, gpus, total, slots):
    assert fit(gpus_per_trial=gpus, total=total, workers=workers).slots == slots
    with pytest.raises(ConfigError, match="it needs 17 CPUs and .* workers_per_trial"):
        fit(gpus_per_trial=gpus, total=total, workers=17)


def test_batch_norm_over_all_workers_needs_gpus():
    assert fit(total=(8, 2), workers=2, batch_norm="sync").slots == 1
    with pytest.raises(ConfigError, match="batch_norm is sync, and there are no GPUs"):
        fit(total=(8, 0), workers=2, batch_norm="sync")


def test_where_no_trial_fits_one_line_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"^no trial fits: it needs .* there are 2 and 0: lower [^\n]*$"):
        fit(1, 1)
    assert fit(1, 1, joined=True).slots == 1  # the cluster may grow


@pytest.mark.parametrize(("cpus", "workers", "gets"), [(4, 1, 2.0), (2, 1, 2.0), (4, 2, 1.0), (0.5, 1, 0.5)])
def test_a_trial_gets_no_more_cpus_than_this_machine_has(cpus, workers, gets):
    found = fit(cpus, total=(2, 0), workers=workers)
    assert found.cpus_per_trial == gets
    assert found.slots >= 1
    assert (
        fit(cpus, total=(2, 0), workers=workers, joined=True).cpus_per_trial == cpus
    )  # the cluster may grow


@pytest.mark.parametrize(("concurrency", "joined", "slots"), [(1, False, 1), (9, False, 4), (9, True, 9)])
def test_concurrency_is_a_cap_unless_the_cluster_may_grow(concurrency, joined, slots):
    assert fit(total=(4, 0), concurrency=concurrency, joined=joined).slots == slots


def test_a_cluster_that_grows_gets_more_trials_and_one_of_our_own_is_what_it_is():
    total = {"CPU": 2.0}
    how = {"concurrency": None}
    joined = session._fit(Resources(), lambda: total, **how, joined=True)
    ours = session._fit(Resources(), lambda: total, **how, joined=False)
    total["CPU"] = 6.0
    assert (joined.capacity(), ours.capacity()) == (6, 2)
    total["CPU"] = 0.0  # all nodes lost: it may grow again
    assert joined.capacity() == 1


@pytest.mark.parametrize("slow", [session.STARTS - 1, session.STARTS])
def test_a_ray_that_is_slow_to_start_is_tried_again_and_then_refused_in_one_line(monkeypatch, caplog, slow):
    tried = []

    def start(**how: object) -> None:
        tried.append(how["address"])
        if len(tried) <= slow:
            raise Exception("The current node timed out during startup. This could happen")
        raise ConnectionError("no room")

    monkeypatch.setattr(ray, "init", start)
    why = "no room" if slow < session.STARTS else "The current node timed out"
    with (
        pytest.raises(ConfigError, match=f"^Ray does not start on this machine: {why}"),
        session.ray_session(Resources()),
    ):
        pass
    assert tried == ["local"] * session.STARTS
    assert len(caplog.records) == session.STARTS - 1


def test_sigterm_while_ray_starts_is_an_interruption_as_at_any_other_time(monkeypatch):
    def start(**how: object) -> None:
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(KeyboardInterrupt), session.ray_session(Resources()):
        pass


@pytest.mark.parametrize("kind", [OSError, KeyError, TypeError, AssertionError, Exception])
def test_whatever_ray_raises_at_its_start_is_one_line_with_its_last_words(monkeypatch, kind):
    def start(**how: object) -> None:
        raise kind("several things\n\n  went wrong: no room")

    monkeypatch.setattr(ray, "init", start)
    said = r"^Ray does not start on this machine: [^\n]*went wrong: no room'?$"
    with pytest.raises(ConfigError, match=said), session.ray_session(Resources()):
        pass


def test_what_does_not_fit_on_this_machine_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(session, "resources_here", lambda: {"CPU": 1.0, "GPU": 0.0})
    with (
        pytest.raises(ConfigError, match="it needs 1 CPUs and 1 GPUs, there are 1 and 0"),
        session.ray_session(Resources(gpus_per_trial=1)),
    ):
        pass


def test_ray_is_given_the_cores_that_this_process_may_use(monkeypatch):
    told = {}

    def start(**how: object) -> None:
        told.update(how)
        raise OSError("enough")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(own_ray, "usable_cores", lambda: 3)
    with pytest.raises(ConfigError, match="enough"), session.ray_session(Resources()):
        pass
    assert told["num_cpus"] == 3
    assert Path(imet_ray.__file__).parents[1] == session.CHECKOUT
    assert str(session.CHECKOUT) in told["job_config"]._py_driver_sys_path  # wherever we were started


def test_a_start_of_ray_without_an_end_ends_with_one_line(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(session, "START_S", 0.05)
    monkeypatch.setattr(ray, "init", lambda **options: ended.wait(5))
    assert session._start_or_join(None, "", {})
    assert capsys.readouterr().err.startswith("error: Ray has not started in 0 s: ")


def test_a_ray_that_another_sweep_has_for_itself_is_not_joined(monkeypatch):
    nodes = [{"Labels": {}}, {"Labels": {own_ray.OWNER: "4711"}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    with pytest.raises(
        ConfigError, match=r"127.0.0.1:6379 belongs to process 4711, another sweep, and ends with it"
    ):
        session.refuse_private()
    nodes.pop()
    session.refuse_private()


@pytest.mark.parametrize(
    ("cpus", "gpus", "given", "threads", "workers"),
    [
        (1, 0, "auto", 1, 0),
        (4, 0, "auto", 4, 0),
        (4, 1, "auto", 4, 3),
        (0.5, 1, "auto", 1, 0),
        (4, 1, 7, 4, 7),
    ],
)
def test_a_trials_cores_compute_or_load_pictures_beside_a_gpu(cpus, gpus, given, threads, workers):
    found = fit(cpus, gpus, given, total=(8, 1))
    slot = found.slot(RunDirectory(Path()))
    assert (slot.threads, slot.loader_workers) == (threads, workers)


def tune_trial(name, variant, fold=0, phase="search", **hparams) -> SimpleNamespace:
    """What Tune's trials have that is read here."""
    spec = bare_spec(variant, fold, **hparams)
    config = {"phase": phase, "spec": spec.model_dump_json()}
    deaths = {"error_file": None, "last_result": None, "num_failures": 1, "max_failures": 3}
    return SimpleNamespace(trial_id=name, config=config, **deaths)


def judge(asha, trial, epoch, f2) -> str:
    return asha.on_trial_result(None, trial, {"epoch": epoch, "score": f2})


def after_a_good_one(space) -> SearchOnlyAsha:
    """ASHA that has seen a searching trial of variant a on fold 0 go well to its end."""
    asha = SearchOnlyAsha(space, WorkerFailures())
    good = tune_trial("good", space.variants[0])
    asha.on_trial_add(None, good)
    assert [judge(asha, good, epoch, 0.9) for epoch in (1, 2, 3, 4)] == [CONTINUE] * 4
    return asha


@pytest.mark.parametrize("epoch", [1, 2])  # where the rungs are, the last epoch apart
def test_a_searching_trial_behind_its_rung_is_stopped(space, epoch):
    asha, late = after_a_good_one(space), tune_trial("late", space.variants[0])
    asha.on_trial_add(None, late)
    assert [judge(asha, late, early, 0.95) for early in range(1, epoch)] == [CONTINUE] * (epoch - 1)
    assert judge(asha, late, epoch, 0.1) == STOP


def test_a_trial_whose_worker_died_is_judged_again(space):
    asha, late = after_a_good_one(space), tune_trial("late", space.variants[0])
    asha.on_trial_add(None, late)
    asha.on_trial_error(None, late)
    asha.on_trial_add(None, late)
    assert judge(asha, late, 1, 0.1) == STOP


@pytest.mark.parametrize(
    ("variant", "fold", "phase"), [(1, 0, "search"), (0, 1, "search"), (0, 0, "promote")]
)
def test_other_variants_other_folds_and_promoted_trials_are_not_measured_by_a_rung(
    space, variant, fold, phase
):
    asha = after_a_good_one(space)
    trial = tune_trial("t", space.variants[variant], fold, phase)
    asha.on_trial_add(None, trial)
    assert [judge(asha, trial, epoch, 0.1) for epoch in (1, 2, 3, 4)] == [CONTINUE] * 4


def test_the_last_epoch_is_never_stopped(space):
    asha, late = after_a_good_one(space), tune_trial("late", space.variants[0])
    asha.on_trial_add(None, late)
    assert [judge(asha, late, early, 0.95) for early in (1, 2, 3)] == [CONTINUE] * 3
    assert judge(asha, late, 4, 0.1) == CONTINUE


def test_an_epoch_that_ends_the_trial_early_is_not_stopped(space):
    asha, spent = after_a_good_one(space), tune_trial("spent", space.variants[0])
    asha.on_trial_add(None, spent)
    told = {"epoch": 1, "score": 0.1, "ended": True}
    assert asha.on_trial_result(None, spent, told) == CONTINUE


def test_the_last_epoch_is_that_of_the_trials_own_hparams(space):
    asha, long = SearchOnlyAsha(space, WorkerFailures()), tune_trial("long", space.variants[0], epochs=8)
    asha.on_trial_add(None, long)
    assert [judge(asha, long, epoch, 0.9) for epoch in range(1, 9)] == [CONTINUE] * 8  # it leads


def test_without_asha_nothing_is_stopped(space):
    asha = after_a_good_one(space.model_copy(update={"asha": None}))
    late = tune_trial("late", space.variants[0])
    asha.on_trial_add(None, late)
    assert judge(asha, late, 1, 0.0) == CONTINUE


def test_a_report_without_an_epoch_stops_nothing(space):
    asha, late = after_a_good_one(space), tune_trial("late", space.variants[0])
    asha.on_trial_add(None, late)
    assert asha.on_trial_result(None, late, {"failed": "NaN"}) == CONTINUE


def test_a_fault_of_the_set_up_stops_every_trial_and_the_first_is_kept():
    stopper = StopOnFault()
    assert not stopper("t", {"score": 0.5})
    assert not stopper.stop_all()
    assert stopper("t", {"fatal": "disk full"})
    assert stopper("other", {"score": 0.5, "fatal": "second"})
    assert stopper.stop_all()
    assert stopper.fault == "disk full"
