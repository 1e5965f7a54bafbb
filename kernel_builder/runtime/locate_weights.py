"""The weights under the input folder, found by their digest, and the key that opens them.

All weights are found and checked before any is used: a forgotten dataset is reported in the first minute.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imet_ray.errors import ConfigError, ImetError, StoreError
from imet_ray.storage.checked_read import file_digest
from kernel_builder.runtime.manifest import Manifest, StoredFile, Weights

if TYPE_CHECKING:  # it needs `cryptography`, which a kernel with plain weights does without
    from imet_ray.storage.encryption import Secret

KEY_FILE = "imet_ray.key"
KEY_VARIABLE, PASSPHRASE_VARIABLE = "IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"


@dataclass(frozen=True)
class FoundWeights:
    """Where one checkpoint's weights lie."""

    weights: Weights
    path: Path
    encrypted: bool


def find_weights(manifest: Manifest, files: Sequence[Path]) -> dict[str, FoundWeights]:
    """The weights of each trial, plain or encrypted.

    Raises:
        StoreError: naming every file that is missing, cut off or altered.
    """
    wanted = [weights for member in manifest.members for weights in member.weights]
    sizes = {stored.size for weights in wanted for stored in (weights.plain, weights.stored)}
    by_digest: dict[str, Path] = {}
    by_name: dict[str, Path] = {}
    for path in files:
        try:
            size = path.stat().st_size
            by_name.setdefault(path.name, path)
            if size in sizes:
                by_digest.setdefault(file_digest(path), path)
        except OSError:
            continue  # it counts as missing
    found: dict[str, FoundWeights] = {}
    problems = []
    for weights in wanted:
        if plain := by_digest.get(weights.plain.sha256):
            found[weights.trial] = FoundWeights(weights, plain, encrypted=False)
        elif stored := by_digest.get(weights.stored.sha256):
            found[weights.trial] = FoundWeights(weights, stored, encrypted=True)
        else:
            problems.append(_problem(weights.stored, by_name.get(weights.stored.name)))
    if problems:
        raise StoreError(
            f"{len(problems)} files of weights cannot be used:\n  "
            + "\n  ".join(problems)
            + "\nattach the datasets that were built with this kernel"
        )
    return found


def find_secret(
    found: Sequence[FoundWeights], embedded: str | None, files: Sequence[Path]
) -> "Secret | None":
    """What opens the encrypted weights: the key in the kernel, in the environment, or in a dataset's file.

    The beginning of each file is opened: a wrong key shows before anything is predicted.

    Returns:
        None if no weights are encrypted.

    Raises:
        StoreError: naming the file that does not open.
        ConfigError: if there is no key.
    """
    encrypted = [one for one in found if one.encrypted]
    if not encrypted:
        return None
    try:
        from imet_ray.storage.encryption import decrypted
    except ImportError as error:
        raise ConfigError(
            f"the weights are encrypted, and this machine lacks the package cryptography ({error}): install it, or "
            f"build the kernel without --encrypt"
        ) from None
    refused: ImetError | None = None
    for where, text in _secret_texts(embedded, files):
        try:
            secret = _secret(where, text)
            for one in encrypted:
                with one.path.open("rb") as file:
                    next(decrypted(file, secret, one.weights.stored.name))
            return secret
        except ImetError as error:
            refused = error
        except OSError as error:
            refused = StoreError(f"{error.filename}: {error.strerror or error}")
    raise refused or ConfigError(
        f"the weights are encrypted: set {KEY_VARIABLE} or {PASSPHRASE_VARIABLE}, or attach the private dataset "
        f"with {KEY_FILE}"
    )


def read_weights(found: FoundWeights, secret: "Secret | None") -> bytes:
    """The plain bytes of a checkpoint's weights; they are kept in memory only.

    Raises:
        StoreError: naming the file, if it was altered since it was found.
    """
    if found.encrypted:
        from imet_ray.storage.encryption import decrypted

        assert secret is not None
        with found.path.open("rb") as file:
            plain = b"".join(decrypted(file, secret, found.weights.stored.name))
    else:
        plain = found.path.read_bytes()
    if hashlib.sha256(plain).hexdigest() != found.weights.plain.sha256:
        raise StoreError(f"{found.weights.plain.name} is not what this kernel was built with")
    return plain


def _secret_texts(embedded: str | None, files: Sequence[Path]) -> list[tuple[str, str | Path]]:
    """Where the secret stands, with its text or file. There may be several files: other kernels have theirs."""
    if embedded is not None:
        return [("the kernel", embedded)]
    for variable in (KEY_VARIABLE, PASSPHRASE_VARIABLE):
        if text := os.environ.get(variable):
            return [(variable, text)]
    return [(str(path), path) for path in files if path.name == KEY_FILE]


def _secret(where: str, text: str | Path) -> "Secret":
    from imet_ray.storage.encryption import Secret

    if where == PASSPHRASE_VARIABLE:
        return Secret(passphrase=str(text))
    if isinstance(text, Path):
        text = text.read_text(encoding="utf-8", errors="replace")
    try:
        return Secret.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _problem(wanted: StoredFile, path: Path | None) -> str:
    """Why a file of weights was not found by its digest; `path` has its name."""
    if path is None:
        return f"{wanted.name} is missing"
    size = path.stat().st_size
    if size != wanted.size:
        return f"{path} is cut off or another file: {size:,} bytes, must be {wanted.size:,}"
    return f"{path} was altered: its sha256 is not {wanted.sha256[:12]}..."
