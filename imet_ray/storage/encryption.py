"""Encrypted files of weights, sealed in chunks: a file of any size takes constant memory.

The format is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar 2015), as age uses it: a header, a check of
key and header, then the plain text in chunks of one size. Each chunk is sealed by AES-256-GCM under a key of this file
alone; its nonce is its number and whether it is the last. So no chunk can be changed, moved, repeated, dropped or taken
from another file, and nothing can be cut off or added at the end. Names, sizes and times are not hidden.
"""

import contextlib
import hmac
import os
import re
import secrets
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.files import writing

KEY_VARIABLE, PASSPHRASE_VARIABLE = "IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"
KEY_PREFIX = "imet-ray-key-1:"
KEY_BYTES, SALT_BYTES, CHECK_BYTES, TAG_BYTES = 32, 16, 16, 16
CHUNK_BYTES = 1 << 18  # as fast as 128 and 512 KiB; 64 KiB is 5 % slower, 1 MiB half as fast
MAX_CHUNK_BYTES = 1 << 24
LOG_N, R, P = 17, 8, 1  # scrypt: 128 MiB and about 0.4 s for each guess at a passphrase
MAX_LOG_N = 20  # 1 GiB: the most that a header may ask for
RANDOM_KEY, SCRYPT = 0, 1  # key derivations; the three bytes of costs are 0 for a random key
MAGIC, VERSION = b"imet-ray-enc", 1
# magic, version, key derivation, its costs (log n, r, p), chunk size, salt, nonce; then the check
_LAYOUT = struct.Struct(">12sBB3sI16s16s")


@dataclass(frozen=True, repr=False)
class Secret:
    """What opens a file: a random key of 32 bytes or a passphrase, exactly one. Its repr shows neither.

    Raises:
        ConfigError: if both or none are given, or a key of another length.
    """

    key: bytes | None = None
    passphrase: str | None = None

    def __post_init__(self) -> None:
        if bool(self.key) == bool(self.passphrase):
            raise ConfigError("a secret is a key or a passphrase, not empty: give exactly one of them")
        if self.key and len(self.key) != KEY_BYTES:
            raise ConfigError(f"a key must have {KEY_BYTES} bytes, got {len(self.key)}: use Secret.new()")

    def __repr__(self) -> str:
        return f"Secret(<{self.kind}>)"

    @property
    def kind(self) -> str:
        return "key" if self.key else "passphrase"

    @classmethod
    def new(cls) -> "Secret":
        """A random key."""
        return cls(key=secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str, where: str = "") -> "Secret":
        """The key in the text of a key file or variable; space around it is ignored.

        Args:
            where: prefix of the error, such as "imet_ray.key: ".

        Raises:
            ConfigError: if it is not such a text, which the error does not repeat.
        """
        if not (match := re.fullmatch(KEY_PREFIX + r"([0-9a-fA-F]{64})", text.strip())):
            raise ConfigError(
                f"{where}a key must read {KEY_PREFIX} and {2 * KEY_BYTES} hex digits: is it whole?"
            )
        return cls(key=bytes.fromhex(match[1]))

    @classmethod
    def of_environment(cls) -> "Secret | None":
        """The key in one environment variable, or the passphrase in another; None if neither is set."""
        if text := os.environ.get(KEY_VARIABLE):
            return cls.parse(text, f"{KEY_VARIABLE}: ")
        text = os.environ.get(PASSPHRASE_VARIABLE)
        return cls(passphrase=text) if text else None

    @property
    def text(self) -> str:
        """A key as `parse` reads it."""
        assert self.key is not None, "a passphrase has no text of a key"
        return KEY_PREFIX + self.key.hex()


def encrypt(source: BinaryIO, target: BinaryIO, secret: Secret, *, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Seal all that `source` gives, in constant memory.

    Args:
        source, target: buffered: a read is short only at the end, and a write is taken whole.
        chunk_bytes: of plain text sealed at once, up to 16 MiB.
    """
    assert 0 < chunk_bytes <= MAX_CHUNK_BYTES
    if secret.passphrase:
        derivation, costs, salt = SCRYPT, bytes([LOG_N, R, P]), _salt(secret.passphrase)
    else:
        derivation, costs, salt = RANDOM_KEY, bytes(3), bytes(SALT_BYTES)
    header = _LAYOUT.pack(
        MAGIC, VERSION, derivation, costs, chunk_bytes, salt, secrets.token_bytes(SALT_BYTES)
    )
    cipher, check = _file_key(header, secret)
    target.write(header + check)
    for number, chunk, last in _chunks(source, chunk_bytes):
        target.write(cipher.encrypt(_nonce(number, last), chunk, None))


def decrypted(source: BinaryIO, secret: Secret, name: str) -> Iterator[bytes]:
    """The plain text, chunk by chunk as each proves genuine. It is whole only when the iterator ends.

    Args:
        name: of the file, for errors.

    Raises:
        StoreError: naming the file, at the first chunk that is wrong, or for the wrong secret.
    """
    head = source.read(_LAYOUT.size + CHECK_BYTES)
    size = _checked_chunk_bytes(head, secret, name) + TAG_BYTES
    cipher, check = _file_key(head[: _LAYOUT.size], secret)
    if not hmac.compare_digest(head[_LAYOUT.size :], check):
        raise StoreError(f"{name} cannot be decrypted: a wrong {secret.kind}, or its header was altered")
    for number, sealed, last in _chunks(source, size):
        try:
            if number > 0 and len(sealed) == TAG_BYTES:  # encrypt writes no empty chunk after others
                raise InvalidTag
            plain = cipher.decrypt(_nonce(number, last), sealed, None)
        except InvalidTag:  # shorter than a tag, too
            wrong = "is cut off or was altered" if last else "was altered"
            raise StoreError(f"{name} {wrong} in chunk {number + 1}: copy it again") from None
        yield plain


def encrypt_file(source: Path, target: Path, secret: Secret) -> None:
    """Encrypt a file, atomically; both may be the same path.

    Raises:
        StoreError: if one cannot be read or the other not written.
    """
    with _reading(source) as plain, writing(target) as temporary, temporary.open("wb") as sealed:
        encrypt(plain, sealed, secret)


def decrypt_file(source: Path, target: Path, secret: Secret) -> None:
    """Decrypt a file, atomically, readable by its owner only: all of it is genuine, or there is no file.

    Raises:
        StoreError: naming the file, if any of it is wrong.
    """
    with _reading(source) as sealed, writing(target) as temporary, _nameless(temporary) as plain:
        plain.writelines(decrypted(sealed, secret, str(source)))


def _file_key(header: bytes, secret: Secret) -> tuple[AESGCM, bytes]:
    """The cipher of one file, and the check that says whether secret and header are the right ones."""
    *_, costs, _, salt, nonce = _LAYOUT.unpack(header)
    master = secret.key or _from_passphrase(secret.passphrase or "", salt, costs[0])
    # The header is the info of the derivation: an altered one gives another key.
    keys = HKDF(SHA256(), KEY_BYTES + CHECK_BYTES, salt=nonce, info=header).derive(master)
    return AESGCM(keys[:KEY_BYTES]), keys[KEY_BYTES:]


@lru_cache(maxsize=16)
def _salt(passphrase: str) -> bytes:
    """Random; one per passphrase and process, so that its files share a derivation."""
    return secrets.token_bytes(SALT_BYTES)


@lru_cache(maxsize=16)
def _from_passphrase(passphrase: str, salt: bytes, log_n: int) -> bytes:
    # NFC: an accent is one character or two, as the keyboard has it. surrogatepass: variables may hold any bytes.
    text = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return Scrypt(salt, KEY_BYTES, n=1 << log_n, r=R, p=P).derive(text)


def _checked_chunk_bytes(head: bytes, secret: Secret, name: str) -> int:
    """The header's size of chunks. What encrypt never writes is refused before it costs memory or time."""
    if not MAGIC.startswith(head[: len(MAGIC)]):
        raise StoreError(f"{name} is not an encrypted file of imet_ray: use it as it is, or encrypt it first")
    if len(head) > len(MAGIC) and head[len(MAGIC)] != VERSION:
        raise StoreError(
            f"{name} has version {head[len(MAGIC)]} of the format, this imet_ray reads version {VERSION}: "
            "use the imet_ray that wrote it, or a newer one"
        )
    if len(head) < _LAYOUT.size + CHECK_BYTES:
        raise StoreError(f"{name} is cut off in its header: copy it again")
    chunk_bytes: int
    _, _, derivation, (log_n, r, p), chunk_bytes, *_ = _LAYOUT.unpack(head[: _LAYOUT.size])
    wrong = ""
    if derivation not in (RANDOM_KEY, SCRYPT):
        wrong = f"the unknown key derivation {derivation}"
    elif derivation == SCRYPT and not (0 < log_n <= MAX_LOG_N and (r, p) == (R, P)):
        wrong = f"scrypt with log2 n={log_n}, r={r}, p={p}"
    elif not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        wrong = f"chunks of {chunk_bytes:,} bytes"
    if wrong:
        raise StoreError(f"{name} asks for {wrong}: its header was altered, copy it again")
    kind = "key" if derivation == RANDOM_KEY else "passphrase"
    if kind != secret.kind:
        raise StoreError(
            f"{name} was encrypted with a {kind}, but a {secret.kind} was given: give the {kind}"
        )
    return chunk_bytes


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Chunks with their numbers from 0 and whether they are the last; one empty chunk if there is nothing."""
    number, chunk = 0, source.read(size)
    while following := source.read(size):
        yield number, chunk, False
        number, chunk = number + 1, following
    yield number, chunk, True


def _reading(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _nameless(path: Path) -> Iterator[BinaryIO]:
    """A private file that gets its name when the block ends well: a process killed before leaves nothing."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    except (AttributeError, OSError):  # not Linux, or a network file system
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    with os.fdopen(descriptor, "w+b") as file:
        yield file
        file.flush()
        if not path.exists():
            # An absolute path needs no src_dir_fd, but only with one does Python follow the link.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
