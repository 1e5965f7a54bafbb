"""An ensemble as a kernel: weights in datasets that the official client takes, and one Python file.

The file holds no weights and no training code: only the modules that `kernel_builder.runtime.main` imports.
"""

import contextlib
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from imet_ray.commands.setup import Run
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember
from imet_ray.storage.encryption import Secret
from imet_ray.storage.files import disk_error, write_json, write_text
from imet_ray.storage.results import read_spec
from kernel_builder.datasets import make_folder, stage_weights, write_datasets
from kernel_builder.float16_check import Float16Loss, float16_loss
from kernel_builder.import_closure import import_closure
from kernel_builder.kaggle import (
    DATASET_METADATA,
    KERNEL_METADATA,
    dataset_metadata,
    kernel_metadata,
)
from kernel_builder.runtime.locate_weights import KEY_FILE
from kernel_builder.runtime.manifest import Dtype, KernelMember, Manifest, Weights
from kernel_builder.single_file import kernel_text

ENTRY = "kernel_builder.runtime.main"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "timm", "albumentations", "numpy", "safetensors")
KERNEL = "kernel.py"
PRIVATE = 0o600


@dataclass(frozen=True)
class BuildOptions:
    """What a person may choose about a kernel."""

    user: str
    title: str
    dtype: Dtype | Literal["auto"]  # auto: float16 where the score does not change
    secret: Secret | None  # None: the weights stay plain
    key: str  # embed, env or file: how the key reaches the kernel
    max_dataset_bytes: int
    limit: float  # seconds
    reserve: float
    competition: str | None
    accelerator: str  # by Kaggle's name


@dataclass(frozen=True)
class Built:
    """What was written."""

    kernel: Path
    folders: tuple[Path, ...]  # of the datasets
    dtype: Dtype
    loss: Float16Loss | None  # if it was measured


def build(run: Run, ensemble: Ensemble, out: Path, options: BuildOptions) -> Built:
    """Write `out/kernel` and `out/datasets/<n>`.

    Raises:
        ImetError: one line, for an ensemble that no kernel can predict or a place that cannot be written.
    """
    _refuse(out, options)
    members = _in_order(ensemble)
    dtype, loss = _dtype(run, ensemble, members, options)
    make_folder(out)
    with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as staging:
        weights = stage_weights(run, members, dtype, options.secret, Path(staging))
        files = [one.stored for one in weights.values()]
        folders = write_datasets(out / "datasets", Path(staging), files, options.max_dataset_bytes)
    manifest = _manifest(run, ensemble, members, weights, dtype, options)
    kernel = _write_kernel(out / "kernel" / KERNEL, manifest, _header(run, manifest, loss))
    if options.secret is not None and options.key == "file":
        folders.append(_write_key(out / "datasets" / "key", options.secret))
    ids = []
    for folder in folders:
        metadata = dataset_metadata(options.user, f"{options.title} {folder.name}")
        write_json(folder / DATASET_METADATA, metadata)
        ids.append(metadata["id"])
    write_json(kernel.with_name(KERNEL_METADATA), _kernel_metadata(options, ids))
    return Built(kernel, tuple(folders), dtype, loss)


def _refuse(out: Path, options: BuildOptions) -> None:
    """Report mistakes before an hour of measuring and writing."""
    try:
        occupied = out.exists() and any(out.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}: name a folder") from None
    if occupied:
        raise ConfigError(f"--out {out} is not empty: name another folder, or empty it")
    if options.limit <= options.reserve:
        raise ConfigError("--limit must be longer than --reserve: give more time, or keep less of it back")
    longest = "key" if options.key == "file" else "99"
    _kernel_metadata(options, [dataset_metadata(options.user, f"{options.title} {longest}")["id"]])


def _kernel_metadata(options: BuildOptions, datasets: Sequence[str]) -> dict[str, Any]:
    return kernel_metadata(
        options.user,
        options.title,
        code_file=KERNEL,
        datasets=datasets,
        competition=options.competition,
        accelerator=options.accelerator,
    )


def _in_order(ensemble: Ensemble) -> list[EnsembleMember]:
    """The members with a weight above 0, in the order of prediction."""
    by_name = {member.variant: member for member in ensemble.members if member.weight > 0}
    external = [name for name, member in by_name.items() if not member.trials]
    if external:
        raise ConfigError(
            f"a kernel cannot predict {', '.join(external)}, made by another tool: blend again without --member"
        )
    if not ensemble.prefixes:
        raise StoreError(f"the ensemble {ensemble.name} is of an older version: blend again")
    return [by_name[name] for name in ensemble.prefixes[-1].members]


def _dtype(
    run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember], options: BuildOptions
) -> tuple[Dtype, Float16Loss | None]:
    """The dtype that was asked for; for auto, float16 if the measured loss is harmless."""
    if options.dtype != "auto":
        return options.dtype, None
    loss = float16_loss(run, ensemble, members)
    return ("float16" if loss.harmless else "float32"), loss


def _manifest(
    run: Run,
    ensemble: Ensemble,
    members: Sequence[EnsembleMember],
    weights: Mapping[str, Weights],
    dtype: Dtype,
    options: BuildOptions,
) -> Manifest:
    embedded = options.secret is not None and options.key == "embed"
    return Manifest(
        ensemble=ensemble.name,
        label_ids=ensemble.label_ids,
        prior=run.data.labels.mean(axis=0).tolist(),
        scale=ensemble.scale,
        members=[_kernel_member(run, member, weights) for member in members],
        prefixes=ensemble.prefixes,
        dtype=dtype,
        key=options.secret.text if options.secret is not None and embedded else None,
        limit=options.limit,
        reserve=options.reserve,
        versions=_versions(),
    )


def _kernel_member(run: Run, member: EnsembleMember, weights: Mapping[str, Weights]) -> KernelMember:
    spec = read_spec(run.store.trial(member.trials[0]))
    return KernelMember(
        name=member.variant,
        weight=member.weight,
        # How it was initialised is not needed, and may be a private path of this machine.
        recipe=spec.recipe.model_copy(update={"weights": "none"}),
        pack_short_side=spec.pack_short_side,
        weights=[weights[trial] for trial in member.trials],
    )


def _write_kernel(path: Path, manifest: Manifest, header: str) -> Path:
    """Write the kernel; one with a key in it is for its owner only."""
    closure = import_closure(ENTRY, {name: ROOT / name for name in ("imet_ray", "kernel_builder")})
    text = kernel_text(closure, manifest.model_dump(mode="json"), entry=ENTRY, header=header)
    make_folder(path.parent)
    if manifest.key is not None:
        path.parent.chmod(PRIVATE | 0o100)
    write_text(path, text)
    if manifest.key is not None:
        path.chmod(PRIVATE)
    return path


def _write_key(folder: Path, secret: Secret) -> Path:
    """Write the key to a folder of its own; nobody else can read it at any time."""
    make_folder(folder)
    path = folder / KEY_FILE
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as file:
            file.write(secret.text + "\n")
    except OSError as error:
        raise disk_error(path, error) from error
    return folder


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _header(run: Run, manifest: Manifest, loss: Float16Loss | None) -> str:
    """What a person reads at the top of the file."""
    stored = [weights.stored for member in manifest.members for weights in member.weights]
    lines = [
        f"imet_ray: predictions of the ensemble {manifest.ensemble} of the run {run.store.root.name}.",
        "",
        f"{len(manifest.members)} members, {manifest.checkpoints} checkpoints, {len(manifest.label_ids):,} labels; "
        f"weights as {manifest.dtype}, not in this file.",
        *([f"Measured: {loss}."] if loss is not None else []),
        "Built with " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) + ".",
        f"Rebuild: python -m kernel_builder {manifest.ensemble} --name {run.store.root.name} --out DIR",
        "",
        "The weights, found under the input folder by their sha256:",
        *(f"  {file.sha256}  {file.name}" for file in stored),
    ]
    return "\n".join(lines) + "\n"
