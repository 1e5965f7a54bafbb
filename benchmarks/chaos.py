"""A sweep on a cluster under random faults: what they cost, and whether its result is an undisturbed sweep's.

    uv run python -m benchmarks.chaos [--minutes 20] [--seed 0]

Real Ray processes on this machine: a head, and nodes of one CPU each. Every few seconds something drawn at random
happens: kill -9 of a trial's worker, of a loader, of a raylet, of a whole node, of the head, or of the driver
(`benchmarks.faults`). A lost node is replaced; after a lost head or driver the same command is given again.
When a sweep ends another begins, with other seeds, until the time is over. Then each is run once more, undisturbed.

Printed, of each kind: how often, the trials that it hit, the trials of which an epoch that was written before was
trained again (0, it should say), and the seconds since the last epoch of each trial that was hit: the work lost.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.faults import FAULTS, Harm
from benchmarks.nodes import Cluster, cluster
from imet_ray.data.sources import demo
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory

NODES = 2
BETWEEN_S = (2.0, 10.0)  # from the first new epoch after a fault to the next fault
SPACE = """
seed: {seed}
n_folds: 3
trials_per_variant: 3
resources: {{cpus_per_trial: 1, loader_workers: 1}}
base: {{architecture: test_resnet, weights: none, image_size: 128, epochs: 8, batch_size: 8, lr: 0.003, keep: last}}
grid: {{augmentation: [none, light, medium]}}
search: {{dropout: {{low: 0.0, high: 0.5}}}}
"""


@dataclass
class Cost:
    """Of one kind of fault."""

    times: int = 0
    trials: int = 0
    lost_s: float = 0.0
    again: int = 0  # trials of which an epoch that was written was trained again


class Sweep:
    """One of the sweeps, and what was seen of its epochs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.name = folder, f"s{seed}"
        self.space = folder / f"space{seed}.yml"
        self.space.write_text(SPACE.format(seed=seed))
        self.store = RunDirectory(folder / "runs" / self.name)
        self.driver: subprocess.Popen[bytes] | None = None

    def command(self, runs: str, *options: str) -> list[str]:
        return [
            *(sys.executable, "launch.py", "--sweep", "--space", str(self.space), "--name", self.name),
            *("--data", str(self.folder / "data"), "--runs", str(self.folder / runs)),
            *("--cache", str(self.folder / "cache"), *options),
        ]

    def start(self, ray: Cluster) -> None:
        with (self.folder / "out").open("ab") as out:
            self.driver = subprocess.Popen(
                self.command("runs", "--address", ray.address), env=ray.environment, stdout=out, stderr=out
            )

    def epochs(self) -> dict[str, list[float]]:
        """The seconds of each epoch of a trial: measured, so a finger-print."""
        found = {trial.trial_id: read_json_lines(trial.metrics) for trial in self.store.trials()}
        return {trial_id: [row["seconds"] for row in rows] for trial_id, rows in found.items()}

    def trains(self) -> list[str]:
        """Trials that have had an epoch, and no end."""
        return [t.trial_id for t in self.store.trials() if t.metrics.exists() and not t.result.exists()]

    def lost_s(self, trial_id: str, at: float) -> float:
        """Seconds since the last epoch of a trial was written, or since it began."""
        trial = self.store.trial(trial_id)
        last = [path.stat().st_mtime for path in (trial.metrics, trial.spec) if path.exists()]
        return max(0.0, at - last[0]) if last else 0.0

    def differences(self, other: RunDirectory) -> list[str]:
        """Trials that only one of them has, or that ended otherwise, or with weights that differ in any bit."""
        theirs = {trial.trial_id: trial for trial in other.trials()}
        ours = {trial.trial_id: trial for trial in self.store.trials()}
        found = []
        for trial_id in sorted(ours.keys() | theirs.keys()):
            pair = [_end(there.get(trial_id)) for there in (ours, theirs)]
            if pair[0] != pair[1]:
                found.append(f"trial {trial_id}: {pair[0]}; undisturbed: {pair[1]}")
            elif pair[0] == "complete" and not _same_weights(ours[trial_id].best, theirs[trial_id].best):
                found.append(f"trial {trial_id}: other weights")
        return found


def _end(trial: TrialDirectory | None) -> str:
    result = read_result(trial) if trial is not None else None
    if trial is None or result is None:
        return "not there" if trial is None else "no result"
    return f"{result.status} {result.reason}".strip()


def _same_weights(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def main() -> None:
    """Do harm, and print what it cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults, and of the first sweep")
    options = parser.parse_args()
    rng, costs, sweeps = np.random.default_rng(options.seed), defaultdict[str, Cost](Cost), list[Sweep]()
    folder = Path(tempfile.mkdtemp(prefix="chaos"))
    try:
        demo.generate(folder / "data", n_images=90, n_test=20, seed=3)
        until = time.monotonic() + 60 * options.minutes
        with cluster() as ray:
            for _ in range(NODES):
                ray.add()
            while time.monotonic() < until:
                sweeps.append(Sweep(folder, options.seed + len(sweeps)))
                _disturb(sweeps[-1], ray, rng, costs, until)
            differ = {sweep.name: found for sweep in sweeps if (found := _again(sweep, ray))}
        _print(costs, len(sweeps), len(sweeps) - len(differ), options.minutes)
        for name, found in differ.items():
            print("\n  ".join([f"\n{name}, kept in {folder}:", *found]))
    except BaseException:
        print(f"\nkept: {folder}")
        raise
    if not differ:
        shutil.rmtree(folder, ignore_errors=True)


def _disturb(
    sweep: Sweep, ray: Cluster, rng: np.random.Generator, costs: dict[str, Cost], until: float
) -> None:
    """One sweep to its end, with faults while there is time."""
    sweep.start(ray)
    assert sweep.driver is not None
    before, kinds = sweep.epochs(), [*FAULTS, "head", "driver"]
    there: list[tuple[str, dict[str, list[float]]]] = []  # what was written before each fault
    while (code := sweep.driver.poll()) is None:
        time.sleep(0.2)
        now = sweep.epochs()
        if time.monotonic() > until or sum(map(len, now.values())) <= sum(map(len, before.values())):
            continue
        time.sleep(float(rng.uniform(*BETWEEN_S)))
        before, hit = sweep.epochs(), sweep.trains()
        if not hit:
            continue
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind == "head":
            harm = _kill_head(sweep, ray, hit)
        elif kind == "driver":
            sweep.driver.kill()
            sweep.driver.wait()
            harm = Harm("kill -9 of the driver", tuple(hit), time.time())
            sweep.start(ray)
        else:
            try:
                harm = FAULTS[kind](ray, rng)
            except TimeoutError:  # the search is over
                continue
        print(f"{harm.what}", flush=True)
        cost = costs[kind]
        cost.times, cost.trials = cost.times + 1, cost.trials + len(harm.trials)
        cost.lost_s += sum(sweep.lost_s(trial_id, harm.at) for trial_id in harm.trials)
        there.append((kind, before))
    if code:
        raise RuntimeError(f"the sweep failed: {(sweep.folder / 'out').read_text()[-3000:]}")
    end = sweep.epochs()
    for kind, before in there:
        costs[kind].again += sum(end[trial_id][: len(was)] != was for trial_id, was in before.items())


def _kill_head(sweep: Sweep, ray: Cluster, hit: list[str]) -> Harm:
    """The head and with it the cluster; then all again."""
    assert ray.head is not None
    assert sweep.driver is not None
    ray.head.kill()
    sweep.driver.wait()
    at = time.time()  # until then the nodes trained on
    for node in list(ray.nodes.values()):
        ray.lose(node)
    ray.begin()
    for _ in range(NODES):
        ray.add()
    sweep.start(ray)
    return Harm("power off of the head", tuple(hit), at)


def _again(sweep: Sweep, ray: Cluster) -> list[str]:
    """Run it undisturbed, on a Ray of its own; what differs."""
    subprocess.run(sweep.command("alone"), env=ray.environment, check=True, capture_output=True)
    return sweep.differences(RunDirectory(sweep.folder / "alone" / sweep.name))


def _print(costs: dict[str, Cost], sweeps: int, same: int, minutes: float) -> None:
    print(
        f"\n{'fault':8} {'times':>6} {'trials hit':>11} {'trained again':>14} {'work lost, s':>13} {'a trial':>8}"
    )
    total = Cost()
    for kind, cost in sorted(costs.items()):
        mean = cost.lost_s / max(1, cost.trials)
        print(f"{kind:8} {cost.times:6} {cost.trials:11} {cost.again:14} {cost.lost_s:13.1f} {mean:8.1f}")
        total.times, total.trials = total.times + cost.times, total.trials + cost.trials
        total.again, total.lost_s = total.again + cost.again, total.lost_s + cost.lost_s
    print(
        f"{'all':8} {total.times:6} {total.trials:11} {total.again:14} {total.lost_s:13.1f} "
        f"{total.lost_s / max(1, total.trials):8.1f}"
    )
    print(
        f"{minutes:g} minutes of faults; {sweeps} sweeps came to their end, {same} of them with the same trials and "
        "the same weights, to the last bit, as undisturbed"
    )


if __name__ == "__main__":
    main()
