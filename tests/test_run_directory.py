"""Writing artefacts: whole or not at all, one writer, clear errors."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.checked_read import read_arrays, read_json, read_json_lines
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.files import SupersededError, write_arrays, write_json, write_json_lines, writing
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs, set_aside


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(UnicodeEncodeError), writing(path) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(StoreError, match="disk full while writing"), writing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_nan_never_gets_into_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"score": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_damaged_artefact_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"half":')
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(StoreError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StoreError, match=r"a\.npz is damaged"):
        read_arrays(tmp_path / "a.npz")
    with pytest.raises(StoreError, match="is missing"):
        read_arrays(tmp_path / "b.npz")


def test_arrays_and_lines_come_back_as_they_were(tmp_path):
    ids = np.array(["a", "b"])
    write_arrays(tmp_path / "a.npz", ids=ids, probs=np.eye(2, dtype=np.float16))
    back = read_arrays(tmp_path / "a.npz")
    assert (back["ids"] == ids).all()
    assert back["probs"].dtype == np.float16
    write_json_lines(tmp_path / "m.jsonl", [{"epoch": 1}, {"epoch": 2}])
    assert read_json_lines(tmp_path / "m.jsonl") == [{"epoch": 1}, {"epoch": 2}]


def test_an_older_writer_is_told_that_it_was_superseded(tmp_path):
    trial = RunDirectory(tmp_path).trial("t")
    older = trial.acquire()
    trial.check(older)
    newer = trial.acquire()
    with pytest.raises(SupersededError):
        trial.check(older)
    trial.check(newer)


def test_a_run_that_does_not_exist_names_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match="--sweep"):
        Runs(tmp_path).open(None)
    write_json(RunDirectory(tmp_path / "one").experiment, {})
    assert Runs(tmp_path).open(None).root.name == "one"
    with pytest.raises(ConfigError, match="choose one of: one"):
        Runs(tmp_path).open("two")


def begun(root, *names):
    """Runs that are begun, and driven in this order."""
    for name in names:
        store = RunDirectory(root / name)
        write_json(store.experiment, {})
        with only_driver(store):
            pass


def test_the_newest_run_is_the_one_that_was_driven_last(tmp_path):
    begun(tmp_path, "b", "c", "a", "b")
    os.utime(tmp_path / "c" / "experiment.json", (2e9, 2e9))
    write_json(RunDirectory(tmp_path / "old").experiment, {})  # of a version that did not note it
    (tmp_path / "link").symlink_to("b")
    assert Runs(tmp_path).open(None).root.name == "b"


@pytest.mark.parametrize("copy", ["a-backup", "backup-of-a"])
def test_a_copy_of_a_run_is_not_the_newest_until_it_is_driven(tmp_path, copy):
    begun(tmp_path, "a")
    shutil.copytree(tmp_path / "a", tmp_path / copy)
    assert Runs(tmp_path).open(None).root.name == "a"
    begun(tmp_path, copy)
    assert Runs(tmp_path).open(None).root.name == copy


def test_copies_whose_original_is_gone_are_named_and_none_is_taken(tmp_path):
    begun(tmp_path, "a")
    for copy in ("b", "c"):
        shutil.copytree(tmp_path / "a", tmp_path / copy)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match="--name, one of: b, c"):
        Runs(tmp_path).open(None)
    shutil.rmtree(tmp_path / "b")
    assert Runs(tmp_path).open(None).root.name == "c"


def test_a_run_that_is_set_aside_keeps_its_files(tmp_path):
    write_json(RunDirectory(tmp_path / "one").experiment, {"a": 1})
    kept = set_aside(tmp_path / "one")
    assert not (tmp_path / "one").exists()
    assert read_json(RunDirectory(kept).experiment) == {"a": 1}


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IMET_RAY_CACHE", str(tmp_path / "named"))
    assert Cache.default().root == tmp_path / "named"
    monkeypatch.delenv("IMET_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.default().root == tmp_path / "imet_ray"


def test_a_user_without_a_home_is_told_to_name_the_cache(monkeypatch):
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("IMET_RAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(ConfigError, match="give --cache DIR, or set HOME"):
        Cache.default()
