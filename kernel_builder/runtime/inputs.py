"""What lies under the input folder: test pictures by name, weights by digest, and the key.

All weights are found and checked before any is used: whoever forgot a data set reads so in the first minute.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imet_ray.catalog import picture_files
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.tables import Problem, read_table
from kernel_builder.runtime.manifest import Manifest, Stored, Weights

if TYPE_CHECKING:  # the module needs `cryptography`, and a kernel of plain weights does without
    from imet_ray.crypto import Secret

SAMPLE = "sample_submission.csv"
KEY_FILE = "imet_ray.key"
KEY_VARIABLE, PASSPHRASE_VARIABLE = "IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"


@dataclass(frozen=True)
class TestPictures:
    """The pictures to predict, in the submission's order."""

    __test__ = False  # pytest: not a test

    ids: tuple[str, ...]
    files: tuple[Path, ...]  # one that is missing is named all the same


@dataclass(frozen=True)
class FoundWeights:
    """Where one checkpoint's weights lie."""

    weights: Weights
    paths: tuple[Path, ...]
    encrypted: bool


def all_files(root: Path) -> list[Path]:
    """Every file below `root`, sorted; test pictures' folders are not entered."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in ("test", "train"))
        found += [Path(folder) / name for name in sorted(names)]
    return found


def find_test(files: Sequence[Path]) -> TestPictures:
    """The pictures that the nearest sample submission names.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    samples = sorted((f for f in files if f.name == SAMPLE), key=lambda path: (len(path.parts), path))
    if not samples:
        raise DataError(f"no {SAMPLE} under the input folder: attach the competition's data to the kernel")
    problems: list[Problem] = []
    rows = read_table(samples[0], ("id",), problems, optional=("attribute_ids",))
    if not rows:
        reason = f": {problems[0].kind}" if problems else ""
        raise DataError(f"{samples[0]} has no rows that can be read{reason}")
    folder = samples[0].parent / "test"
    listing = picture_files(folder)
    by_stem = {file.stem: file for file in listing.values()}
    ids = tuple(row.values[0] for row in rows)
    return TestPictures(ids, tuple(listing.get(i) or by_stem.get(i) or folder / i for i in ids))


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


def read_weights(found: FoundWeights, key: str | None, input_files: Sequence[Path]) -> bytes:
    """The plain bytes of a checkpoint's weights, kept in memory only.

    Args:
        key: embedded in the kernel.

    Raises:
        StoreError: naming the file, if it was altered or the key is wrong.
        ConfigError: if it is encrypted and there is no key.
    """
    with io.BufferedReader(_Joined(found.paths)) as joined:
        if not found.encrypted:
            return joined.read()
        from imet_ray.crypto import decrypted

        secret = find_secret(key, input_files)
        plain = b"".join(decrypted(joined, secret, found.weights.pieces[0].name))
    if hashlib.sha256(plain).hexdigest() != found.weights.plain.sha256:
        raise StoreError(f"{found.weights.plain.name} is not what this kernel was built with")
    return plain


def check_secret(found: FoundWeights, key: str | None, input_files: Sequence[Path]) -> None:
    """Open the beginning of an encrypted checkpoint: a wrong key shows before anything is predicted.

    Raises:
        StoreError: naming the file.
        ConfigError: if there is no key.
    """
    from imet_ray.crypto import decrypted

    secret = find_secret(key, input_files)
    with io.BufferedReader(_Joined(found.paths)) as joined:
        next(decrypted(joined, secret, found.weights.pieces[0].name))


def find_secret(key: str | None, files: Sequence[Path]) -> "Secret":
    """The key: embedded, from the environment, or from a data set."""
    from imet_ray.crypto import Secret

    if key is not None:
        return Secret.parse(key)
    if text := os.environ.get(KEY_VARIABLE):
        return Secret.parse(text)
    if text := os.environ.get(PASSPHRASE_VARIABLE):
        return Secret(key=None, passphrase=text)
    named = next((path for path in files if path.name == KEY_FILE), None)
    if named is None:
        raise ConfigError(
            f"the weights are encrypted: set {KEY_VARIABLE} or {PASSPHRASE_VARIABLE}, or attach the private data set "
            f"with {KEY_FILE}"
        )
    return Secret.parse(named.read_text())


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
