"""Data in a bucket: brought to a node once, checked, and packed once for all nodes."""

import os
import secrets
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imet_ray.data.formats import read_catalog
from imet_ray.data.sources import resolve_data
from imet_ray.data.training_data import training_split
from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import object_store as buckets
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import runs_at

FETCH = """
import sys
from pathlib import Path
from imet_ray.data.formats import read_catalog
from imet_ray.data.training_data import training_split
from imet_ray.data.sources import resolve_data
from imet_ray.storage.runs import runs_at
from imet_ray.storage.run_directory import Cache
url, runs, root = sys.argv[1:]
cache = Cache(Path(root))
catalog = read_catalog(resolve_data(url, cache=cache.root))
training_split(catalog, cache, runs_at(runs, cache).run("r").packs).share(64)
"""


@pytest.fixture
def name(proxy) -> str:
    """A new bucket."""
    name = f"d-{secrets.token_hex(4)}"
    proxy.store.create(name)
    return name


@pytest.fixture
def url(name, proxy, tiny_root) -> str:
    """The tiny dataset in it."""
    files = [path for path in tiny_root.rglob("*") if path.is_file()]
    proxy.store.put(name, {f"a/tiny/{path.relative_to(tiny_root)}": path.read_bytes() for path in files})
    return f"{proxy.scheme}://{name}/a/tiny"


@pytest.fixture
def runs(name, proxy) -> str:
    return f"{proxy.scheme}://{name}/runs"


def pictures(proxy) -> int:
    return proxy.count("GET", "/a/tiny/train/")


def test_a_data_set_in_a_bucket_is_the_one_that_lies_in_a_folder(url, tmp_path, tiny_catalog):
    found = read_catalog(resolve_data(url, cache=tmp_path))
    assert found.digest == tiny_catalog.digest
    assert found.test_digest == tiny_catalog.test_digest


def test_it_is_fetched_once(url, tmp_path, proxy):
    resolve_data(url, cache=tmp_path)
    proxy.requests.clear()
    resolve_data(url, cache=tmp_path)
    assert len(proxy.requests) == proxy.listings() == 1


def test_what_changed_or_was_damaged_or_deleted_is_mended(url, name, tmp_path, proxy):
    root = resolve_data(url, cache=tmp_path)
    first, second, third, fourth = sorted((root / "train").iterdir())[:4]
    whole, altered = second.read_bytes(), fourth.read_bytes()
    second.write_bytes(whole[:-1])
    fourth.write_bytes(bytes(byte ^ 1 for byte in altered))  # of the same size
    os.utime(fourth, (1, 1))  # not in the second in which it came
    proxy.store.put(name, {f"a/tiny/train/{first.name}": b"x" * first.stat().st_size})
    proxy.store.delete(name, f"a/tiny/train/{third.name}")
    proxy.requests.clear()
    resolve_data(url, cache=tmp_path)
    assert set(first.read_bytes()) == {ord("x")}
    assert second.read_bytes() == whole
    assert fourth.read_bytes() == altered
    assert not third.exists()
    assert pictures(proxy) == 3


def test_a_fetch_that_broke_off_goes_on(url, tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.2)
    proxy.harm = lambda method, path: "slow" if pictures(proxy) > 60 else None
    with pytest.raises(StoreError):
        resolve_data(url, cache=tmp_path)
    here = len([path for path in tmp_path.rglob("train/*") if path.suffix != ".tmp"])
    proxy.harm = lambda method, path: None
    proxy.requests.clear()
    read_catalog(resolve_data(url, cache=tmp_path))
    assert 0 < here < 90
    assert pictures(proxy) == 90 - here


@pytest.mark.parametrize("server", ["s3"], indirect=True)  # the locks are this machine's
def test_ten_at_once_on_a_cold_node_make_one_copy(url, name, tmp_path, proxy):
    argv = [sys.executable, "-c", FETCH, url, f"{proxy.scheme}://{name}/runs", str(tmp_path)]
    with ThreadPoolExecutor(10) as pool:
        done = list(
            pool.map(lambda i: subprocess.run(argv, check=False, capture_output=True, text=True), range(10))
        )
    assert [one.returncode for one in done] == [0] * 10, done[0].stderr
    assert pictures(proxy) == 90
    assert len(list(tmp_path.glob("packs/*-train-64"))) == 1


def test_a_pack_is_decoded_once_and_copied_to_other_nodes(url, runs, tmp_path):
    first, second = Cache(tmp_path / "a"), Cache(tmp_path / "b")
    catalog = read_catalog(resolve_data(url, cache=first.root))
    made = split_of(catalog, first, runs)
    made.share(64)
    shutil.rmtree(tmp_path / "a" / "datasets")  # a node that has no pictures
    copied = split_of(catalog, second, runs).pack(64)
    assert copied.path.is_relative_to(tmp_path / "b")
    assert all(np.array_equal(copied[i], made.pack(64)[i]) for i in range(len(copied)))


@pytest.mark.parametrize("harm", ["altered", "cut", "unmarked"])
def test_a_pack_that_is_not_what_was_shared_is_not_taken(url, runs, name, proxy, tmp_path, harm):
    first, second = Cache(tmp_path / "a"), Cache(tmp_path / "b")
    catalog = read_catalog(resolve_data(url, cache=first.root))
    made = split_of(catalog, first, runs)
    made.share(64)
    key = f"runs/_packs/{made.pack(64).path.name}"
    data = proxy.store.read(name, key)
    if harm == "unmarked":
        proxy.store.delete(name, f"{key}.sha256")
    else:
        bad = data[: len(data) // 2] if harm == "cut" else bytes([data[0] ^ 1]) + data[1:]
        proxy.store.put(name, {key: bad})
    again = split_of(catalog, second, runs).pack(64)  # decoded
    assert again.path.read_bytes() == data


def test_a_run_on_this_machine_shares_no_packs(tmp_path):
    (tmp_path / "pack").write_bytes(b"pixels")
    packs = RunDirectory(tmp_path / "runs" / "r").packs
    packs.share(tmp_path / "pack")
    assert not packs.copy(tmp_path / "other" / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_where_nothing_lies_it_says_so(name, proxy, tmp_path):
    with pytest.raises(ConfigError, match=f"nothing lies at {proxy.scheme}://{name}/nowhere"):
        resolve_data(f"{proxy.scheme}://{name}/nowhere", cache=tmp_path)


@pytest.mark.parametrize("server", ["s3", "gs"], indirect=True)
def test_a_key_that_is_no_path_is_refused(url, name, proxy, tmp_path):
    proxy.store.put(name, {"a/tiny/../../x": b""})
    with pytest.raises(StoreError, match="a key that is no path"):
        resolve_data(url, cache=tmp_path / "c")
    assert not list(tmp_path.rglob("x"))


def split_of(catalog, cache: Cache, runs: str):
    return training_split(catalog, cache, runs_at(runs, cache).run("r").packs)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_the_password_of_a_data_url_is_not_repeated(tmp_path, scheme):
    with pytest.raises(ConfigError, match="without user, password") as found:
        resolve_data(f"{scheme}://me:hunter2@bucket/x", cache=Path(tmp_path))
    assert "hunter2" not in str(found.value)
