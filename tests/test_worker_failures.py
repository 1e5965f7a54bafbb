"""What befell a worker, in one line, and how often it may; the texts are those of Ray 2.60."""

from types import SimpleNamespace

import pytest

from imet_ray.cluster import worker_failures as deaths
from imet_ray.cluster.worker_failures import NODE_FAILURES, WORKER_FAILURES, WorkerFailures, cause_of

HEAD = """The actor died unexpectedly before finishing this task.
	class_name: ImplicitFunc
	actor_id: cb5b53d5c0e2e1ff797d619001000000
	pid: 14046
	namespace: 44c0f0d8-ea7a-4ccd-868c-294b620ce66a
	ip: 10.0.0.2
"""
KILLED = f"{HEAD}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
LOST = f"{HEAD}The actor died because its node has died. Node Id: 29b9\n\tthe actor's node was terminated unexpectedly"
TAKEN = "The actor died unexpectedly before finishing this task.\n\tclass_name:\n\tactor_id: e5deac9f8bb6"
MEMORY = "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.3, ID: 29b9)"


@pytest.fixture
def trial(tmp_path):
    """As Tune keeps it; `die` is what Tune does before it tells."""
    file = tmp_path / "error.txt"
    found = SimpleNamespace(
        trial_id="t", error_file=str(file), num_failures=0, max_failures=WORKER_FAILURES, last_result={}
    )

    def die(text, epoch=0) -> bool:
        found.num_failures += text != TAKEN
        found.last_result = {"epoch": epoch}
        with file.open("a") as error:
            error.write(f"Failure # {found.num_failures} (occurred at 2026-11-26_03-02-02)\n{text}\n")
        return found.num_failures <= found.max_failures  # goes on

    found.die = die
    return found


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KILLED, "its worker on 10.0.0.2 died"),
        (LOST, "its node 10.0.0.2 is lost"),
        (TAKEN, "its worker died"),  # all that is told
        (
            "The actor 758e is unavailable: The actor is temporarily unavailable",
            "no answer from its worker",
        ),
        (MEMORY, "out of memory: Ray ended its worker on 10.0.0.3 before the machine ran out"),
        ("Traceback\n  File\nValueError: strange", "ValueError: strange"),
        ("", "its worker died"),
    ],
)
def test_the_cause_of_a_death_is_one_line(error, cause):
    assert cause_of(error) == cause


def test_the_newest_death_is_told(trial):
    found = WorkerFailures()
    for error in (KILLED, MEMORY):
        trial.die(error)
        found.note(trial)
    assert found.cause("t").startswith("out of memory")


def test_a_trial_that_does_not_come_on_is_given_up(trial):
    found, went_on = WorkerFailures(), []
    for _ in range(WORKER_FAILURES + 1):
        went_on.append(trial.die(MEMORY))
        found.note(trial)
        assert (found.reason("t") is None) == went_on[-1]
    assert went_on == [True] * WORKER_FAILURES + [False]
    assert found.reason("t").startswith(
        f"{WORKER_FAILURES + 1} times without an epoch in between: out of memory"
    )


def test_a_trial_that_came_on_since_its_last_chance_is_not_given_up(trial):
    found = WorkerFailures()
    for _ in range(WORKER_FAILURES):
        trial.die(KILLED)
        found.note(trial)
    assert not trial.die(KILLED, epoch=1)  # Tune's view
    found.note(trial)
    assert found.reason("t") is None


def test_a_trial_that_comes_on_between_deaths_is_not_given_up(trial):
    found = WorkerFailures()
    for epoch in range(3 * WORKER_FAILURES):
        assert trial.die(KILLED, epoch)
        found.note(trial)
        assert found.reason("t") is None


def test_lost_nodes_do_not_count_against_a_trial(trial):
    found = WorkerFailures()
    for error in (LOST, TAKEN) * WORKER_FAILURES:
        assert trial.die(error)
        found.note(trial)
    assert found.cause("t") == "its node was taken back"


def test_a_trial_that_takes_its_nodes_down_is_given_up_in_the_end(trial):
    found, deaths = WorkerFailures(), 0
    while trial.die(LOST):
        found.note(trial)
        deaths += 1
        assert deaths < 100
    assert deaths >= NODE_FAILURES


def test_what_a_trials_own_line_tells_is_not_told_by_ray_again(capsys, monkeypatch):
    lost = (
        "\x1b[33mThe node with node id: 29b9 and address: 10.0.0.2 has been marked dead\n(1) raylet crashes"
    )
    wait = (
        "The following resource request cannot be scheduled right now: {'CPU': 4.0}.\nThis is likely due to"
    )
    worker = deaths.ray._private.worker
    monkeypatch.setattr(worker, "print_to_stdstream", None)
    deaths.quiet_ray()
    published = {"lines": [lost, wait], "pid": "raylet", "is_err": False}
    worker.print_to_stdstream(published, ignore_prefix=False)  # of a pass without trials
    assert capsys.readouterr().err.splitlines() == [
        "ray: The node with node id: 29b9 and address: 10.0.0.2 has been marked dead",
        "ray: The following resource request cannot be scheduled right now: {'CPU': 4.0}.",
    ]
    deaths.quiet_ray(deaths.TOLD_BY_TRIAL)
    worker.print_to_stdstream(published, ignore_prefix=False)
    printed = capsys.readouterr()
    assert printed.err == "ray: The following resource request cannot be scheduled right now: {'CPU': 4.0}.\n"
    assert not printed.out
