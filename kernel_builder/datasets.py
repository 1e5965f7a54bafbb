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
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import TrialDirectory
from kernel_builder.kaggle import split_files
from kernel_builder.runtime.manifest import Weights


def refuse_large(run: Run, members: Sequence[EnsembleMember], dtype: str, limit: int) -> None:
    """Refuse checkpoints that no dataset takes, before anything is measured or written.

    Args:
        dtype: float32, or one that may halve a checkpoint.
        limit: bytes that a dataset may have.

    Raises:
        ConfigError: naming the file.
    """
    for member in members:
        for trial in map(run.store.trial, member.trials):
            size = trial.files.size_of(trial.best) or 0
            split_files([(_file_name(member, trial), size if dtype == "float32" else size // 2)], limit)


def _file_name(member: EnsembleMember, trial: TrialDirectory) -> str:
    return f"{member.variant}-f{read_spec(trial).fold}.safetensors"


def stage_weights(
    run: Run, members: Sequence[EnsembleMember], dtype: str, secret: Secret | None, staging: Path
) -> dict[str, Weights]:
    """Write the weights of each trial to `staging`, encrypted if there is a secret; one checkpoint at a time.

    Returns:
        By trial, what was written.

    Raises:
        StoreError: if a checkpoint is missing or not the ensemble's.
        OSError: if the disk is full.
    """
    written = {}
    trials = [(member, trial) for member in members for trial in member.trials]
    for member, trial in tqdm(trials, "weights", unit="checkpoint", disable=not sys.stderr.isatty()):
        name = _file_name(member, run.store.trial(trial))
        data = safetensors.torch.save(_tensors(run, member, trial, dtype))
        if secret is not None:  # plain weights are never on the disk: a killed process would leave them there
            name += ".encrypted"
            sealed = io.BytesIO()
            encrypt(io.BytesIO(data), sealed, secret)
            data = sealed.getvalue()
        (staging / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        written[trial] = Weights(trial=trial, name=name, sha256=digest, size=len(data))
    return written


def _tensors(run: Run, member: EnsembleMember, trial: str, dtype: str) -> dict[str, torch.Tensor]:
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


def write_datasets(out: Path, staging: Path, weights: Sequence[Weights], limit: int) -> list[Path]:
    """Move the staged files to `out/0`, `out/1`, ...

    Args:
        limit: bytes that a dataset may have.

    Returns:
        The folders.

    Raises:
        ConfigError: if a file is larger than the limit.
    """
    folders = []
    for n, names in enumerate(split_files([(one.name, one.size) for one in weights], limit)):
        folder = out / str(n)
        folder.mkdir(parents=True)
        folders.append(folder)
        for name in names:
            (staging / name).rename(folder / name)
    return folders
