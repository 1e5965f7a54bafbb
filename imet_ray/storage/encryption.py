"""Encrypted files of weights: sealed in chunks, so that files of any size take constant memory.

The format is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar 2015), as age uses it. A header of 69 bytes:
magic, version, key derivation with its parameters and salt, chunk size, a random nonce of the file, and a check of key
and header. Then the plain text in chunks of one size, each sealed by AES-256-GCM under a key of this file alone; a
chunk's nonce is its number and whether it is the last. So no chunk can be changed, moved, repeated, dropped or taken
from another file, and the end cannot be cut off or added to. Names, sizes and times are not hidden. Where keys are
kept is not the business of this module.
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
from typing import BinaryIO, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.files import writing

MAGIC = b"imet-ray-enc"
VERSION = 1
KEY_BYTES = 32
SALT_BYTES = 16
CHECK_BYTES = 16
TAG_BYTES = 16  # what AES-GCM adds to each chunk
CHUNK_BYTES = 1 << 18  # as fast as 128 and 512 KiB; 64 KiB is 5 % slower, 1 MiB half (memory mapped anew)
MAX_CHUNK_BYTES = 1 << 24
LOG_N, R, P = 17, 8, 1  # scrypt: 128 MiB and about 0.4 s for each guess at a passphrase
MAX_LOG_N = 20  # 1 GiB: what a stranger's header may ask for
RANDOM_KEY, SCRYPT = 0, 1  # key derivations
KEY_PREFIX = "imet-ray-key-1:"
_LAYOUT = struct.Struct(">12sBBBBBI16s16s")


@dataclass(frozen=True)
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
        return f"Secret(<{'key' if self.key else 'passphrase'}>)"

    @classmethod
    def new(cls) -> "Secret":
        """A random key."""
        return cls(key=secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> "Secret":
        """The key in the text of a key file or variable; space around it is ignored.

        Raises:
            ConfigError: if it is not such a text, which is not repeated.
        """
        if not (match := re.fullmatch(KEY_PREFIX + r"([0-9a-fA-F]{64})", text.strip())):
            raise ConfigError(f"a key must read {KEY_PREFIX} and {2 * KEY_BYTES} hex digits: is it whole?")
        return cls(key=bytes.fromhex(match[1]))

    @property
    def text(self) -> str:
        """A key as `parse` reads it."""
        assert self.key is not None, "a passphrase has no text of a key"
        return KEY_PREFIX + self.key.hex()


class _Header(NamedTuple):
    """The header but for its check, in the order of its bytes."""

    magic: bytes
    version: int
    derivation: int
    log_n: int
    r: int
    p: int
    chunk_bytes: int
    salt: bytes
    nonce: bytes


def is_encrypted(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one of ours; 12 of them are enough."""
    return head.startswith(MAGIC)


def encrypt(
    source: BinaryIO,
    target: BinaryIO,
    secret: Secret,
    *,
    salt: bytes | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Seal all that `source` gives, in constant memory.

    Args:
        target: buffered: each write is taken whole.
        salt: 16 bytes for scrypt, so that many files of one passphrase share its derivation; else random.
        chunk_bytes: of plain text sealed at once, up to 16 MiB.
    """
    assert 0 < chunk_bytes <= MAX_CHUNK_BYTES
    assert salt is None or len(salt) == SALT_BYTES
    nonce = secrets.token_bytes(16)
    if secret.key:
        header = _Header(MAGIC, VERSION, RANDOM_KEY, 0, 0, 0, chunk_bytes, bytes(SALT_BYTES), nonce)
    else:
        salt = salt or secrets.token_bytes(SALT_BYTES)
        header = _Header(MAGIC, VERSION, SCRYPT, LOG_N, R, P, chunk_bytes, salt, nonce)
    cipher, check = _file_key(header, secret)
    target.write(_LAYOUT.pack(*header) + check)
    for number, chunk, last in _chunks(source, chunk_bytes):
        target.write(cipher.encrypt(_nonce(number, last), chunk, None))


def decrypted(source: BinaryIO, secret: Secret, name: str) -> Iterator[bytes]:
    """The plain text, chunk by chunk as each proves genuine. The whole is only when the iterator ends.

    Args:
        name: of the file, for errors.

    Raises:
        StoreError: naming the file, at the first chunk that is wrong, or for the wrong secret.
    """
    header, check = _read_header(source, name)
    _refuse_other_secret(header, secret, name)
    try:
        cipher, expected = _file_key(header, secret)
    except MemoryError:
        needed = (128 * header.r << header.log_n) >> 20
        raise StoreError(f"{name}: its passphrase takes {needed} MiB of memory: free some") from None
    if not hmac.compare_digest(check, expected):
        what = "key" if secret.key else "passphrase"
        raise StoreError(f"{name} cannot be decrypted: a wrong {what}, or its header was altered")
    for number, chunk, last in _chunks(source, header.chunk_bytes + TAG_BYTES):
        empty = last and number > 0 and len(chunk) == TAG_BYTES  # encrypt never ends so
        plain = None if empty else _opened(cipher, number, last, chunk)
        if plain is None:
            full = len(chunk) == header.chunk_bytes + TAG_BYTES
            wrong = _what_is_wrong(cipher, number, last, chunk, full)
            raise StoreError(f"{name} {wrong}: copy it again")
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


def _file_key(header: _Header, secret: Secret) -> tuple[AESGCM, bytes]:
    """The cipher of one file, and the check that says whether secret and header are the right ones."""
    if secret.key:
        master = secret.key
    else:
        assert secret.passphrase is not None
        master = _from_passphrase(secret.passphrase, header.salt, header.log_n, header.r, header.p)
    # The header as info: whoever alters it gets another key.
    hkdf = HKDF(SHA256(), KEY_BYTES + CHECK_BYTES, salt=header.nonce, info=_LAYOUT.pack(*header))
    keys = hkdf.derive(master)
    return AESGCM(keys[:KEY_BYTES]), keys[KEY_BYTES:]


@lru_cache(maxsize=16)
def _from_passphrase(passphrase: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    # NFC: an accent is one character or two, as the keyboard has it. surrogatepass: variables may hold any bytes.
    text = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return Scrypt(salt, KEY_BYTES, n=1 << log_n, r=r, p=p).derive(text)


def _read_header(source: BinaryIO, name: str) -> tuple[_Header, bytes]:
    """Header and check, refused where following it would be wrong or costly; it is not yet known to be genuine."""
    head = _read(source, _LAYOUT.size + CHECK_BYTES)
    if not MAGIC.startswith(head[: len(MAGIC)]):
        raise StoreError(f"{name} is not an encrypted file of imet_ray: use it as it is, or encrypt it first")
    if len(head) > len(MAGIC) and head[len(MAGIC)] != VERSION:
        raise StoreError(
            f"{name} has version {head[len(MAGIC)]} of the format, this imet_ray reads version {VERSION}: "
            "use the imet_ray that wrote it, or a newer one"
        )
    if len(head) < _LAYOUT.size + CHECK_BYTES:
        raise StoreError(f"{name} is cut off in its header: copy it again")
    header = _Header(*_LAYOUT.unpack(head[: _LAYOUT.size]))
    if wrong := _unacceptable(header):
        raise StoreError(f"{name} asks for {wrong}: its header was altered, copy it again")
    return header, head[_LAYOUT.size :]


def _unacceptable(header: _Header) -> str | None:
    """What a header asks for that encrypt never writes, and that could take all memory."""
    if header.derivation not in (RANDOM_KEY, SCRYPT):
        return f"unknown key derivation {header.derivation}"
    cheap = 1 <= header.log_n <= MAX_LOG_N and (header.r, header.p) == (R, P)
    if header.derivation == SCRYPT and not cheap:
        asked = f"log2 n={header.log_n}, r={header.r}, p={header.p}"
        return f"scrypt with {asked} (accepted: 1..{MAX_LOG_N}, {R}, {P})"
    if not 0 < header.chunk_bytes <= MAX_CHUNK_BYTES:
        return f"chunks of {header.chunk_bytes:,} bytes (accepted: 1..{MAX_CHUNK_BYTES:,})"
    return None


def _refuse_other_secret(header: _Header, secret: Secret, name: str) -> None:
    if header.derivation == SCRYPT and secret.key:
        raise StoreError(f"{name} was encrypted with a passphrase, but a key was given: give the passphrase")
    if header.derivation == RANDOM_KEY and secret.passphrase:
        raise StoreError(f"{name} was encrypted with a key, but a passphrase was given: give the key")


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _opened(cipher: AESGCM, number: int, last: bool, sealed: bytes) -> bytes | None:
    """The plain text of a chunk; None if it is not the genuine one for this place."""
    try:
        return cipher.decrypt(_nonce(number, last), sealed, None)
    except InvalidTag:  # shorter than a tag, too
        return None


def _what_is_wrong(cipher: AESGCM, number: int, last: bool, sealed: bytes, full: bool) -> str:
    """About a chunk that was refused, as far as it can be told."""
    if _opened(cipher, number, not last, sealed) is not None:  # genuine, but for the middle or for the end
        return (
            f"is cut off after chunk {number + 1}"
            if last
            else f"was altered in chunk {number + 2}, after its end"
        )
    if len(sealed) < TAG_BYTES:
        return f"is cut off in chunk {number + 1}"
    return f"{'was' if full else 'is cut off or was'} altered in chunk {number + 1}"


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Chunks with their numbers from 0 and whether they are the last; one empty chunk if there is nothing."""
    number, chunk = 0, _read(source, size)
    while following := _read(source, size):
        yield number, chunk, False
        number, chunk = number + 1, following
    yield number, chunk, True


def _read(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end, though a pipe or a raw file may give them in pieces."""
    data = source.read(size)
    while 0 < len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data


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
