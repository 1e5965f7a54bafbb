"""An ensemble as a kernel: weights in data sets that the official client takes, and one Python file.

Nothing of the training code, and no weights, are in the file; what it holds is found from the imports of
`kernel_builder.runtime.main`.
"""

import contextlib
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from imet_ray.commands.setup import Run
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember
from imet_ray.specs import Variant
from imet_ray.storage.encryption import Secret
from imet_ray.storage.files import disk_error, write_json
from imet_ray.storage.results import read_spec
from kernel_builder.datasets import make_folder, stage_weights, write_datasets
from kernel_builder.float16_check import HalfLoss, half_loss_of
from kernel_builder.import_closure import import_closure
from kernel_builder.kaggle import (
    DATASET_METADATA,
    KERNEL_METADATA,
    dataset_metadata,
    kernel_metadata,
)
from kernel_builder.runtime.locate_weights import KEY_FILE
from kernel_builder.runtime.manifest import Dtype, KernelMember, Manifest, Weights
from kernel_builder.single_file import write_kernel

ENTRY = "kernel_builder.runtime.main"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "timm", "albumentations", "numpy", "safetensors")
KERNEL = "kernel.py"
PRIVATE = 0o600


@dataclass(frozen=True)
class BuildOptions:
    """What a person may ask of a kernel."""

    user: str
    title: str
    dtype: Dtype | Literal["auto"]  # auto: float16 where the score does not feel it
    secret: Secret | None  # None: the weights stay plain
    key: str  # embed, env or file: how the key reaches the kernel
    max_dataset_bytes: int
    limit: float  # seconds
    reserve: float
    competition: str | None
    accelerator: str  # as Kaggle names it


@dataclass(frozen=True)
class Built:
    """What was written."""

    kernel: Path
    folders: tuple[Path, ...]  # of the data sets
    dtype: Dtype
    loss: HalfLoss | None  # where it was measured


def build(run: Run, ensemble: Ensemble, out: Path, options: BuildOptions) -> Built:
    """Write `out/kernel` and `out/datasets/<n>`.

    Raises:
        ImetError: one line for an ensemble that no kernel can predict, or a place that cannot be written.
    """
    _refuse(out, options)
    members = _in_order(ensemble)
    dtype, loss = _dtype(run, ensemble, members, options)
    make_folder(out)
    with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as staging:
        plain, packed = stage_weights(run, members, dtype, options.secret, Path(staging))
        pieces, folders = write_datasets(
            out / "datasets", plain, packed, options.max_dataset_bytes, encrypted=options.secret is not None
        )
    manifest = Manifest(
        ensemble=ensemble.name,
        label_ids=ensemble.label_ids,
        prior=run.data.labels.mean(axis=0).tolist(),
        scale=ensemble.scale,
        members=[
            KernelMember(
                name=member.variant,
                weight=member.weight,
                recipe=_recipe(run, member),
                pack_short_side=read_spec(run.store.trial(member.trials[0])).pack_short_side,
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
        dtype=dtype,
        key=options.secret.text if options.secret is not None and options.key == "embed" else None,
        limit=options.limit,
        reserve=options.reserve,
        versions=_versions(),
    )
    kernel = out / "kernel" / KERNEL
    closure = import_closure(ENTRY, {name: ROOT / name for name in ("imet_ray", "kernel_builder")})
    header = _header(run, manifest, loss)
    make_folder(kernel.parent)
    if manifest.key is not None:
        kernel.parent.chmod(PRIVATE | 0o100)
    write_kernel(kernel, closure, manifest.model_dump(mode="json"), entry=ENTRY, header=header)
    if manifest.key is not None:
        kernel.chmod(PRIVATE)
    names = [f"{options.title} {n}" for n in range(len(folders))]
    ids = [dataset_metadata(options.user, name)["id"] for name in names]
    for folder, name in zip(folders, names, strict=True):
        write_json(folder / DATASET_METADATA, dataset_metadata(options.user, name))
    if options.secret is not None and options.key == "file":
        name = f"{options.title} key"
        ids.append(dataset_metadata(options.user, name)["id"])
        folders.append(out / "datasets" / "key")
        make_folder(folders[-1])
        _write_key(folders[-1] / KEY_FILE, options.secret)
        write_json(folders[-1] / DATASET_METADATA, dataset_metadata(options.user, name))
    write_json(kernel.with_name(KERNEL_METADATA), _kernel_metadata(options, ids))
    return Built(kernel, tuple(folders), dtype, loss)


def _refuse(out: Path, options: BuildOptions) -> None:
    """What would be found wrong after an hour of measuring and writing."""
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


def _recipe(run: Run, member: EnsembleMember) -> Variant:
    """How a member predicts; where its training began is nobody's business, and may be a path of this machine."""
    return read_spec(run.store.trial(member.trials[0])).recipe.model_copy(update={"weights": "none"})


def _write_key(path: Path, secret: Secret) -> None:
    """Nobody else can read it at any time."""
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as file:
            file.write(secret.text + "\n")
    except OSError as error:
        raise disk_error(path, error) from error


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


def _dtype(
    run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember], options: BuildOptions
) -> tuple[Dtype, HalfLoss | None]:
    """float16 where that is harmless, measured; or what was asked for."""
    if options.dtype != "auto":
        return options.dtype, None
    loss = half_loss_of(run, ensemble, members)
    return ("float16" if loss.harmless else "float32"), loss


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _header(run: Run, manifest: Manifest, loss: HalfLoss | None) -> str:
    """What a person reads at the top of the file."""
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
    ]
    return "\n".join(lines + _files(manifest.members)) + "\n"


def _files(members: Sequence[KernelMember]) -> list[str]:
    stored = [piece for member in members for weights in member.weights for piece in weights.pieces]
    return [f"  {piece.sha256}  {piece.name}" for piece in stored]
