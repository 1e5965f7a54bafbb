"""The weights under the input folder, by their digest, and the key that opens them.

All weights are found and checked before any is used: whoever forgot a data set reads so in the first minute.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imet_ray.errors import ConfigError, ImetError, StoreError
from kernel_builder.runtime.manifest import Manifest, Stored, Weights

if TYPE_CHECKING:  # the module needs `cryptography`, and a kernel of plain weights does without
    from imet_ray.storage.encryption import Secret

KEY_FILE = "imet_ray.key"
KEY_VARIABLE, PASSPHRASE_VARIABLE = "IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"


@dataclass(frozen=True)
class FoundWeights:
    """Where one checkpoint's weights lie."""

    weights: Weights
    paths: tuple[Path, ...]
    encrypted: bool


def find_weights(manifest: Manifest, files: Sequence[Path]) -> dict[str, FoundWeights]:
    """For each trial its weights, plain or encrypted, in one piece or several.

    Raises:
        StoreError: naming every file that is missing, cut off or altered.
    """
    wanted = [weights for member in manifest.members for weights in member.weights]
    sizes = {stored.size for weights in wanted for stored in (weights.plain, *weights.pieces)}
    by_digest: dict[str, Path] = {}
    by_name: dict[str, Path] = {}
    for path in files:
        try:
            size = path.stat().st_size
            by_name.setdefault(path.name, path)
            if size in sizes:
                with path.open("rb") as file:
                    by_digest.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), path)
        except OSError:
            continue  # it counts as missing
    found: dict[str, FoundWeights] = {}
    problems = []
    for weights in wanted:
        whole = by_digest.get(weights.plain.sha256)
        if whole is not None:
            found[weights.trial] = FoundWeights(weights, (whole,), encrypted=False)
            continue
        paths = [by_digest.get(piece.sha256) for piece in weights.pieces]
        if None not in paths:
            known = tuple(path for path in paths if path is not None)
            found[weights.trial] = FoundWeights(weights, known, encrypted=weights.encrypted)
        else:
            problems += [_wrong(piece, by_name) for piece in weights.pieces if piece.sha256 not in by_digest]
    if problems:
        raise StoreError(
            f"{len(problems)} files of weights cannot be used:\n  "
            + "\n  ".join(problems)
            + "\nattach the data sets that were built with this kernel"
        )
    return found


def find_secret(
    found: Sequence[FoundWeights], embedded: str | None, files: Sequence[Path]
) -> "Secret | None":
    """What opens the encrypted ones: the key in the kernel, of the environment, or of a data set's file.

    The beginning of each is opened: a wrong key shows before anything is predicted.

    Returns:
        None where none is encrypted.

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
    for place in _places(embedded, files):
        try:
            secret = _secret(place)
            for one in encrypted:
                with io.BufferedReader(_Joined(one.paths)) as joined:
                    next(decrypted(joined, secret, one.weights.pieces[0].name))
        except ImetError as error:
            refused = error
        except OSError as error:
            refused = StoreError(f"{error.filename}: {error.strerror or error}")
        else:
            return secret
    raise refused or ConfigError(
        f"the weights are encrypted: set {KEY_VARIABLE} or {PASSPHRASE_VARIABLE}, or attach the private data set "
        f"with {KEY_FILE}"
    )


def read_weights(found: FoundWeights, secret: "Secret | None") -> bytes:
    """The plain bytes of a checkpoint's weights, kept in memory only.

    Raises:
        StoreError: naming the file, if it was altered since it was found.
    """
    with io.BufferedReader(_Joined(found.paths)) as joined:
        if found.encrypted:
            from imet_ray.storage.encryption import decrypted

            assert secret is not None
            plain = b"".join(decrypted(joined, secret, found.weights.pieces[0].name))
        else:
            plain = joined.read()
    if hashlib.sha256(plain).hexdigest() != found.weights.plain.sha256:
        raise StoreError(f"{found.weights.plain.name} is not what this kernel was built with")
    return plain


def _places(embedded: str | None, files: Sequence[Path]) -> list[tuple[str, str | Path]]:
    """Where the secret that was meant stands: its text, or files, for there may be those of other kernels."""
    if embedded is not None:
        return [("the kernel", embedded)]
    for variable in (KEY_VARIABLE, PASSPHRASE_VARIABLE):
        if text := os.environ.get(variable):
            return [(variable, text)]
    return [(str(path), path) for path in files if path.name == KEY_FILE]


def _secret(place: tuple[str, str | Path]) -> "Secret":
    from imet_ray.storage.encryption import Secret

    where, text = place
    if where == PASSPHRASE_VARIABLE:
        return Secret(passphrase=str(text))
    if isinstance(text, Path):
        text = text.read_text(encoding="utf-8", errors="replace")
    try:
        return Secret.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _wrong(piece: Stored, by_name: dict[str, Path]) -> str:
    path = by_name.get(piece.name)
    if path is None:
        return f"{piece.name} is missing"
    size = path.stat().st_size
    if size != piece.size:
        return f"{path} is cut off or another file: {size:,} bytes, must be {piece.size:,}"
    return f"{path} was altered: its sha256 is not {piece.sha256[:12]}..."


class _Joined(io.RawIOBase):
    """Files one after the other, as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._files: Iterator[io.FileIO] = (io.FileIO(path) for path in paths)
        self._file: io.FileIO | None = next(self._files, None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None:
            count = self._file.readinto(buffer)
            if count:
                return count
            self._file.close()
            self._file = next(self._files, None)
        return 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
