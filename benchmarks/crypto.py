"""Encrypting and decrypting weights, against plain AES-GCM of one buffer in the same library.

    uv run python -m benchmarks.crypto [--megabytes 512] [--rounds 5]

Memory to memory, on one core. Ours seals chunk by chunk in constant memory and refuses what was changed, cut or
reordered. The peer gets the whole buffer in one call, and must hold all of it before the first byte can be trusted:
`AESGCM.encrypt`, which takes new memory for its result each time (the kernel zeroes it page by page: most of its
time), and `AESGCM.encrypt_into`, where the library has it, into memory that is there: the speed of the cipher alone.
Rounds alternate, so that a busy machine slows all alike; medians.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imet_ray.storage import encryption

NONCE = bytes(12)


def contenders(plain: bytes) -> dict[str, Callable[[], object]]:
    """What is timed, by name. Memory that a contender may reuse is made, and touched, before."""
    secret, peer = encryption.Secret.new(), AESGCM(os.urandom(encryption.KEY_BYTES))
    source, target = io.BytesIO(plain), io.BytesIO()
    encryption.encrypt(source, target, secret)
    sealed = peer.encrypt(NONCE, plain, None)

    def ours_encrypt() -> None:
        source.seek(0)
        target.seek(0)
        encryption.encrypt(source, target, secret)

    def ours_decrypt() -> None:
        target.seek(0)
        for _ in encryption.decrypted(target, secret, "benchmark"):
            pass

    timed: dict[str, Callable[[], object]] = {
        "ours, encrypt": ours_encrypt,
        "ours, decrypt": ours_decrypt,
        "one buffer, encrypt": lambda: peer.encrypt(NONCE, plain, None),
        "one buffer, decrypt": lambda: peer.decrypt(NONCE, sealed, None),
    }
    if hasattr(peer, "encrypt_into"):
        room = bytearray(sealed)
        timed["one buffer, encrypt_into"] = lambda: peer.encrypt_into(NONCE, plain, None, room)
        space = memoryview(room)[: len(plain)]
        timed["one buffer, decrypt_into"] = lambda: peer.decrypt_into(NONCE, sealed, None, space)
    return timed


def seconds_of(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    plain = os.urandom(1_000_000) * args.megabytes
    timed = contenders(plain)
    rounds = [{name: seconds_of(function) for name, function in timed.items()} for _ in range(args.rounds)]
    rate = {name: args.megabytes / statistics.median(each[name] for each in rounds) for name in timed}
    print(
        f"{args.megabytes} MB, chunks of {encryption.CHUNK_BYTES >> 10} KiB, median of {args.rounds} rounds"
    )
    for name in timed:
        ours = rate["ours, decrypt" if "decrypt" in name else "ours, encrypt"]
        ratio = "" if name.startswith("ours") else f"   ours is {ours / rate[name]:.2f} x"
        print(f"{name:<28}{rate[name]:8.0f} MB/s{ratio}")


if __name__ == "__main__":
    main()
