"""What keeps a Ray from starting on a machine is said before it is tried."""

import os
import resource
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from imet_ray.cluster import own_ray
from imet_ray.cluster.session import prepare_environment
from imet_ray.errors import ConfigError

OUT = r": set RAY_TMPDIR to another folder, with a short path, such as /tmp/ray-\d+$"


@pytest.fixture
def short(tmp_path_factory, monkeypatch) -> Path:
    """A folder with a short relative path: pytest's own are long."""
    monkeypatch.chdir(tmp_path_factory.mktemp("short"))
    return Path("ray")


def test_a_folder_that_ray_can_make_is_taken_and_not_made(short):
    own_ray.check_temporary(short)
    assert not short.exists()


def test_a_folder_is_refused_from_the_byte_on_that_makes_its_sockets_paths_too_long(short):
    longest = Path("x" * (own_ray.SOCKET_BYTES - len(own_ray.SOCKET) - 1))
    own_ray.check_temporary(longest)
    with pytest.raises(ConfigError, match="would have 108 bytes, of 107 at most" + r"\)" + OUT):
        own_ray.check_temporary(Path(f"{longest}x"))
    with pytest.raises(ConfigError, match="would have 109 bytes"):
        own_ray.check_temporary(Path("é" + str(longest)))  # two bytes


def test_a_folder_of_another_user_is_refused(short, monkeypatch):
    short.mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: mode == os.F_OK)
    with pytest.raises(ConfigError, match=r"directory ray \(ray cannot be written\)" + OUT):
        own_ray.check_temporary(short)


def test_a_file_in_the_place_of_the_folder_is_refused(short):
    short.write_text("")
    with pytest.raises(ConfigError, match=r"\(ray is no directory\)" + OUT):
        own_ray.check_temporary(short / "below")


def test_a_full_disk_is_refused(short, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3_000_000))
    with pytest.raises(ConfigError, match=r"\(3 MB are free there, and Ray needs 100 MB\)" + OUT):
        own_ray.check_temporary(short)


@pytest.mark.parametrize(
    ("now", "most", "becomes"), [(64, 4096, 256), (64, -1, 256), (1024, 4096, None), (-1, -1, None)]
)
def test_the_limit_of_open_files_is_raised_where_it_can_be(monkeypatch, now, most, becomes):
    became = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (now, most))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: became.append(limits))
    own_ray.check_open_files()
    assert became == ([] if becomes is None else [(becomes, most)])


def test_a_hard_limit_of_open_files_that_is_too_low_is_refused(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    with pytest.raises(
        ConfigError, match=r"^a process may have 64 files open here, and Ray needs 256: .*ulimit -Hn"
    ):
        own_ray.check_open_files()


def test_a_machine_without_loopback_is_refused(monkeypatch):
    own_ray.check_loopback()

    def refuse(*args: object, **how: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConfigError, match=r"no loopback network \(127.0.0.1: Network is unreachable\)"):
        own_ray.check_loopback()


def test_without_a_home_ray_gets_a_token_of_its_own_and_the_user_is_told(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("RAY_AUTH_TOKEN", None)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(os, "access", lambda place, mode: mode == os.F_OK and Path(place).exists())
    own_ray._keep_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "auth_token cannot be written: this Ray has a token of its own" in caplog.text


def test_a_user_without_a_name_has_the_home_that_containers_give(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("HOME", None)
    monkeypatch.setattr(Path, "home", no_home)
    prepare_environment()
    assert os.environ["HOME"] == "/"


def test_a_home_of_ones_own_keeps_the_token(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    own_ray._keep_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not caplog.records


@pytest.mark.parametrize("writable", [True, False])
def test_shared_memory_that_cannot_be_written_is_done_without(monkeypatch, caplog, writable):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda place, mode: access(place, mode) if place != own_ray.SHARED_MEMORY else writable
    )
    options = own_ray.start_options({"CPU": 2.0, "GPU": 0.0})
    assert ("_plasma_directory" in options) == (not writable)
    assert ("/dev/shm cannot be written" in caplog.text) == (not writable)


def test_a_relative_temporary_directory_is_the_same_to_all_of_rays_processes(short, monkeypatch):
    monkeypatch.setattr(own_ray, "check_temporary", lambda directory: None)  # pytest's own are long
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert own_ray.start_options({"CPU": 1.0, "GPU": 0.0})["_temp_dir"] == str(Path.cwd() / short / "ray")
