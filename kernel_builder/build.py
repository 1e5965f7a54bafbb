"""An ensemble as a kernel: weights in data sets that the official client takes, and one Python file.

Nothing of the training code, and no weights, are in the file; what it holds is found from the imports of
`kernel_builder.runtime.main`.
"""

import contextlib
import hashlib
import io
import platform
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch

from imet_ray.crypto import Secret, encrypt
from imet_ray.ensemble import Ensemble, EnsembleMember
from imet_ray.errors import ConfigError, StoreError
from imet_ray.results import read_spec
from imet_ray.stages import Run
from imet_ray.store import disk_error, file_digest, write_json, write_text, writing
from kernel_builder.closure import import_closure
from kernel_builder.kaggle import (
    DATASET_METADATA,
    KERNEL_METADATA,
    dataset_metadata,
    kernel_metadata,
    split_files,
)
from kernel_builder.runtime.inputs import KEY_FILE
from kernel_builder.runtime.manifest import Dtype, KernelMember, Manifest, Stored, Weights
from kernel_builder.single_file import write_kernel

ENTRY = "kernel_builder.runtime.main"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "timm", "albumentations", "numpy", "safetensors")
KERNEL = "kernel.py"


@dataclass(frozen=True)
class BuildOptions:
    """What a person may ask of a kernel."""

    user: str
    title: str
    dtype: Dtype
    secret: Secret | None  # None: the weights stay plain
    key: str  # embed, env or file: how the key reaches the kernel
    max_dataset_bytes: int
    limit: float  # seconds
    reserve: float
    competition: str | None


def build(run: Run, ensemble: Ensemble, out: Path, options: BuildOptions) -> tuple[Path, list[Path]]:
    """Write `out/kernel` and `out/datasets/<n>`; the kernel's file, and the data sets' folders.

    Raises:
        ImetError: one line for an ensemble that no kernel can predict, or a place that cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is not empty: name another folder, or empty it")
    members = _in_order(ensemble)
    wanted = [(member, trial) for member in members for trial in member.trials]
    plain: dict[str, Stored] = {}
    packed: dict[str, bytes] = {}
    salt = secrets.token_bytes(16)  # of scrypt: one derivation for all files
    for member, trial in wanted:
        data = _weights(run, member, trial, options.dtype)
        name = f"{member.variant}-f{read_spec(run.store.trial(trial)).fold}.safetensors"
        plain[trial] = _stored(name, data)
        packed[trial] = _sealed(data, options.secret, salt)
    pieces, folders = _write_datasets(out, plain, packed, options)
    manifest = Manifest(
        ensemble=ensemble.name,
        label_ids=ensemble.label_ids,
        prior=run.data.labels.mean(axis=0).tolist(),
        scale=ensemble.scale,
        members=[
            KernelMember(
                name=member.variant,
                weight=member.weight,
                recipe=read_spec(run.store.trial(member.trials[0])).recipe,
                pack_short_side=read_spec(run.store.trial(member.trials[0])).pack_short_side,
                seconds=member.seconds,
                weights=[
                    Weights(
                        trial=trial,
                        plain=plain[trial],
                        pieces=pieces[trial],
                        encrypted=options.secret is not None,
                    )
                    for trial in member.trials
                ],
            )
            for member in members
        ],
        prefixes=ensemble.prefixes,
        dtype=options.dtype,
        key=options.secret.text if options.secret is not None and options.key == "embed" else None,
        limit=options.limit,
        reserve=options.reserve,
        versions=_versions(),
    )
    kernel = out / "kernel" / KERNEL
    closure = import_closure(ENTRY, {name: ROOT / name for name in ("imet_ray", "kernel_builder")})
    header = _header(run, manifest)
    write_kernel(kernel, closure, manifest.model_dump(mode="json"), entry=ENTRY, header=header)
    names = [f"{options.title} {n}" for n in range(len(folders))]
    ids = [dataset_metadata(options.user, name)["id"] for name in names]
    for folder, name in zip(folders, names, strict=True):
        write_json(folder / DATASET_METADATA, dataset_metadata(options.user, name))
    if options.secret is not None and options.key == "file":
        name = f"{options.title} key"
        ids.append(dataset_metadata(options.user, name)["id"])
        folders.append(out / "datasets" / "key")
        write_text(folders[-1] / KEY_FILE, options.secret.text + "\n")
        (folders[-1] / KEY_FILE).chmod(0o600)
        write_json(folders[-1] / DATASET_METADATA, dataset_metadata(options.user, name))
    write_json(
        kernel.with_name(KERNEL_METADATA),
        kernel_metadata(
            options.user,
            options.title,
            code_file=KERNEL,
            datasets=ids,
            competition=options.competition,
            gpu=True,
        ),
    )
    return kernel, folders


def _in_order(ensemble: Ensemble) -> list[EnsembleMember]:
    """The members of weight above 0, the one to be predicted first in front."""
    by_name = {member.variant: member for member in ensemble.members if member.weight > 0}
    strangers = [name for name, member in by_name.items() if not member.trials]
    if strangers:
        raise ConfigError(
            f"a kernel cannot predict {', '.join(strangers)}, which another tool made: blend again without --member"
        )
    if not ensemble.prefixes:
        raise StoreError(f"the ensemble {ensemble.name} is of an older version: blend again")
    return [by_name[name] for name in ensemble.prefixes[-1].members]


def _weights(run: Run, member: EnsembleMember, trial: str, dtype: Dtype) -> bytes:
    """A checkpoint's tensors as a safetensors file."""
    path = run.store.trial(trial).best
    if not path.exists():
        raise StoreError(f"{path} is missing: train it again with the same sweep")
    if file_digest(path) != member.checkpoints[member.trials.index(trial)]:
        raise StoreError(f"{path} has other weights than the ensemble was fitted with: blend again")
    tensors = safetensors.torch.load_file(path)
    if dtype == "float16":
        tensors = {k: t.half() if t.dtype == torch.float32 else t for k, t in tensors.items()}
    return bytes(safetensors.torch.save(tensors))


def _sealed(data: bytes, secret: Secret | None, salt: bytes) -> bytes:
    if secret is None:
        return data
    target = io.BytesIO()
    encrypt(io.BytesIO(data), target, secret, salt=salt if secret.passphrase is not None else None)
    return target.getvalue()


def _write_datasets(
    out: Path, plain: dict[str, Stored], packed: dict[str, bytes], options: BuildOptions
) -> tuple[dict[str, list[Stored]], list[Path]]:
    """The files, split among folders; for each trial its pieces, in order."""
    pieces: dict[str, list[Stored]] = {trial: [] for trial in packed}
    folders = []
    sizes = [(trial, len(data)) for trial, data in packed.items()]
    ending = "" if options.secret is None else ".encrypted"
    for n, content in enumerate(split_files(sizes, options.max_dataset_bytes)):
        folder = out / "datasets" / str(n)
        folders.append(folder)
        for piece in content:
            data = packed[piece.name][piece.start : piece.stop]
            whole = len(data) == len(packed[piece.name])
            part = "" if whole else f".part{len(pieces[piece.name])}"
            stored = _stored(f"{plain[piece.name].name}{ending}{part}", data)
            pieces[piece.name].append(stored)
            _write(folder / stored.name, data)
    return pieces, folders


def _write(path: Path, data: bytes) -> None:
    try:
        with writing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise disk_error(path, error) from error


def _stored(name: str, data: bytes) -> Stored:
    return Stored(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _header(run: Run, manifest: Manifest) -> str:
    """What a person reads at the top of the file."""
    lines = [
        f"imet_ray: predictions of the ensemble {manifest.ensemble} of the run {run.store.root.name}.",
        "",
        f"{len(manifest.members)} members, {manifest.checkpoints} checkpoints, {len(manifest.label_ids):,} labels; "
        f"weights as {manifest.dtype}, not in this file.",
        "Built with " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) + ".",
        f"Rebuild: python -m kernel_builder {manifest.ensemble} --name {run.store.root.name} --out DIR",
        "",
        "The weights, found under the input folder by their sha256:",
    ]
    return "\n".join(lines + _files(manifest.members)) + "\n"


def _files(members: Sequence[KernelMember]) -> list[str]:
    stored = [piece for member in members for weights in member.weights for piece in weights.pieces]
    return [f"  {piece.sha256}  {piece.name}" for piece in stored]
