"""The weights under the input folder, found by their digest, and the key that opens them.

All weights are found and checked before any is used: a forgotten dataset is reported in the first minute.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from imet_ray.errors import ConfigError, ImetError, StoreError
from imet_ray.storage.checked_read import file_digest
from kernel_builder.runtime.manifest import Weights

if TYPE_CHECKING:  # it needs `cryptography`, which a kernel with plain weights does without
    from imet_ray.storage.encryption import Secret

KEY_FILE = "imet_ray.key"


def find_weights(wanted: Sequence[Weights], files: Sequence[Path]) -> dict[str, Path]:
    """The file of each trial's weights.

    Args:
        wanted: all that the kernel needs.
        files: all that lie under the input folder.

    Raises:
        StoreError: naming every file that is missing, cut off or altered.
    """
    sizes = {weights.size for weights in wanted}
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
    missing = [weights for weights in wanted if weights.sha256 not in by_digest]
    if missing:
        problems = [_problem(weights, by_name.get(weights.name)) for weights in missing]
        raise StoreError(
            f"{len(problems)} of {len(wanted)} files of weights cannot be used:\n  "
            + "\n  ".join(problems)
            + "\nattach the datasets that were built with this kernel"
        )
    return {weights.trial: by_digest[weights.sha256] for weights in wanted}


def _problem(wanted: Weights, path: Path | None) -> str:
    """Why a file of weights was not found by its digest; `path` has its name."""
    if path is None:
        return f"{wanted.name} is missing"
    size = path.stat().st_size
    if size != wanted.size:
        return f"{path} is cut off or another file: {size:,} bytes, must be {wanted.size:,}"
    return f"{path} was altered: its sha256 is not {wanted.sha256[:12]}..."


def find_secret(encrypted: Sequence[Path], embedded: str | None, files: Sequence[Path]) -> "Secret":
    """What opens the encrypted weights: the key in the kernel, in the environment, or in a dataset's file.

    The beginning of each file is opened: a wrong key shows before anything is predicted.

    Raises:
        StoreError: naming the file that does not open.
        ConfigError: if there is no key.
    """
    try:
        from imet_ray.storage.encryption import KEY_VARIABLE, PASSPHRASE_VARIABLE, Secret
    except ImportError as error:
        raise ConfigError(
            f"the weights are encrypted, and this machine lacks the package cryptography ({error}): install it, or "
            f"build the kernel without --encrypt"
        ) from None
    secret = Secret.parse(embedded) if embedded is not None else Secret.of_environment()
    if secret is not None:
        _check(secret, encrypted)
        return secret
    refused: ImetError | OSError = ConfigError(
        f"the weights are encrypted: set {KEY_VARIABLE} or {PASSPHRASE_VARIABLE}, or attach the private dataset "
        f"with {KEY_FILE}"
    )
    for path in files:  # there may be several keys: other kernels have theirs
        if path.name == KEY_FILE:
            try:
                secret = Secret.parse(path.read_text(encoding="utf-8", errors="replace"), f"{path}: ")
                _check(secret, encrypted)
                return secret
            except (ImetError, OSError) as error:
                refused = error
    raise refused


def _check(secret: "Secret", encrypted: Sequence[Path]) -> None:
    """Open the first chunk of each file."""
    from imet_ray.storage.encryption import decrypted

    for path in encrypted:
        with path.open("rb") as file:
            next(decrypted(file, secret, str(path)))


class WeightsReader:
    """Reads weights on a thread: while pictures are decoded, and while the checkpoint before predicts."""

    def __init__(self, found: Mapping[str, Path], secret: "Secret | None") -> None:
        self.found, self.secret = found, secret  # found: by trial
        self._begun: dict[str, Future[bytes]] = {}  # one at most

    def begin(self, trial: str) -> None:
        """Read a checkpoint's weights for `take`."""
        if trial in self._begun:
            return
        future: Future[bytes] = Future()
        self._begun = {trial: future}
        try:
            threading.Thread(target=self._read_into, args=(trial, future), daemon=True).start()
        except RuntimeError:  # no more threads
            self._read_into(trial, future)

    def take(self, trial: str) -> bytes:
        """What was begun; it is not kept here."""
        return self._begun.pop(trial).result()

    def _read_into(self, trial: str, future: "Future[bytes]") -> None:
        """Runs in a daemon thread: it may hang, and the process must not wait for it at its end."""
        try:
            future.set_result(read_weights(self.found[trial], self.secret))
        except BaseException as error:
            future.set_exception(error)


def read_weights(path: Path, secret: "Secret | None") -> bytes:
    """The plain bytes of a checkpoint's weights; they are kept in memory only."""
    if secret is None:
        return path.read_bytes()
    from imet_ray.storage.encryption import decrypted

    with path.open("rb") as file:
        return b"".join(decrypted(file, secret, str(path)))
