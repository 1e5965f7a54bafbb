"""The memory of Ray's workers, which train many trials, each in a thread of its own."""

import json
import os
import sys

import pytest
import ray

from imet_ray.cluster.node_environment import SUBMITTED, runtime_env

MB = 2**20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_worker_that_trains_many_trials_grows_no_larger_than_one_of_them(shared_ray):
    def grown() -> int:  # inside: the worker does not know this file
        import threading
        from pathlib import Path

        from imet_ray.startup import keep_freed_memory

        def own_memory() -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 2**10

        def trial() -> None:
            _ = [b"x" * MB for _ in range(32)]

        def idle() -> None:
            _ = b"x" * 2**12  # so that it has an arena
            over.wait()

        keep_freed_memory()
        over = threading.Event()
        others = [threading.Thread(target=idle) for _ in range(8 * (os.cpu_count() or 1) + 8)]
        for thread in others:
            thread.start()
        before = own_memory()
        for _ in range(12):
            thread = threading.Thread(target=trial)
            thread.start()
            thread.join()
        over.set()
        return own_memory() - before

    assert ray.get(ray.remote(grown).remote()) < 64 * MB  # 12 x 32, if each trial has memory of its own


def test_workers_of_a_cluster_that_is_joined_have_one_arena_too(monkeypatch):
    monkeypatch.delenv(SUBMITTED, raising=False)
    assert runtime_env()["env_vars"] == {"MALLOC_ARENA_MAX": "1"}


@pytest.mark.parametrize(("job", "added"), [({}, {"MALLOC_ARENA_MAX": "1"}), ({"MALLOC_ARENA_MAX": "4"}, {})])
def test_a_submitted_job_is_added_what_it_does_not_set_itself(monkeypatch, job, added):
    monkeypatch.setenv(SUBMITTED, json.dumps({"runtime_env": {"env_vars": job}}))
    assert runtime_env() == {"env_vars": added}
