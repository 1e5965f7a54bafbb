"""Encrypting and decrypting files: in little memory, whole or not at all, never plain where they should not be."""

import io
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from imet_ray.errors import StoreError
from imet_ray.storage import encryption
from imet_ray.storage.encryption import MAGIC, Secret, encrypt, encrypt_file

KEY = Secret(key=bytes(range(32)))
PASSPHRASE = Secret(passphrase="correct horse")


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch):
    """2^10 in place of 2^17."""
    monkeypatch.setattr(encryption, "LOG_N", 10)


def sealed(plain: bytes) -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(plain), target, KEY, chunk_bytes=32)
    return target.getvalue()


class Zeros(io.RawIOBase):
    """So many zero bytes, made as they are read."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        self.left -= (size := min(size, self.left))
        return bytes(size)


class Nowhere(io.RawIOBase):
    """Counts what is written and forgets it."""

    size = 0

    def write(self, data) -> int:
        self.size += len(data)
        return len(data)


def test_encrypting_200_mb_takes_less_than_2_mb_of_memory():
    target = Nowhere()
    tracemalloc.start()
    try:
        encrypt(Zeros(200_000_000), target, KEY)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert target.size > 200_000_000


def test_decrypting_a_large_file_takes_less_than_2_mb_of_memory(tmp_path):
    with (tmp_path / "w.enc").open("wb") as target:
        encrypt(Zeros(50_000_000), target, KEY)
    tracemalloc.start()
    try:
        encryption.decrypt_file(tmp_path / "w.enc", tmp_path / "w", KEY)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "w").stat().st_size == 50_000_000


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_a_decrypted_file_is_private_and_whole(tmp_path, monkeypatch, nameless):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    plain = os.urandom(3 * encryption.CHUNK_BYTES + 5)
    (tmp_path / "w").write_bytes(plain)
    encrypt_file(tmp_path / "w", tmp_path / "w.enc", KEY)
    encryption.decrypt_file(tmp_path / "w.enc", tmp_path / "again", KEY)
    assert (tmp_path / "again").read_bytes() == plain
    assert (tmp_path / "again").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "w", "w.enc"]


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\0\0", lambda data: data[:90]]
)
def test_a_damaged_file_leaves_no_plain_text(tmp_path, monkeypatch, nameless, damage):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    (tmp_path / "w.enc").write_bytes(damage(sealed(os.urandom(3 * 32))))
    with pytest.raises(StoreError, match=r"w\.enc"):
        encryption.decrypt_file(tmp_path / "w.enc", tmp_path / "w", KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["w.enc"]


def test_a_file_that_was_there_survives_a_damaged_one(tmp_path):
    (tmp_path / "w").write_bytes(b"earlier")
    (tmp_path / "w.enc").write_bytes(sealed(b"later")[:-1])
    with pytest.raises(StoreError, match="cut off"):
        encryption.decrypt_file(tmp_path / "w.enc", tmp_path / "w", KEY)
    assert (tmp_path / "w").read_bytes() == b"earlier"


def test_a_file_can_be_encrypted_and_decrypted_in_its_place(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    encrypt_file(path, path, PASSPHRASE)
    assert path.read_bytes().startswith(MAGIC)
    encryption.decrypt_file(path, path, PASSPHRASE)
    assert path.read_bytes() == b"weights"


def test_a_missing_source_is_said_of_the_source(tmp_path):
    with pytest.raises(StoreError, match="cannot read .*missing: No such file"):
        encrypt_file(tmp_path / "missing", tmp_path / "w.enc", KEY)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_plain_text(tmp_path):
    endless = (
        "import sys, itertools; from pathlib import Path; from imet_ray.storage import encryption\n"
        "encryption.decrypted = lambda *_: (b'plain' * 10_000 if i else print('begun', flush=True) or b'plain' * 10_000"
        " for i in itertools.cycle(range(1000)))\n"
        "encryption.decrypt_file(Path(sys.argv[1]), Path(sys.argv[2]), encryption.Secret.new())"
    )
    (tmp_path / "w.enc").write_bytes(b"x")
    command = [sys.executable, "-c", endless, str(tmp_path / "w.enc"), str(tmp_path / "w")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=Path(encryption.__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["w.enc"]
