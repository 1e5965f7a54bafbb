"""Buckets through the official clients: what both stores do alike, and what their clients make hard."""

import itertools
import json
import secrets
import sys
import time
from pathlib import Path

import pytest
from bucket_server import Harm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import storage

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import buckets_gs, buckets_s3
from imet_ray.storage import object_store as buckets

only_google = pytest.mark.parametrize("server", ["gs"], indirect=True)


def test_a_client_that_is_not_installed_is_named(proxy, monkeypatch):
    for module in ("boto3", "google.cloud.storage"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"^{proxy.scheme}:// needs .*: `uv sync --extra {proxy.scheme}`$"):
        buckets.open_bucket(proxy.scheme, "bucket")


@pytest.mark.parametrize("status", ["401", "403"])
def test_credentials_that_are_refused_are_one_line_at_once(bucket, proxy, status):
    proxy.harm = lambda method, path: status
    with pytest.raises(ConfigError, match=f"^{proxy.scheme}://.* refuses these credentials") as found:
        buckets.open_bucket(proxy.scheme, bucket).folders("")
    assert "\n" not in str(found.value)
    assert len(proxy.requests) == 1


@pytest.fixture
def large(proxy, bucket, monkeypatch, tmp_path) -> Path:
    """A file that is read in parts and, to Google, sent in parts."""
    monkeypatch.setattr(buckets_s3, "LARGE", 8 << 20)
    monkeypatch.setattr(buckets_gs, "LARGE", 8 << 20)
    monkeypatch.setattr(buckets_gs, "CHUNK", 1 << 20)
    monkeypatch.setattr(buckets, "PAUSE_S", (0.1, 1.0))
    path = tmp_path / "large"
    path.write_bytes(secrets.token_bytes((9 << 20) + 1))
    return path


def some_of_them(harm: str | None) -> Harm:
    """The 4th, 8th and 12th request."""
    calls = itertools.count(1)
    return lambda method, path: harm if next(calls) in (4, 8, 12) else None


@pytest.mark.parametrize("harm", [None, "slow", "reset", "lost", "cut"])
def test_a_large_file_comes_and_goes_in_parts(proxy, bucket, large, tmp_path, harm):
    found = buckets.open_bucket(proxy.scheme, bucket)
    proxy.harm = some_of_them(harm)
    version = found.put(large, "a/large")
    head = found.head("a/large")
    assert (head.size, head.version) == (large.stat().st_size, version)
    proxy.harm = some_of_them(harm)
    told = []
    assert found.get("a/large", tmp_path / "copy", head.size, told.append)
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    assert sum(told) == head.size
    assert proxy.count("GET", "a/large") > 1


def test_a_large_file_that_is_not_there_is_not_read(proxy, bucket, large):
    assert not buckets.open_bucket(proxy.scheme, bucket).get("nothing", large, 9 << 20)


def test_a_large_file_that_is_written_anew_while_it_is_read_is_the_old_or_the_new_one(
    proxy, bucket, large, tmp_path
):
    proxy.store.put(bucket, {"a/large": large.read_bytes()})
    new = secrets.token_bytes((9 << 20) + 2)
    calls = itertools.count(1)

    def write_anew(method: str, path: str) -> None:
        if next(calls) == 5:
            proxy.store.put(bucket, {"a/large": new})

    proxy.harm = write_anew
    found = buckets.open_bucket(proxy.scheme, bucket)
    assert found.get("a/large", tmp_path / "copy", 9 << 20)
    assert (tmp_path / "copy").read_bytes() in (large.read_bytes(), new)


@pytest.mark.parametrize("version", ["", "7"])
def test_a_large_file_is_sent_under_the_condition_of_a_small_one(proxy, bucket, large, version):
    proxy.store.put(bucket, {"a/large": b"of another version"})
    found = buckets.open_bucket(proxy.scheme, bucket)
    if proxy.scheme == "s3":
        with pytest.raises(buckets.ChangedError):
            found.put(large, "a/large", version)
    else:  # the server here does not heed it, Google's does: so it is looked at on its way
        found.put(large, "a/large", version)
        assert proxy.count("POST", f"uploadType=resumable&ifGenerationMatch={version or 0}") == 1


@pytest.fixture
def account(proxy, monkeypatch, tmp_path) -> str:
    """A service account of Google's that gets its tokens from our proxy; the name of a bucket for it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    about = {"type": "service_account", "client_email": "a@b.c", "token_uri": f"{proxy.address}/token"}
    about["private_key"] = key.private_bytes(*form).decode()
    (tmp_path / "key.json").write_text(json.dumps(about))
    for name, value in proxy.store.no_credentials.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", proxy.address)
    return "bucket"


@only_google
def test_an_account_that_gets_no_token_is_one_line(account, proxy):
    proxy.harm = lambda method, path: "403"
    with pytest.raises(ConfigError, match="refuses these credentials .*gcloud auth") as found:
        buckets.open_bucket("gs", account).folders("")
    assert "\n" not in str(found.value)
    assert "PRIVATE" not in str(found.value)


@only_google
def test_a_token_that_does_not_come_is_waited_for(account, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.5)
    proxy.harm = lambda method, path: "reset"
    with pytest.raises(StoreError, match="has not answered"):
        buckets.open_bucket("gs", account).folders("")


@only_google
@pytest.mark.parametrize("name", ["bucket-", "a.b."])
def test_a_name_that_no_bucket_can_have_is_one_line(proxy, name):
    with pytest.raises(ConfigError, match="is no name of a bucket"):
        buckets.open_bucket("gs", name)


@only_google
def test_nothing_is_asked_but_what_we_ask(bucket, proxy):
    found = buckets.open_bucket("gs", bucket)
    assert found.head("not there") is None
    found.delete("not there")
    assert found.folders("") == []
    time.sleep(0.5)  # its client would look for the bucket itself in the background
    assert [method for method, _ in proxy.requests] == ["GET", "DELETE", "GET"]


@only_google
def test_an_object_without_an_md5_is_read_all_the_same(bucket, proxy, monkeypatch, tmp_path):
    proxy.store.put(bucket, {"composite": b"x"})  # the server here knows the md5 of composite ones, too
    monkeypatch.setattr(storage.Blob, "md5_hash", None)
    found = buckets.open_bucket("gs", bucket)
    assert [one.md5 for one in found.listing("")] == [""]
    assert found.get("composite", tmp_path / "here")


@only_google
def test_what_was_altered_on_its_way_is_read_again(bucket, proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(buckets, "PAUSE_S", (0.1, 1.0))
    proxy.store.put(bucket, {"a": b"whole"})
    left = ["altered"] * 2
    proxy.harm = lambda method, path: left.pop() if left else None
    assert buckets.open_bucket("gs", bucket).get("a", tmp_path / "a")
    assert not left
    assert (tmp_path / "a").read_bytes() == b"whole"


@only_google
def test_an_address_of_a_store_that_is_none_is_named(proxy, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:1234")
    with pytest.raises(ConfigError, match=r"STORAGE_EMULATOR_HOST takes http://HOST:PORT"):
        buckets.open_bucket("gs", "bucket").folders("")
