"""How many CPU cores this process may use: what loads, packs, blends and sweeps asks here, and counts none itself."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

OF_A_JOB = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Whole cores, at least 1: the fewest of the affinity mask, the quotas of cgroups and a SLURM job's cores.

    A container with half a core has 1.
    """
    limits = [float(_mask()), cgroup_quota(OWN_CGROUPS, CGROUPS)]
    limits += [float(environment[name]) for name in OF_A_JOB if environment.get(name, "").isdecimal()]
    return max(1, int(min(limits)))


def _mask() -> int:
    """Cores that the scheduler may put this process on."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13: it knows `python -X cpu_count` too
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(own: Path, mount: Path) -> float:
    """Cores' worth of time that control groups leave this process; infinity without a limit.

    Args:
        own: the file that names the process's groups, a line `number:controllers:path` for each hierarchy.
        mount: where the hierarchies are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            hierarchies = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            hierarchies = [mount / "cpu", mount / controllers]
        else:
            continue
        # A container may see its own group as the root, under the name that the host gave it: all levels are asked.
        levels = [Path(group), *Path(group).parents]
        quotas += [_quota(root / level.relative_to("/")) for root in hierarchies for level in levels]
    return min(quotas)


def _quota(group: Path) -> float:
    """The limit of one control group, of version 2 or 1."""
    try:
        if (limit := group / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 and float(period) > 0 else math.inf
    except (OSError, ValueError):  # no limit is "max"
        return math.inf
