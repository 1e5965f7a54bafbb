"""How many cores this process may use, whoever limits them."""

import math
import os
from pathlib import Path

import pytest

import imet_ray
from imet_ray import cores
from imet_ray.cores import cgroup_quota, usable_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 128 cores without limits: its cgroup mount."""
    monkeypatch.setattr(cores, "_mask", lambda: 128)
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    return tmp_path


def limit(machine: Path, own: str, files: dict[str, str]) -> None:
    (machine / "own").write_text(own)
    for name, content in files.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(content)


V2 = "0::/slurm/job_7\n"
V1 = "11:memory:/docker/77\n4:cpu,cpuacct:/docker/77\n0::/docker/77\n"
CGROUPS = {
    "half a core, version 2": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "two and a half": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, 128),
    "a group above": (V2, {"slurm/cpu.max": "300000 100000", "slurm/job_7/cpu.max": "max 100000"}, 3),
    "beside version 1": ("1:cpu:/\n" + V2, {"unified/slurm/job_7/cpu.max": "400000 100000"}, 4),
    "version 1": (
        V1,
        {"cpu/docker/77/cpu.cfs_quota_us": "400000", "cpu/docker/77/cpu.cfs_period_us": "100000"},
        4,
    ),
    "version 1 from within a container": (
        V1,
        {"cpu,cpuacct/cpu.cfs_quota_us": "600000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        6,
    ),
    "version 1 without a limit": (
        V1,
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        128,
    ),
    "a file that cannot be understood": ("0::/\n", {"cpu.max": "\n"}, 128),
}


@pytest.mark.parametrize(("own", "files", "expected"), CGROUPS.values(), ids=CGROUPS)
def test_a_quota_is_counted_in_whole_cores_and_at_least_one(machine, own, files, expected):
    limit(machine, own, files)
    assert usable_cores({}) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}, 1),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "256"}, 128),  # of another machine
        ({"SLURM_CPUS_PER_TASK": ""}, 128),
        ({}, 128),
    ],
)
def test_a_slurm_job_has_the_cores_that_it_was_given(machine, environment, expected):
    assert usable_cores(environment) == expected


def test_the_fewest_of_all_limits_counts(machine):
    limit(machine, "0::/\n", {"cpu.max": "800000 100000"})
    assert usable_cores({"SLURM_CPUS_ON_NODE": "16"}) == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="an affinity mask is Linux's")
def test_an_affinity_mask_is_a_limit():
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert usable_cores({}) == 1
    finally:
        os.sched_setaffinity(0, mask)


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "none", tmp_path) == math.inf


def test_nothing_else_counts_cores():
    root = Path(imet_ray.__file__).parent
    counters = ("cpu_count", "sched_getaffinity")
    folders = (root, root.parent / "kernel_builder", root.parent / "benchmarks")
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path.name for path in sources if any(name in path.read_text() for name in counters)] == [
        "cores.py"
    ]
