"""An ensemble as a kernel: weights in datasets that the official client takes, and one Python file.

The file holds no weights and no training code: only the modules that `kernel_builder.runtime.main` imports.
"""

import contextlib
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from imet_ray.command_line import pasted
from imet_ray.commands.setup import Run
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember
from imet_ray.storage.encryption import Secret
from imet_ray.storage.files import disk_error, write_json, write_text
from imet_ray.storage.results import read_spec
from kernel_builder.datasets import refuse_large, stage_weights, write_datasets
from kernel_builder.float16_check import Float16Loss, float16_loss
from kernel_builder.import_closure import import_closure
from kernel_builder.kaggle import DATASET_METADATA, KERNEL_METADATA, dataset_metadata, kernel_metadata
from kernel_builder.runtime.locate_weights import KEY_FILE
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.single_file import kernel_text

ENTRY = "kernel_builder.runtime.main"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "timm", "albumentations", "numpy", "safetensors")
KERNEL = "kernel.py"
BUILDING = ".building-"  # what a folder is called while a kernel is built in it


@dataclass(frozen=True)
class BuildOptions:
    """What a person may choose about a kernel."""

    user: str
    title: str
    dtype: str  # float32, float16, or auto: float16 where the score does not change
    secret: Secret | None  # None: the weights stay plain
    key: str  # embed, env or file: how the key reaches the kernel
    max_dataset_bytes: int
    limit: float  # seconds
    reserve: float
    competition: str | None
    accelerator: str  # by Kaggle's name

    @property
    def embedded_key(self) -> str | None:
        """The text of the key, where it is in the kernel."""
        return self.secret.text if self.secret is not None and self.key == "embed" else None

    def kernel_metadata(self) -> dict[str, Any]:
        """What Kaggle's client reads of the kernel, without its datasets.

        Raises:
            ConfigError: if Kaggle would refuse a name.
        """
        return kernel_metadata(
            self.user,
            self.title,
            code_file=KERNEL,
            competition=self.competition,
            accelerator=self.accelerator,
        )


@dataclass(frozen=True)
class Built:
    """What was written."""

    kernel: Path
    folders: list[Path]  # of the datasets
    dtype: str
    loss: Float16Loss | None  # if it was measured


def build(run: Run, ensemble: Ensemble, out: Path, options: BuildOptions) -> Built:
    """Write `out/kernel` and `out/datasets/<n>`.

    Raises:
        ImetError: one line, for an ensemble that no kernel can predict or a place that cannot be written.
    """
    members = _in_order(ensemble)
    _refuse(run, members, out, options)
    dtype, loss = options.dtype, None
    with building(out) as place:
        if dtype == "auto":
            loss = float16_loss(run, ensemble, members)
            dtype = "float16" if loss.harmless else "float32"
        weights = stage_weights(run, members, dtype, options.secret, place)
        limit = options.max_dataset_bytes
        folders = write_datasets(place / "datasets", place, list(weights.values()), limit)
        manifest = _manifest(run, ensemble, members, weights, options)
        text = kernel_text(
            import_closure(ENTRY, {name: ROOT / name for name in ("imet_ray", "kernel_builder")}),
            manifest.model_dump(mode="json"),
            entry=ENTRY,
            header=_header(run, manifest, dtype, loss),
        )
        folders = write_kernel(place, text, folders, options)
    return Built(out / "kernel" / KERNEL, [out / one.relative_to(place) for one in folders], dtype, loss)


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder in `out` to build in. What it holds goes to `out` when the block ends well; else nothing stays.

    Raises:
        StoreError: if the disk is full or the place cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(f"{BUILDING}*"):  # of a build that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=out, prefix=BUILDING) as place:
            yield Path(place)
            for folder in sorted(Path(place).iterdir()):
                folder.rename(out / folder.name)
    except OSError as error:
        raise disk_error(Path(error.filename or out), error) from error


def write_kernel(place: Path, text: str, folders: Sequence[Path], options: BuildOptions) -> list[Path]:
    """Write `place/kernel`, the key's dataset, and what Kaggle's client reads beside them.

    Args:
        folders: of the datasets so far.

    Returns:
        The folders of all datasets.
    """
    kernel, folders = place / "kernel" / KERNEL, list(folders)
    (write_text if options.embedded_key is None else write_private)(kernel, text)
    if options.secret is not None and options.key == "file":
        folders.append(place / "datasets" / "key")
        write_private(folders[-1] / KEY_FILE, options.secret.text + "\n")
    described = [dataset_metadata(options.user, f"{options.title} {folder.name}") for folder in folders]
    for folder, description in zip(folders, described, strict=True):
        write_json(folder / DATASET_METADATA, description)
    ids = [description["id"] for description in described]
    write_json(kernel.with_name(KERNEL_METADATA), options.kernel_metadata() | {"dataset_sources": ids})
    return folders


def _refuse(run: Run, members: Sequence[EnsembleMember], out: Path, options: BuildOptions) -> None:
    """Report mistakes before an hour of measuring and writing."""
    refuse_place(out, options)
    longest = "key" if options.key == "file" else "99"
    dataset_metadata(options.user, f"{options.title} {longest}")
    options.kernel_metadata()
    refuse_large(run, members, options.dtype, options.max_dataset_bytes)


def refuse_place(out: Path, options: BuildOptions) -> None:
    """Refuse a folder that is not empty, and a time without use."""
    try:
        occupied = out.exists() and any(not file.name.startswith(BUILDING) for file in out.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}: name a folder") from None
    if occupied:
        raise ConfigError(f"--out {out} is not empty: name another folder, or empty it")
    if options.limit <= options.reserve:
        raise ConfigError("--limit must be longer than --reserve: give more time, or keep less of it back")


def _in_order(ensemble: Ensemble) -> list[EnsembleMember]:
    """The members that are needed, in the order of prediction; those that level 2 alone needs come last."""
    by_name = {member.variant: member for member in ensemble.needed}
    external = [name for name, member in by_name.items() if not member.trials]
    if external:
        raise ConfigError(
            f"a kernel cannot predict {', '.join(external)}, made by another tool: blend again without --member"
        )
    if not ensemble.prefixes:
        raise StoreError(f"the ensemble {ensemble.name} is of an older version: blend again")
    return [by_name[name] for name in dict.fromkeys([*ensemble.prefixes[-1].members, *by_name])]


def _manifest(
    run: Run,
    ensemble: Ensemble,
    members: Sequence[EnsembleMember],
    weights: Mapping[str, Weights],
    options: BuildOptions,
) -> Manifest:
    return Manifest(
        ensemble=ensemble.name,
        label_ids=ensemble.label_ids,
        prior=run.data.labels.mean(axis=0).tolist(),
        views=ensemble.views,
        scale=ensemble.scale,
        members=[_kernel_member(run, member, weights) for member in members],
        prefixes=ensemble.prefixes,
        level2=ensemble.level2,
        decoder=ensemble.decoder if ensemble.level2 is not None else None,
        encrypted=options.secret is not None,
        key=options.embedded_key,
        limit=options.limit,
        reserve=options.reserve,
        competition=options.competition,
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


def write_private(path: Path, text: str) -> None:
    """Write a file in a folder of its own; nobody but the owner can read it at any time."""
    path.parent.mkdir(mode=0o700)
    write_text(path, text)
    path.chmod(0o600)


def _header(run: Run, manifest: Manifest, dtype: str, loss: Float16Loss | None) -> str:
    """What a person reads at the top of the file."""
    name = run.store.root.name
    versions = []
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    lines = [
        f"imet_ray: predictions of the ensemble {manifest.ensemble} of the run {name}.",
        "",
        f"{len(manifest.members)} members, {len(manifest.weights)} checkpoints, {len(manifest.label_ids):,} labels; "
        f"weights as {dtype}, not in this file.",
        *([f"Level 2: {manifest.level2.stacker}, in this file."] if manifest.level2 is not None else []),
        *([f"Measured: {loss}."] if loss is not None else []),
        f"Built with python {platform.python_version()}, {', '.join(versions)}.",
        f"Rebuild: {pasted('python', '-m', 'kernel_builder', manifest.ensemble, '--name', name, '--out', 'DIR')}",
        "",
        "The weights, found under the input folder by their sha256:",
        *(f"  {file.sha256}  {file.name}" for file in manifest.weights),
    ]
    return "\n".join(lines) + "\n"
