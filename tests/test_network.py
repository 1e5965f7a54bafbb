"""The sweep on a real cluster: three hosts with addresses, sshd and processes of their own, set up by `ray up`.

The project's own file is used, with other addresses. All of it happens on this machine: see `hosts`.
"""

import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hosts
import pytest
from network import PATIENCE, Done, Network, wait_for

from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

SPACE = """
n_folds: 3
trials_per_variant: 2
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 2, batch_size: 16, lr: 0.003, keep: last}
grid: {augmentation: [none, light]}
search: {dropout: {low: 0.0, high: 0.5}}
"""
CUT_S = 60  # seconds that a node is unplugged


@dataclass
class Story:
    """What was seen while the cluster was up."""

    store: RunDirectory
    head: str  # its address
    sweep: Done
    again: Done  # the same command, after a node was lost
    powered_off: str  # name of the node that was lost in the sweep
    held: set[str]  # trials that were complete by then
    written: dict[str, int]  # when each of these was: nanoseconds
    strangers: dict[str, Done]  # who came without the token
    listening: str  # on the head: `ss -ltn`
    cut: Done  # a sweep in which a node was unplugged for a minute
    cut_before: dict[str, list[float]]  # the seconds of its epochs just before, by trial
    full: Done  # a sweep on nodes of which one has a full disk
    mended: Done  # the same, submitted on the head, when that has space
    down: Done
    left: dict[str, str]  # Ray's processes on each host, in the end


def complete(store: RunDirectory) -> dict[str, int]:
    """The finished trials, and when they were: nanoseconds."""
    found = {trial.trial_id: read_result(trial) for trial in store.begun_trials()}
    return {
        trial_id: store.trial(trial_id).result.stat().st_mtime_ns
        for trial_id, result in found.items()
        if result is not None and result.status == "complete"
    }


def epochs(store: RunDirectory) -> dict[str, list[float]]:
    """The seconds of each trial's epochs: a finger-print."""
    trials = [trial for trial in store.trials() if trial.spec.exists()]
    return {trial.trial_id: [row["seconds"] for row in read_json_lines(trial.metrics)] for trial in trials}


def trains_on(store: RunDirectory, host: hosts.Host) -> bool:
    """True if a trial that has had an epoch trains there."""
    titles = [line for line in host.run("ps -eo args").stdout.splitlines() if " fold " in line]
    return any(trial_id in line for line in titles for trial_id, seconds in epochs(store).items() if seconds)


@pytest.fixture(scope="module")
def story(tiny_root, tmp_path_factory) -> Story:
    if (why := hosts.missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("network")
    environment = folder / "common" / "imet_ray" / ".venv"
    environment.mkdir(parents=True)
    hosts.copy_environment(Path(sys.prefix), environment, f"{hosts.HOME}/imet_ray/.venv")
    shared = folder / "shared"
    store = RunDirectory(shared / "runs" / "net")
    began = time.monotonic()
    with (
        hosts.hosts(folder, 3, in_common=["imet_ray/.venv"]) as (found, key),
        ThreadPoolExecutor(4) as pool,
    ):
        (shared / "space.yml").write_text(SPACE)
        shutil.copytree(tiny_root, shared / "data")
        network = Network(folder, found, key)
        network.up()
        print("up", time.monotonic() - began)
        lost, small = found[2], f"{hosts.HOME}/cache"
        sweep = pool.submit(network.sweep, "cut", options="--epochs 12", stub=1)
        cut_store = RunDirectory(shared / "runs" / "cut")

        def to_unplug() -> hosts.Host | None:
            return next((host for host in found[1:] if trains_on(cut_store, host)), None)

        unlucky = wait_for(to_unplug, "a trial on a host to unplug")
        unlucky.unplug()
        cut_before = epochs(cut_store)
        time.sleep(CUT_S)
        unlucky.plug()
        cut = sweep.result()
        network.await_nodes()
        print("cut", time.monotonic() - began)
        found[1].run(f"mkdir -p {small} && mount -t tmpfs -o size=64k tmpfs {small}")
        long = "--epochs 8"  # so that none of the nodes comes too late for a trial
        full = network.sweep("full", cache="~/cache", options=long)
        found[1].run(f"umount {small}")
        print("full", time.monotonic() - began)
        mended = network.sweep("full", cache="~/cache", options=long, submitted=True)
        print("mended", time.monotonic() - began)
        sweep = pool.submit(network.sweep, stub=0.5)
        strangers = {name: pool.submit(come) for name, come in network.strangers().items()}
        wait_for(lambda: len(complete(store)) >= 2 or sweep.done(), "two results")
        print("two results", time.monotonic() - began)
        written = complete(store)
        lost.power_off()
        done = sweep.result()
        print("sweep", time.monotonic() - began)
        again = network.sweep(stub=0.5)
        print("again", time.monotonic() - began)
        listening = found[0].run("ss -ltn").stdout
        came = {name: future.result() for name, future in strangers.items()}
        print("strangers", time.monotonic() - began)
        down = network.ray("down", str(network.config), "-y")
        print("down", time.monotonic() - began)
        until = time.monotonic() + PATIENCE
        while any(network.rays().values()) and time.monotonic() < until:
            time.sleep(1)
        print("left", time.monotonic() - began)
        left = network.rays()
    return Story(
        store=store,
        head=found[0].address,
        sweep=done,
        again=again,
        powered_off=lost.name,
        held=set(written),
        written=written,
        strangers=came,
        listening=listening,
        cut=cut,
        cut_before=cut_before,
        full=full,
        mended=mended,
        down=down,
        left=left,
    )


def test_a_sweep_on_three_hosts_ends_with_the_artefacts_of_all_trials_though_one_is_lost(story):
    assert story.sweep.returncode == 0, story.sweep.stdout[-3000:] + story.sweep.stderr[-3000:]
    trials = [trial for trial in story.store.trials() if trial.trial_id in complete(story.store)]
    folds = {(read_spec(trial).variant.name, read_spec(trial).fold) for trial in trials}
    assert folds == {(name, fold) for name in ("none", "light") for fold in range(3)}
    for trial in trials:
        assert trial.best.exists()
        assert len(read_json_lines(trial.metrics)) == 2
    assert story.store.ensemble("blend").submission.exists()
    assert re.search(r"3 nodes, of one version; at most [01]\.\d MB of code sent to each", story.sweep.stdout)


def test_the_same_command_trains_nothing_again(story):
    assert story.again.returncode == 0, story.again.stdout[-3000:]
    assert " trials in " not in story.again.stdout
    assert len(story.held) >= 2
    assert {k: v for k, v in complete(story.store).items() if k in story.held} == story.written


def test_a_node_that_is_cut_off_for_a_minute_costs_no_epoch_that_was_trained(story):
    assert story.cut.returncode == 0, story.cut.stdout + story.cut.stderr
    store = RunDirectory(story.store.root.with_name("cut"))
    found = epochs(store)
    assert any(story.cut_before.values())
    for trial_id, seconds in story.cut_before.items():
        assert found[trial_id][: len(seconds)] == seconds
    assert {read_result(trial).status for trial in store.begun_trials()} == {"complete"}
    assert all(len(seconds) == 12 for seconds in found.values())


def test_a_node_that_is_cut_off_is_one_line(story):
    lines = [line for line in story.cut.stdout.splitlines() if "interrupted" in line]
    assert lines, story.cut.stdout
    assert all("its node" in line or "no answer from" in line for line in lines)


def test_a_full_disk_on_one_node_stops_the_sweep_with_one_line_that_names_the_node(story):
    assert story.full.returncode != 0
    errors = [line for line in (story.full.stdout + story.full.stderr).splitlines() if "error: " in line]
    assert len(errors) == 1, story.full.stdout
    assert "/cache/packs/" in errors[0]
    assert "free some space" in errors[0]
    assert "h1, 10.77." in errors[0]


def test_the_same_command_submitted_goes_on_when_the_disk_has_space(story):
    assert story.mended.returncode == 0, story.mended.stdout + story.mended.stderr
    assert len(complete(RunDirectory(story.store.root.with_name("full")))) == 8


@pytest.mark.parametrize("name", ["cut", "full"])
def test_trials_train_on_several_hosts(story, name):
    store = RunDirectory(story.store.root.with_name(name))
    rows = [row for trial in store.trials() for row in read_json_lines(trial.metrics)]
    assert len({row["host"] for row in rows}) > 1


def test_nobody_comes_in_without_the_token(story):
    for name, done in story.strangers.items():
        assert done.returncode != 0, name
        assert re.search("[Aa]uth", done.stdout + done.stderr), (name, done)


def test_the_dashboard_listens_on_loopback_only(story):
    rows = [line.split()[3] for line in story.listening.splitlines()[1:]]
    assert [row for row in rows if row.endswith(":8265")] == ["127.0.0.1:8265"]


def test_down_ends_every_ray_of_the_cluster(story):
    assert story.down.returncode == 0
    assert len(story.left) == 2
    assert not any(story.left.values()), story.left
