"""Buckets of all object stores: one story for all of them, and where one is hard."""

import itertools
import json
import secrets
import time
from pathlib import Path

import pytest
from bucket_server import Harm

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import object_store as buckets

only_google = pytest.mark.parametrize("server", ["gs"], indirect=True)
only_s3 = pytest.mark.parametrize("server", ["s3"], indirect=True)


def test_an_object_is_written_read_listed_conditioned_and_deleted(bucket, proxy, tmp_path):
    found = buckets.open_bucket(proxy.scheme, bucket)
    assert found.listing("") == found.folders("") == []
    assert found.head("a/b/one") is found.read("a/b/one") is None
    first = found.put(b"hello", "a/b/one", "")
    with pytest.raises(buckets.ChangedError):
        found.put(b"again", "a/b/one", "")
    head = found.head("a/b/one")
    assert (head.key, head.size, head.version) == ("a/b/one", 5, first)
    assert abs(head.modified - time.time()) < 60
    second = found.put(b"hallo", "a/b/one", first)
    with pytest.raises(buckets.ChangedError):
        found.put(b"late", "a/b/one", first)
    assert second != first
    with pytest.raises(buckets.ChangedError):
        found.put(b"of nothing", "a/b/none", first)
    odd = "a/c d/ü%41~#?=+&.txt"
    (tmp_path / "odd").write_bytes(b"x")
    found.put(tmp_path / "odd", odd)
    assert [one.key for one in found.listing("a/")] == ["a/b/one", odd]
    assert [one.tag for one in found.listing("a/b/")] == [found.head("a/b/one").tag]
    assert found.folders("") == ["a"]
    assert sorted(found.folders("a/")) == ["b", "c d"]
    entry = found.get(odd, tmp_path / "copy")
    assert entry.tag == found.head(odd).tag
    assert (tmp_path / "copy").read_bytes() == found.read(odd) == b"x"
    assert found.get("a", tmp_path / "nothing") is None
    for _ in range(2):
        found.delete(odd)
    assert [one.key for one in found.listing("")] == ["a/b/one"]


@pytest.mark.parametrize("status", ["401", "403"])
def test_credentials_that_are_refused_are_one_line_at_once(bucket, proxy, status):
    proxy.harm = lambda method, path: status
    with pytest.raises(ConfigError, match=f"^{proxy.scheme}://.* refuses these credentials") as found:
        buckets.open_bucket(proxy.scheme, bucket).folders("")
    assert "\n" not in str(found.value)
    assert len(proxy.requests) == 1


@pytest.fixture
def large(proxy, bucket, monkeypatch, tmp_path) -> Path:
    """A file that is read and sent in parts."""
    monkeypatch.setattr(buckets, "LARGE", 8 << 20)
    monkeypatch.setattr(buckets, "PART", 1 << 20)
    monkeypatch.setattr(buckets, "ONE_REQUEST", 5 << 20)
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
    assert proxy.count("PUT", "a/large") > 1
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


def test_a_large_file_is_sent_under_the_condition_of_a_small_one(proxy, bucket, large):
    found = buckets.open_bucket(proxy.scheme, bucket)
    before = found.put(b"of another version", "a/large")
    found.put(b"of a newer version", "a/large")
    for version in ("", before):
        with pytest.raises(buckets.ChangedError):
            found.put(large, "a/large", version)
    assert found.read("a/large") == b"of a newer version"
    found.put(large, "a/large", found.head("a/large").version)
    assert found.head("a/large").size == large.stat().st_size


def test_nothing_is_asked_but_what_we_ask(bucket, proxy):
    found = buckets.open_bucket(proxy.scheme, bucket)
    assert found.head("not there") is None
    found.delete("not there")
    assert found.folders("") == []
    time.sleep(0.5)  # a client may look for the bucket itself in the background
    assert [method for method, _ in proxy.requests] == ["HEAD", proxy.store.deletes, "GET"]


@only_s3
def test_another_region_is_named(bucket, proxy, monkeypatch):
    answer = (301, "application/xml", b"<Error><Code>PermanentRedirect</Code></Error>")
    monkeypatch.setattr(proxy.store, "refusal", lambda harm, n: answer)
    proxy.harm = lambda method, path: "slow"
    with pytest.raises(ConfigError, match=r"lies in another region: set \$AWS_REGION$"):
        buckets.open_bucket("s3", bucket).folders("")


@only_s3
def test_credentials_of_aws_configure_are_found(bucket, proxy, monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert buckets.open_bucket("s3", bucket).folders("") == []


@pytest.fixture
def node(proxy, monkeypatch) -> str:
    """A node of Google's that gets its tokens from our proxy; the name of a bucket for it."""
    proxy.store.create("bucket")
    for name, value in proxy.store.no_credentials(proxy.address).items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, proxy.address.removeprefix("http://"))
    token = json.dumps({"access_token": "t", "expires_in": 1, "token_type": "Bearer"}).encode()
    refusal = proxy.store.refusal

    def answer(harm: str, n: int) -> tuple[int, str, bytes]:
        return (200, "application/json", token) if harm == "slow" else refusal(harm, n)

    monkeypatch.setattr(proxy.store, "refusal", answer)
    yield "bucket"
    proxy.store.delete_bucket("bucket")


def on_tokens(harm: str) -> Harm:
    """The metadata server does not answer so; "slow" is a token here."""
    return lambda method, path: harm if "computeMetadata" in path else None


@only_google
def test_a_node_that_gets_no_token_is_one_line(node, proxy):
    proxy.harm = on_tokens("403")
    with pytest.raises(ConfigError, match="refuses these credentials .*gcloud auth") as found:
        buckets.open_bucket("gs", node).folders("")
    assert "\n" not in str(found.value)


@only_google
def test_a_token_that_came_once_is_waited_for(node, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.5)
    proxy.harm = on_tokens("slow")
    found = buckets.open_bucket("gs", node)
    assert found.folders("") == []
    time.sleep(1.1)  # until it is no longer valid
    proxy.harm = on_tokens("reset")
    with pytest.raises(StoreError, match="has not answered"):
        found.folders("")


@only_google
def test_an_address_of_a_store_that_is_none_is_named(proxy, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:1234")
    with pytest.raises(ConfigError, match=r"STORAGE_EMULATOR_HOST takes http://HOST:PORT"):
        buckets.open_bucket("gs", "bucket").folders("")
