"""The weights of a kernel as files, in data sets below a size."""

import hashlib
import io
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from tqdm import tqdm

from imet_ray.commands.setup import Run
from imet_ray.errors import ConfigError, StoreError
from imet_ray.models.checkpoint import save_tensors
from imet_ray.prediction.ensemble import EnsembleMember
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.encryption import Secret, encrypt
from imet_ray.storage.files import disk_error
from imet_ray.storage.results import read_spec
from kernel_builder.kaggle import split_files
from kernel_builder.runtime.manifest import Dtype, Stored

BLOCK = 1 << 20  # bytes that are copied at once


def stage_weights(
    run: Run, members: Sequence[EnsembleMember], dtype: Dtype, secret: Secret | None, staging: Path
) -> tuple[dict[str, Stored], dict[str, Path]]:
    """Write each trial's weights as a file, encrypted or not; one checkpoint at a time is in memory.

    Returns:
        What each file holds when it is plain, and where it lies.

    Raises:
        StoreError: if a checkpoint is missing or not the ensemble's, or the disk is full.
    """
    plain: dict[str, Stored] = {}
    packed: dict[str, Path] = {}
    salt = secrets.token_bytes(16)  # of scrypt: one derivation for all files
    wanted = [(member, trial) for member in members for trial in member.trials]
    for member, trial in tqdm(wanted, "weights", unit="checkpoint", disable=not sys.stderr.isatty()):
        name = f"{member.variant}-f{read_spec(run.store.trial(trial)).fold}.safetensors"
        path = staging / name
        tensors = _tensors(run, member, trial, dtype)
        try:
            if secret is None:
                save_tensors(path, tensors)
                plain[trial] = Stored(name=name, sha256=file_digest(path), size=path.stat().st_size)
            else:  # never plain on the disk: a process that is killed leaves what is there
                path = path.with_suffix(".encrypted")
                data = safetensors.torch.save(tensors)
                plain[trial] = Stored(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                with path.open("wb") as target:
                    encrypt(
                        io.BytesIO(data), target, secret, salt=salt if secret.passphrase is not None else None
                    )
            packed[trial] = path
        except OSError as error:
            raise disk_error(path, error) from error
    return plain, packed


def _tensors(run: Run, member: EnsembleMember, trial: str, dtype: Dtype) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors as they will be stored."""
    best = run.store.trial(trial).best
    run.store.trial(trial).fetch(best)
    if not best.exists():
        raise StoreError(f"{best} is missing: train it again with the same sweep")
    if file_digest(best) != member.checkpoints[member.trials.index(trial)]:
        raise StoreError(f"{best} has other weights than the ensemble was fitted with: blend again")
    tensors = safetensors.torch.load_file(best)
    if dtype == "float16":
        tensors = {k: t.half() if t.dtype == torch.float32 else t for k, t in tensors.items()}
        if not all(t.isfinite().all() for t in tensors.values()):
            raise ConfigError(f"{best} has weights above 65,504, which float16 cannot hold: --dtype float32")
    return tensors


def write_datasets(
    out: Path, plain: dict[str, Stored], packed: dict[str, Path], limit: int, *, encrypted: bool
) -> tuple[dict[str, list[Stored]], list[Path]]:
    """Share the staged files out among `out/0`, `out/1`, ...

    Args:
        limit: bytes that a data set may have.

    Returns:
        For each trial its pieces, in order, and the folders.

    Raises:
        StoreError: if the disk is full.
    """
    pieces: dict[str, list[Stored]] = {trial: [] for trial in packed}
    folders = []
    sizes = {trial: path.stat().st_size for trial, path in packed.items()}
    ending = ".encrypted" if encrypted else ""
    for n, content in enumerate(split_files(list(sizes.items()), limit)):
        folder = out / str(n)
        make_folder(folder)
        folders.append(folder)
        for piece in content:
            whole = piece.size == sizes[piece.name]
            part = "" if whole else f".part{len(pieces[piece.name])}"
            target = folder / f"{plain[piece.name].name}{ending}{part}"
            try:
                if whole:
                    packed[piece.name].rename(target)
                else:
                    _copy_part(packed[piece.name], target, piece.start, piece.stop)
            except OSError as error:
                raise disk_error(target, error) from error
            pieces[piece.name].append(
                Stored(name=target.name, sha256=file_digest(target), size=target.stat().st_size)
            )
    return pieces, folders


def _copy_part(source: Path, target: Path, start: int, stop: int) -> None:
    with source.open("rb") as whole, target.open("wb") as part:
        whole.seek(start)
        while start < stop:
            block = whole.read(min(BLOCK, stop - start))
            part.write(block)
            start += len(block)


def make_folder(path: Path) -> None:
    """A folder that may be there already."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error
