"""The weights of a kernel as files, in datasets that Kaggle takes."""

import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from tqdm import tqdm

from imet_ray.commands.setup import Run
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import EnsembleMember
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.encryption import Secret, encrypt
from imet_ray.storage.files import disk_error
from imet_ray.storage.results import read_spec
from kernel_builder.kaggle import split_files
from kernel_builder.runtime.manifest import Dtype, StoredFile, Weights


def stage_weights(
    run: Run, members: Sequence[EnsembleMember], dtype: Dtype, secret: Secret | None, staging: Path
) -> dict[str, Weights]:
    """Write the weights of each trial to `staging`, encrypted if there is a secret; one checkpoint at a time.

    Returns:
        By trial, what was written.

    Raises:
        StoreError: if a checkpoint is missing or not the ensemble's, or the disk is full.
    """
    written = {}
    trials = [(member, trial) for member in members for trial in member.trials]
    for member, trial in tqdm(trials, "weights", unit="checkpoint", disable=not sys.stderr.isatty()):
        name = f"{member.variant}-f{read_spec(run.store.trial(trial)).fold}.safetensors"
        data = safetensors.torch.save(_tensors(run, member, trial, dtype))
        plain = stored = StoredFile(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        path = staging / (name if secret is None else f"{name}.encrypted")
        try:
            if secret is None:
                path.write_bytes(data)
            else:  # plain weights are never on the disk: a killed process would leave them there
                with path.open("wb") as target:
                    encrypt(io.BytesIO(data), target, secret)
                stored = StoredFile(name=path.name, sha256=file_digest(path), size=path.stat().st_size)
        except OSError as error:
            raise disk_error(path, error) from error
        written[trial] = Weights(trial=trial, plain=plain, stored=stored)
    return written


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


def write_datasets(out: Path, staging: Path, files: Sequence[StoredFile], limit: int) -> list[Path]:
    """Move the staged files to `out/0`, `out/1`, ...

    Args:
        limit: bytes that a dataset may have.

    Returns:
        The folders.

    Raises:
        ConfigError: if a file is larger than the limit.
        StoreError: if a folder cannot be written.
    """
    folders = []
    for n, names in enumerate(split_files([(file.name, file.size) for file in files], limit)):
        folder = out / str(n)
        make_folder(folder)
        folders.append(folder)
        for name in names:
            try:
                (staging / name).rename(folder / name)
            except OSError as error:
                raise disk_error(folder / name, error) from error
    return folders


def make_folder(path: Path) -> None:
    """A folder that may be there already."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error
