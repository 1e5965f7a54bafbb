"""Encrypted files: what goes in comes out, and nothing that was changed on the way does."""

import io
import os
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage import encryption
from imet_ray.storage.encryption import KEY_PREFIX, MAGIC, Secret, decrypted, encrypt

CHUNK = 32
SEALED = CHUNK + 16
HEADER = 12 + 5 + 4 + 16 + 16 + 16
KEY = Secret(key=bytes(range(32)))
PASSPHRASE = Secret(passphrase="correct horse")
DERIVATION_AT, LOG_N_AT, R_AT, P_AT, CHUNK_AT = 13, 14, 15, 16, 17
around_borders = st.builds(
    lambda chunks, more: max(0, chunks * CHUNK + more), st.integers(0, 4), st.integers(-2, 2)
)
secrets_of_both_kinds = st.sampled_from([KEY, PASSPHRASE])


@pytest.fixture(scope="module", autouse=True)
def quick_scrypt():
    """2^10 in place of 2^17: a millisecond for each altered salt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "LOG_N", 10)
        yield


def sealed(plain: bytes, secret: Secret = KEY, **settings) -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(plain), target, secret, **{"chunk_bytes": CHUNK, **settings})
    return target.getvalue()


def opened(data: bytes, secret: Secret = KEY) -> bytes:
    return b"".join(decrypted(io.BytesIO(data), secret, "w.enc"))


def refusal(data: bytes, secret: Secret = KEY, original: bytes | None = None) -> str:
    """The one line that refuses `data`; what was let through before it is a beginning of `original`."""
    let_through: list[bytes] = []
    with pytest.raises(StoreError) as caught:
        let_through.extend(decrypted(io.BytesIO(data), secret, "w.enc"))
    through = b"".join(let_through)
    line = str(caught.value)
    assert line.startswith("w.enc")
    assert "\n" not in line
    assert original is None or (original.startswith(through) and len(through) < max(1, len(original)))
    return line


def pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """Header and sealed chunks."""
    body = data[HEADER:]
    return data[:HEADER], [body[i : i + SEALED] for i in range(0, len(body), SEALED)]


@given(size=around_borders, secret=secrets_of_both_kinds)
def test_what_goes_in_comes_out(size, secret):
    plain = os.urandom(size)
    data = sealed(plain, secret)
    assert opened(data, secret) == plain
    assert len(data) == HEADER + size + 16 * max(1, -(-size // CHUNK))


WRITTEN_IN_2026 = {
    KEY: "696d65742d7261792d656e6301000000000000002000000000000000000000000000000000b59a7a048512a2fa1e8b1e7139401b"
    "09a7f82d01d803249d873ec3bbd0d536545f49f14390236539ab3f5983cf9dc9f6ab3546e5672238e0a5a81ca9c73f51436834e123f2"
    "3f59bb88472a08ba514d7434bed9605acbe37fab50853c536200de99661ced2f4dee856110",
    PASSPHRASE: "696d65742d7261792d656e6301010a0801000000200cd7447a5f7baee125033b3367dc65840407dd9a519229c08f545ec235"
    "4c108a69c29f844c1e30597fedf6821e4ccb95b4e825f9412d745cbd1883773770348bb24affbf28696e35da3074376f8c961482cbf5"
    "40949c1abc472680ba964c82f8093d0367274b07a4b97ac219449199bedbf46a08165ff936149e",
}


@pytest.mark.parametrize("secret", [KEY, PASSPHRASE], ids=["key", "passphrase"])
def test_files_of_earlier_versions_are_opened(secret):
    assert opened(bytes.fromhex(WRITTEN_IN_2026[secret]), secret) == b"weights" * 6


@given(plain=st.binary(max_size=5 * CHUNK), chunk_bytes=st.integers(1, 6 * CHUNK))
def test_any_size_of_chunk_is_read_back(plain, chunk_bytes):
    assert opened(sealed(plain, chunk_bytes=chunk_bytes)) == plain


@given(size=around_borders, secret=secrets_of_both_kinds, data=st.data())
def test_a_changed_byte_anywhere_is_refused(size, secret, data):
    plain = os.urandom(size)
    altered = bytearray(sealed(plain, secret))
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    refusal(bytes(altered), secret, plain)


@pytest.mark.parametrize("at", range(HEADER))
@pytest.mark.parametrize("secret", [KEY, PASSPHRASE], ids=["key", "passphrase"])
def test_no_bit_of_the_header_can_be_changed(at, secret):
    original = sealed(b"weights", secret)
    for bit in range(8):
        altered = bytearray(original)
        altered[at] ^= 1 << bit
        if secret is PASSPHRASE and at == LOG_N_AT and bit == 4:
            continue  # 10 ^ 16 = 26 is refused below; it must not depend on this machine's memory
        refusal(bytes(altered), secret, b"weights")


@given(size=around_borders, data=st.data())
def test_a_cut_anywhere_is_refused(size, data):
    plain = os.urandom(size)
    whole = sealed(plain)
    kept = data.draw(st.integers(0, len(whole) - 1))
    assert "is cut off" in refusal(whole[:kept], KEY, plain)


def test_a_cut_between_chunks_says_where():
    whole = sealed(bytes(3 * CHUNK))
    assert "is cut off or was altered in chunk 2" in refusal(whole[: HEADER + 2 * SEALED])


@given(
    chunks=st.integers(1, 4),
    more=st.integers(0, CHUNK - 1),
    appended=st.binary(min_size=1, max_size=2 * SEALED),
)
def test_bytes_after_the_end_are_refused(chunks, more, appended):
    plain = os.urandom(chunks * CHUNK + more)
    assert "was altered in chunk" in refusal(sealed(plain) + appended, KEY, plain + b"more")


@given(order=st.lists(st.integers(0, 4), min_size=1, max_size=8), last=st.integers(1, CHUNK), data=st.data())
def test_chunks_swapped_repeated_or_dropped_are_refused(order, last, data):
    assume(order != [0, 1, 2, 3, 4])
    plain = os.urandom(4 * CHUNK + last)
    header, chunks = pieces(sealed(plain))
    refusal(header + b"".join(chunks[i] for i in order), KEY, plain + b"more")


def test_two_swapped_chunks_are_named_by_the_first():
    header, chunks = pieces(sealed(os.urandom(5 * CHUNK)))
    chunks[2], chunks[3] = chunks[3], chunks[2]
    assert "w.enc was altered in chunk 3" in refusal(header + b"".join(chunks))


@given(at=st.integers(0, 3), secret=secrets_of_both_kinds)
def test_a_chunk_of_another_file_of_the_same_secret_is_refused(at, secret):
    plain = os.urandom(4 * CHUNK)
    header, chunks = pieces(sealed(plain, secret))
    _, others = pieces(sealed(plain, secret))
    chunks[at] = others[at]
    assert f"altered in chunk {at + 1}" in refusal(header + b"".join(chunks), secret, plain)


def test_the_header_of_another_file_is_refused():
    (_, chunks), (header, _) = pieces(sealed(b"ours")), pieces(sealed(b"ours"))
    assert "altered in chunk 1" in refusal(header + b"".join(chunks))


def test_an_empty_last_chunk_after_others_is_refused_even_if_genuine():
    whole = sealed(bytes(CHUNK))
    cipher, _ = encryption._file_key(whole[: encryption._LAYOUT.size], KEY)
    first, end = (
        cipher.encrypt(encryption._nonce(*n), p, None)
        for n, p in (((0, False), bytes(CHUNK)), ((1, True), b""))
    )
    assert "altered in chunk 2" in refusal(whole[:HEADER] + first + end)


def test_the_same_plain_text_is_never_sealed_alike():
    assert sealed(b"weights")[HEADER:] != sealed(b"weights")[HEADER:]


def test_no_plain_text_stands_in_the_sealed_file():
    assert b"conv1.weight" not in sealed(b"conv1.weight" * 20)


def test_a_wrong_key_is_refused_before_anything_is_let_through():
    assert "cannot be decrypted: a wrong key, or its header was altered" in refusal(
        sealed(b"weights"), Secret.new(), b"weights"
    )


def test_a_wrong_passphrase_is_refused():
    data = sealed(b"weights", PASSPHRASE)
    assert "a wrong passphrase, or its header was altered" in refusal(data, Secret(passphrase="correct hors"))


def test_a_key_does_not_open_a_file_of_a_passphrase():
    assert "give the passphrase" in refusal(sealed(b"weights", PASSPHRASE), KEY)


def test_a_passphrase_does_not_open_a_file_of_a_key():
    assert "give the key" in refusal(sealed(b"weights", KEY), PASSPHRASE)


def test_a_passphrase_may_have_its_accents_either_way():
    assert opened(sealed(b"x", Secret(passphrase="caf\u00e9")), Secret(passphrase="cafe\u0301")) == b"x"


def test_a_passphrase_of_bytes_that_are_no_text_works():
    odd = Secret(passphrase=b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert opened(sealed(b"x", odd), odd) == b"x"


def test_files_of_one_passphrase_share_a_derivation():
    encryption._from_passphrase.cache_clear()
    for _ in range(3):
        opened(sealed(b"x", PASSPHRASE), PASSPHRASE)
    assert encryption._from_passphrase.cache_info().misses == 1


@pytest.mark.parametrize(
    ("at", "value"),
    [(LOG_N_AT, log_n) for log_n in (0, 21, 26, 40, 200, 255)] + [(R_AT, 255), (P_AT, 255)],
)
def test_a_header_that_asks_for_much_memory_is_refused_before_any_is_taken(at, value, monkeypatch):
    hostile = bytearray(sealed(b"x", PASSPHRASE))
    hostile[at] = value
    monkeypatch.setattr(encryption, "Scrypt", None)
    assert "asks for scrypt with" in refusal(bytes(hostile), PASSPHRASE)


@pytest.mark.parametrize("secret", [KEY, PASSPHRASE], ids=["key", "passphrase"])
@pytest.mark.parametrize("log_n", [0, 10, 21, 40, 200])
def test_an_unknown_key_derivation_is_refused_whatever_it_asks_for(secret, log_n, monkeypatch):
    hostile = bytearray(sealed(b"x", secret))
    hostile[DERIVATION_AT], hostile[LOG_N_AT] = 7, log_n
    monkeypatch.setattr(encryption, "Scrypt", None)
    assert "asks for the unknown key derivation 7: its header was altered" in refusal(bytes(hostile), secret)


def test_a_header_that_asks_for_vast_chunks_is_refused():
    hostile = bytearray(sealed(b"x"))
    hostile[CHUNK_AT] = 255
    assert "asks for chunks of" in refusal(bytes(hostile))


def test_a_later_version_is_named():
    later = bytearray(sealed(b"x"))
    later[len(MAGIC)] = 2
    assert "has version 2 of the format, this imet_ray reads version 1" in refusal(bytes(later))


def test_a_plain_file_is_not_taken_for_an_encrypted_one():
    assert "is not an encrypted file" in refusal(b'{"__metadata__": {}}' * 10)


def test_a_key_is_read_back_from_its_text():
    secret = Secret.new()
    assert re.fullmatch(KEY_PREFIX + "[0-9a-f]{64}", secret.text)
    assert Secret.parse(f"\n {secret.text}\r\n") == secret
    assert Secret.new() != secret


@given(
    text=st.text(max_size=90) | st.text("0123456789abcdefg", min_size=62, max_size=66).map(KEY_PREFIX.__add__)
)
def test_another_text_is_no_key_and_is_not_repeated(text):
    assume(not re.fullmatch(KEY_PREFIX + "[0-9a-fA-F]{64}", text.strip()))
    with pytest.raises(ConfigError, match="64 hex digits") as caught:
        Secret.parse(text)
    assert len(text) < 10 or text not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "given_", [{}, {"key": b"k" * 32, "passphrase": "p"}, {"passphrase": ""}, {"key": b"short"}]
)
def test_a_secret_is_one_whole_key_or_one_passphrase(given_):
    with pytest.raises(ConfigError) as caught:
        Secret(**given_)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("secret", [Secret(key=b"k" * 32), Secret(passphrase="open sesame")])
def test_neither_repr_nor_error_shows_the_secret(secret):
    shown = f"{secret!r} {secret} {[secret]}" + refusal(sealed(b"x", Secret.new()), secret)
    shown += refusal(sealed(b"x", Secret(passphrase="other")), secret)
    for hidden in ("kkkk", (b"k" * 32).hex(), "sesame"):
        assert hidden not in shown
