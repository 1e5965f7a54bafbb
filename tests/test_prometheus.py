"""A sweep's figures as Ray metrics, read where Prometheus would read them; the dashboard that draws them."""

import json
import os
import re
import signal
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from ray.util.state import list_actors
from test_run_status import ROW, unfinished

from imet_ray.cluster import prometheus as gauges
from imet_ray.cluster.prometheus import COUNTERS, GAUGES, exported, figures
from imet_ray.reporting.run_status import Watcher
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory

PATIENCE_S = 90
GRAFANA = Path(gauges.__file__).with_name("grafana.json")


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "seen")


def fill(store: RunDirectory, make_spec) -> None:
    """Two variants: of one two trials run, of the other one is complete."""
    row = ROW | {"wait_s": 0.5, "gpu_bytes": 7_000}
    unfinished(store, make_spec(name="a"), [row, row | {"epoch": 2, "score": 0.3, "images_per_s": 60.0}])
    unfinished(store, make_spec(name="a", fold=1), [row | {"gpu_bytes": 9_000}])
    spec = make_spec(name="b")
    trial = unfinished(store, spec, [row | {"score": 0.6, "wait_s": 2.25}])
    write_result(trial, TrialResult(trial_id=spec.trial_id, status="complete", score=0.6, epochs=1))


def found(store: RunDirectory) -> dict[tuple[str, str], float]:
    trials, unreadable = Watcher(store).trials(time.time())
    assert not unreadable
    return figures(trials)


def test_figures_are_those_of_the_trials(store, make_spec):
    fill(store, make_spec)
    assert found(store) == {
        ("imet_trials", "complete"): 1,
        ("imet_trials", "stopped"): 0,
        ("imet_trials", "failed"): 0,
        ("imet_trials", "runs"): 2,
        ("imet_trials", "silent"): 0,
        ("imet_best_score", "a"): 0.4321,
        ("imet_images_per_s", "a"): 110.0,
        ("imet_gpu_bytes", "a"): 9_000,
        ("imet_wait_seconds_total", "a"): 1.5,
        ("imet_best_score", "b"): 0.6,
        ("imet_images_per_s", "b"): 0,
        ("imet_gpu_bytes", "b"): 0,
        ("imet_wait_seconds_total", "b"): 2.25,
    }


def test_a_trial_without_an_epoch_has_no_f2_yet(store, make_spec):
    unfinished(store, make_spec(name="a"), [])
    assert ("imet_best_score", "a") not in found(store)
    assert found(store)["imet_trials", "runs"] == 1


def test_the_dashboard_draws_all_metrics_and_no_others():
    drawn = {
        name
        for panel in json.loads(GRAFANA.read_text())["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(imet_\w+)", target["expr"])
    }
    assert drawn == GAUGES.keys() | COUNTERS.keys()


def scraped() -> dict[tuple[str, str, str], float]:
    """What Ray's own endpoint says of the run's metrics: by name, run and the metric's own tag."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = {}
    for line in lines:
        if match := re.fullmatch(r"ray_(imet_\w+)\{(.*)\} (\S+)", line):
            name, labels = match[1], dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            tag = (GAUGES | COUNTERS)[name][1]
            if labels["run"] == "seen":  # not of the runs of other tests
                values[name, labels["run"], labels[tag]] = float(match[3])
    return values


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if seen := condition():
            return seen
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {PATIENCE_S} s")


def exporter() -> object | None:
    """The actor, while it lives."""
    address = ray.get_runtime_context().gcs_address
    alive = list_actors(address, detail=True, filters=[("state", "=", "ALIVE")])
    return next((actor for actor in alive if actor.class_name == "Exporter"), None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's, about the machine
def test_prometheus_finds_the_figures_at_rays_endpoint_also_after_the_actor_was_killed(
    shared_ray, store, make_spec
):
    fill(store, make_spec)
    expected = {(metric, store.root.name, tag): value for (metric, tag), value in found(store).items()}
    began = time.monotonic()
    with exported(store):
        assert time.monotonic() - began < 1.0  # nobody waits for it
        wait_for(lambda: scraped() == expected, "figures at the endpoint")
        actor = wait_for(exporter, "actor")
        assert actor.repr_name == "metrics of seen"
        assert not actor.required_resources
        assert actor.node_id == ray.get_runtime_context().get_node_id()
        os.kill(actor.pid, signal.SIGKILL)
        unfinished(store, make_spec(name="a", fold=2), [ROW | {"score": 0.75}])
        key = "imet_best_score", "seen", "a"
        wait_for(lambda: scraped().get(key) == 0.75, "figures of a new actor")
    wait_for(lambda: exporter() is None, "end of the actor")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_store_that_cannot_be_read_ends_nothing(shared_ray, tmp_path):
    (tmp_path / "trials").write_text("a file where a folder should be")
    with exported(RunDirectory(tmp_path)):
        wait_for(exporter, "actor")
        assert ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote())
        time.sleep(2)
        assert exporter() is not None
