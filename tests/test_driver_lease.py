"""One driver a run, over a bucket or a file system without locks."""

import errno
import os
import platform
import re
import time

import pytest

from imet_ray.command_line import exit_code
from imet_ray.errors import ConfigError
from imet_ray.storage import driver_lease as lease
from imet_ray.storage import locks
from imet_ray.storage.experiment import driver_of, only_driver
from imet_ray.storage.files import write_json
from imet_ray.storage.run_directory import RunDirectory


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "DEAD_S", 1.5)
    monkeypatch.setattr(lease, "LOOK_S", 0.1)


def test_two_machines_do_not_drive_one_run(on_node, quick, monkeypatch):
    with only_driver(on_node("a")):
        monkeypatch.setattr(lease.platform, "node", lambda: "another")
        with pytest.raises(ConfigError, match="drives this run"), only_driver(on_node("b")):
            pass
    with only_driver(on_node("b")):  # it was given back
        pass


def test_a_driver_that_died_with_its_machine_is_replaced(on_node, quick):
    dead = on_node("a")
    write_json(dead.lease, {"driver": "process 7", "host": "gone", "beat": "1"}, dead.files)
    with only_driver(on_node("b")):
        pass


def test_who_looks_on_from_anywhere_is_told_who_drives_and_when_nothing_is_heard_of_it(on_node, monkeypatch):
    looking, here = on_node("looking"), platform.node()
    assert looking.leaseholder() == ""
    with only_driver(on_node("a")):
        assert looking.leaseholder() == ""  # by the lock of this machine, if it lived
        monkeypatch.setattr(lease.platform, "node", lambda: "another")
        assert looking.leaseholder() == f"process {os.getpid()} on {here}"
        assert not looking.lease.exists()
        later = time.time() + 100
        monkeypatch.setattr(lease.time, "time", lambda: later)
        assert re.search(r", last heard of 1:\d\d ago by the clock here$", looking.leaseholder())
    assert looking.leaseholder() == ""


def test_a_driver_whose_first_word_arrived_though_its_answer_was_lost_drives(on_node, proxy, quick):
    left = ["lost"]
    proxy.harm = lambda method, path: left.pop() if left and method in ("PUT", "POST") else None
    here = on_node("a")
    with only_driver(here):
        assert not left
        assert here.files.read_now(here.lease)
    assert here.files.read_now(here.lease) is None


@pytest.mark.usefixtures("quick")
def test_a_driver_that_was_cut_off_is_stopped_when_it_is_back(on_node):
    def drive() -> int:
        with only_driver(on_node("a")):
            for beat in range(100):  # as a driver does: the server here may lose one of two writes at once
                lease = {"driver": "process 8", "host": "newer", "beat": str(beat)}
                write_json(on_node("b").lease, lease, on_node("b").files)
                time.sleep(0.1)
        return 0

    assert exit_code(drive, "look at the other driver") == 130


@pytest.fixture(params=["ENOLCK", "ENOSYS", "ENOTSUP"])
def no_locks(request, monkeypatch, quick):
    """A file system without locks: NFS without lockd, Lustre without flock, sshfs."""

    def refused(file: object, how: int) -> None:
        raise OSError(getattr(errno, request.param), "as the file system says")

    monkeypatch.setattr(locks.fcntl, "lockf", refused)


@pytest.mark.usefixtures("no_locks")
def test_where_there_are_no_locks_a_driver_that_died_is_replaced(tmp_path, caplog):
    store = RunDirectory(tmp_path / "a")
    store.root.mkdir()
    store.driver_lock.write_text("7 on gone")
    write_json(store.lease, {"driver": "process 7", "host": platform.node(), "beat": "1"})
    assert driver_of(store) == f"process 7 on {platform.node()}"
    with only_driver(store):
        assert driver_of(store) == f"process {os.getpid()} on {platform.node()}"
    assert driver_of(store) == ""
    assert "without locks" in caplog.text


@pytest.mark.usefixtures("no_locks")
def test_where_there_are_no_locks_a_driver_that_lives_keeps_the_run(tmp_path):
    store = RunDirectory(tmp_path / "a")
    with only_driver(store):
        with (
            pytest.raises(ConfigError, match=f"process {os.getpid()} .* drives this run"),
            only_driver(store),
        ):
            pass
        assert driver_of(store)


@pytest.mark.parametrize("before", [None, b"of a dead driver"])
def test_of_two_drivers_that_take_a_lease_file_one_gets_it(tmp_path, before):
    file, key = lease.LeaseFile(), str(tmp_path / "lease")
    version = "" if before is None else file.put(before, key, "")
    file.put(b"one", key, version)
    with pytest.raises(lease.ChangedError):
        file.put(b"two", key, version)
    assert file.read(key) == b"one"
