"""The live table of a sweep: its arithmetic and what a person reads of it; no Ray is started."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.progress import SweepProgress
from imet_ray.cluster.session import Session
from imet_ray.cluster.worker_failures import WorkerFailures
from imet_ray.commands.sweep import print_leaderboard
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 2
base: {epochs: 4}
variants: [{name: a, architecture: resnet18}, {name: b, architecture: resnet34}]
search: {dropout: {low: 0.0, high: 0.5}}
"""


@pytest.fixture
def make_space(tmp_path):
    """The space, with settings of one's own."""

    def _make(**settings) -> SearchSpace:
        (tmp_path / "space.yml").write_text(SPACE)
        return read_space(tmp_path / "space.yml", settings, check=check_recipe)

    return _make


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


class Sweep:
    """A sweep of which each event is told to the progress at a time of our own."""

    def __init__(self, space, store, monkeypatch, slots=2) -> None:
        self.now = 1000.0
        monkeypatch.setattr("imet_ray.cluster.progress.time", SimpleNamespace(time=lambda: self.now))
        self.policy = Policy(space, store, "data", "folds")
        self.progress = SweepProgress(
            self.policy, Session("http://127.0.0.1:8265", 1.0, 0.0, 0, slots, lambda: slots), WorkerFailures()
        )
        self.progress.__enter__()

    def start(self, after, asked=0.0) -> SimpleNamespace:
        self.now += after
        given = self.policy.next()
        spec = given.spec
        config = {"phase": given.phase, "spec": spec.model_dump_json(), "asked": asked}
        trial = SimpleNamespace(trial_id=f"tune-{spec.trial_id}", config=config, spec=spec)
        self.progress.on_trial_start(1, [], trial)
        return trial

    def epoch(self, trial, epoch, after, score=0.5) -> None:
        self.now += after
        row = {"epoch": epoch, "score": score, "images_per_s": 123.4, "trial_seconds": 10.0}
        self.progress.on_trial_result(1, [], trial, row)

    def end(self, trial, after, **result) -> None:
        self.now += after
        ours = trial.spec.trial_id
        write_json(self.policy.store.trial(ours).spec, trial.spec.model_dump(mode="json"))
        settings = {"status": "complete", "score": 0.5, "epochs": 4} | result
        write_result(self.policy.store.trial(ours), TrialResult(trial_id=ours, **settings))
        self.policy.done(ours)
        self.progress.on_trial_complete(1, [], trial)

    def lose(self, trial, error: Path) -> None:
        failed = {"error_file": str(error), "num_failures": 1, "max_failures": 3, "last_result": {"epoch": 1}}
        lost = SimpleNamespace(trial_id=trial.trial_id, **failed)
        self.progress.worker_failures.note(lost)
        self.progress.on_trial_recover(1, [], lost)

    def text(self) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(self.progress._view())
        return console.file.getvalue()


def test_overhead_is_the_time_that_a_slot_was_held_less_training(make_space, store, monkeypatch):
    sweep = Sweep(make_space(), store, monkeypatch, slots=1)
    first = sweep.start(after=2)  # seconds, of the workers' start
    sweep.epoch(first, 1, after=11)
    sweep.epoch(first, 2, after=10)
    sweep.end(first, after=1)  # held 22, trained 20
    second = sweep.start(after=3)
    sweep.epoch(second, 1, after=12)
    sweep.end(second, after=0)  # held 15, trained 10
    assert sweep.progress.ended == 2
    assert sweep.progress.overhead_s == pytest.approx((4 + 5) / 2)
    assert sweep.progress.starts_s == pytest.approx([3])  # 13 until the first epoch had ended, which took 10
    sweep.progress.on_trial_complete(1, [], second)  # told twice
    assert sweep.progress.ended == 2
    waited = sweep.start(after=100, asked=sweep.now + 99)  # there was nothing to do for 99 s
    sweep.epoch(waited, 1, after=10)
    sweep.end(waited, after=0)
    assert sweep.progress.overhead_s == pytest.approx((4 + 5 + 1) / 3)


@pytest.mark.parametrize(
    ("before", "now", "done"),
    [
        ({}, {}, 0),
        ({}, {}, 2),
        ({}, {}, 5),
        ({"search_folds": [0, 2]}, {"search_folds": [0, 2]}, 0),
        ({"search_folds": [0, 2]}, {"search_folds": [0, 2]}, 4),
        ({}, {"trials_per_variant": 1}, 5),
    ],
)
def test_the_time_left_is_that_of_all_trials_to_come(make_space, store, monkeypatch, before, now, done):
    sweep = Sweep(make_space(**before), store, monkeypatch)
    for _ in range(done):
        sweep.end(sweep.start(after=1), after=1)
    sweep = Sweep(make_space(**now), store, monkeypatch)  # the next sitting
    assert sweep.progress._time_left() is None  # nothing was measured
    trial = sweep.start(after=0)
    sweep.epoch(trial, 1, after=0)
    left = sweep.progress._time_left()
    sweep.end(trial, after=0)
    to_come = 0
    while not sweep.policy.next_is_last():
        sweep.end(sweep.start(after=0), after=0)
        to_come += 1
    assert left == (3 + 4 * to_come) * 10.0 / 2  # epochs of ten seconds on two slots


def test_the_time_left_counts_on_as_many_epochs_as_trials_took_that_ended_early(
    make_space, store, monkeypatch
):
    sweep = Sweep(make_space(), store, monkeypatch, slots=1)
    first = sweep.start(after=0)  # of a, of which there are three more; of b there are four
    sweep.epoch(first, 1, after=10)
    assert sweep.progress._time_left() == 10.0 * (3 + 3 * 4 + 4 * 4)
    sweep.epoch(first, 2, after=10)
    sweep.end(first, after=0, epochs=2)  # its rate is spent
    assert sweep.progress._time_left() == 10.0 * (3 * 2 + 4 * 4)


def test_the_table_shows_what_runs_and_how_far_it_is(make_space, store, monkeypatch):
    sweep = Sweep(make_space(), store, monkeypatch)
    trial = sweep.start(after=0)
    sweep.epoch(trial, 3, after=30, score=0.61234)
    rows = [line.split() for line in sweep.text().splitlines()]
    assert rows[0] == ["variant", "phase", "fold", "epoch", "F2", "images/s", "left"]
    dropout = f"dropout={trial.spec.hparams['dropout']:.3g}"
    assert [dropout, "search", "0", "3/4", "0.6123", "123", "0:10"] in rows
    assert ["a", "searched", "0/2,", "folds", "0/3"] in rows
    assert "0:30 so far" in sweep.text()
    assert "dashboard http://127.0.0.1:8265" in sweep.text()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"score": 0.61234}, "F2 0.6123"),
        ({"status": "stopped", "score": 0.5, "epochs": 2}, "F2 0.5000 (stopped after epoch 2)"),
        ({"status": "failed", "score": None, "reason": "[/tmp] is full"}, "FAILED: [/tmp] is full"),
    ],
)
def test_a_trial_that_ends_is_one_line(make_space, store, monkeypatch, capsys, result, expected):
    sweep = Sweep(make_space(), store, monkeypatch)
    trial = sweep.start(after=5)
    sweep.end(trial, after=60, **result)
    hparams = f"dropout={trial.spec.hparams['dropout']:.3g}"
    assert capsys.readouterr().err == f"1:05  a  search fold 0  {expected}  {hparams}\n"


def test_below_theprint_leaderboard_a_failures_reason_is_read_word_for_word(
    make_space, store, monkeypatch, capsys
):
    reason = "expected one of [cpu, cuda] in '[/tmp/x]'"  # rich would take both for markup
    sweep = Sweep(make_space(), store, monkeypatch)
    spec = sweep.start(after=0).spec
    write_json(store.trial(spec.trial_id).spec, spec.model_dump(mode="json"))
    result = TrialResult(trial_id=spec.trial_id, status="failed", reason=reason)
    write_result(store.trial(spec.trial_id), result)
    print_leaderboard(SimpleNamespace(experiment=SimpleNamespace(space=make_space()), store=store))
    assert reason in " ".join(capsys.readouterr().out.split())  # lines are wrapped


def test_a_lost_worker_is_one_line_with_its_cause(make_space, store, monkeypatch, capsys, tmp_path):
    sweep = Sweep(make_space(), store, monkeypatch)
    trial = sweep.start(after=1)
    sweep.epoch(trial, 1, after=10)
    (tmp_path / "error.txt").write_text("The actor died because its node has died.\n\tip: 10.0.0.7")
    sweep.lose(trial, tmp_path / "error.txt")
    lines = [line for line in capsys.readouterr().err.splitlines() if "interrupted" in line]
    assert len(lines) == 1
    assert "interrupted after epoch 1: its node 10.0.0.7 is lost; another goes on" in lines[0]
