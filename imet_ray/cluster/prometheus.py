"""A run's figures as Ray metrics, for Prometheus and Grafana: one actor reads the run directory now and then.

The driver starts the actor and never waits for it: without it a sweep goes on. The dashboard `grafana.json` beside
this file shows what it exports; Ray puts `ray_` before each name.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import ray
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imet_ray.reporting.run_status import STATES, TrialStatus, Watcher
from imet_ray.storage.run_directory import RunDirectory

EVERY_S = 5.0  # Ray itself exports every 10 s
RESTARTS = 3  # of the actor
GAUGES = {  # name -> what it is, and its tags beside `run`
    "imet_best_score": ("Best score on a held-out fold so far", "variant"),
    "imet_trials": ("Trials by state", "state"),
    "imet_images_per_s": ("Pictures per second, of all trials that run", "variant"),
    "imet_gpu_bytes": ("GPU memory that the largest of the trials that run has allocated", "variant"),
}
COUNTERS = {"imet_wait_seconds_total": ("Seconds in which trials waited for data", "variant")}


def figures(trials: Sequence[TrialStatus]) -> dict[tuple[str, str], float]:
    """All metrics of a run by name and by the value of the metric's own tag: counters as totals, gauges as of now."""
    found: dict[tuple[str, str], float] = {
        ("imet_trials", state): sum(trial.state == state for trial in trials) for state in STATES
    }
    for variant in sorted({trial.spec.variant.name for trial in trials}):
        own = [trial for trial in trials if trial.spec.variant.name == variant]
        best = max((trial.best for trial in own if trial.best is not None), default=None)
        if best is not None:
            found["imet_best_score", variant] = best
        last = [trial.rows[-1] for trial in own if trial.state == "runs" and trial.rows]
        found["imet_images_per_s", variant] = sum(row["images_per_s"] for row in last)
        found["imet_gpu_bytes", variant] = max((row.get("gpu_bytes", 0) for row in last), default=0)
        found["imet_wait_seconds_total", variant] = sum(
            row.get("wait_s", 0.0) for trial in own for row in trial.rows
        )
    return found


class Exporter:
    """The actor. All that it knows comes from the run directory, so a new one continues where a dead one stopped."""

    def __init__(self, store: RunDirectory) -> None:
        self.watcher = Watcher(store)
        self.run = store.root.name
        self.gauges = {name: Gauge(name, text, ("run", tag)) for name, (text, tag) in GAUGES.items()}
        self.counters = {name: Counter(name, text, ("run", tag)) for name, (text, tag) in COUNTERS.items()}
        self.counted: dict[tuple[str, str], float] = {}
        threading.Thread(target=self._loop, daemon=True).start()

    def __repr__(self) -> str:
        return f"metrics of {self.run}"

    def _loop(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._export()
            except Exception as error:  # such as a disk that is away for a while
                # to the actor's log
                print(f"{type(error).__name__}: {error}", flush=True)
            # with very many trials it takes a twentieth of a core
            time.sleep(max(EVERY_S, 20 * (time.monotonic() - began)))

    def _export(self) -> None:
        self.watcher.store.fetch()
        trials, _ = self.watcher.trials(time.time())
        for (metric, tag), value in figures(trials).items():
            if metric in GAUGES:
                self.gauges[metric].set(float(value), {"run": self.run, GAUGES[metric][1]: tag})
                continue
            more = value - self.counted.get((metric, tag), 0.0)
            if more > 0:  # less: an epoch was lost
                self.counters[metric].inc(more, {"run": self.run, COUNTERS[metric][1]: tag})
                self.counted[metric, tag] = value


@contextlib.contextmanager
def exported(store: RunDirectory) -> Iterator[None]:
    """Export the run's figures meanwhile, on the driver's node: it must keep no other node from going idle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=RESTARTS)(Exporter).options(scheduling_strategy=here)
    handle = actor.remote(store)
    try:
        yield
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(handle)
