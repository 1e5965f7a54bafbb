"""A trial as a kernel that trains it: one Python file, and a dataset with the weights that it begins from.

The weights are made here, so that the kernel needs neither timm's hub nor a package: the same network, with the same
new classifier, as the trial would begin with here.
"""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from imet_ray.command_line import pasted
from imet_ray.commands.setup import Run
from imet_ray.commands.train import check_one_process, variant_named, with_settings
from imet_ray.errors import ConfigError
from imet_ray.models.models import build_model, check_model
from imet_ray.specs import Hparam, TrialSpec, hparams_text
from imet_ray.storage.encryption import Secret, encrypt
from imet_ray.storage.results import read_result, standings
from imet_ray.training.parents import beginning, trained_before
from kernel_builder.build import KERNEL, ROOT, BuildOptions, Built, building, refuse_place, write_kernel
from kernel_builder.datasets import write_datasets
from kernel_builder.import_closure import import_closure
from kernel_builder.runtime.manifest import Weights
from kernel_builder.runtime.training_manifest import TrainingManifest
from kernel_builder.single_file import kernel_text

ENTRY = "kernel_builder.runtime.train"


def chosen_trial(
    run: Run, variant: str, fold: int, settings: dict[str, Hparam] | None
) -> tuple[TrialSpec, str]:
    """The trial to train, and where its hparams are from.

    Args:
        settings: in place of the variant's own; None: the best set of the run's search, if it has one.

    Raises:
        ConfigError: if it is trained already, or there is no such variant, fold or setting.
    """
    check_one_process(run.experiment.space, fold)
    wanted = variant_named(run.experiment.space, variant)
    if wanted.added is not None:
        raise ConfigError(
            f"variant {variant!r} learns from pseudo-labels, and a kernel has no models to take them from: train it "
            "with --sweep or --train"
        )
    source = "the variant's own values"
    if settings:
        source = f"{source}, with {hparams_text(settings)}"
    elif found := standings(run.store, [variant]):
        settings = found[0].hparams
        source = f"the best set that is trained so far: {hparams_text(settings) or 'its own values'}"
    recipe = with_settings(wanted, settings or {})
    after = trained_before(run.store, recipe, fold)
    digests = run.data.split.digest, run.data.folds_digest
    spec = run.experiment.space.trial(wanted, settings or {}, fold, digests=digests, after=after)
    result = read_result(run.store.trial(spec.trial_id))
    if result is not None and result.status == "complete":
        raise ConfigError(
            f"{spec.title} is trained already: choose another --fold, or other hparams with --set"
        )
    return spec, source


def build_training(run: Run, spec: TrialSpec, out: Path, options: BuildOptions) -> Built:
    """Write `out/kernel`, and `out/datasets/0` where the recipe begins from weights.

    Raises:
        ImetError: one line, for weights that are not there or a place that cannot be written.
    """
    refuse_place(out, options)
    options.kernel_metadata()
    if spec.recipe.weights == "none":
        options = replace(options, secret=None)  # nothing to encrypt
    start, folders = None, []
    with building(out) as place:
        if spec.recipe.weights != "none":
            start = _stage_start(run, spec, options.secret, place)
            folders = write_datasets(place / "datasets", place, [start], options.max_dataset_bytes)
        manifest = TrainingManifest(
            run=run.store.root.name,
            spec=spec,
            folds=run.data.folds.tolist(),
            start=start,
            encrypted=options.secret is not None,
            key=options.embedded_key,
            limit=options.limit,
            reserve=options.reserve,
        )
        closure = import_closure(ENTRY, {name: ROOT / name for name in ("imet_ray", "kernel_builder")})
        text = kernel_text(closure, manifest.model_dump(mode="json"), entry=ENTRY, header=_header(manifest))
        folders = write_kernel(place, text, folders, options)
    return Built(out / "kernel" / KERNEL, [out / one.relative_to(place) for one in folders], "float32", None)


def _stage_start(run: Run, spec: TrialSpec, secret: Secret | None, staging: Path) -> Weights:
    """Write the weights that the trial begins with, as the trainer would make them."""
    recipe, data = spec.recipe, run.data
    check_model(recipe.architecture, recipe.image_size, recipe.dropout, recipe.drop_path, recipe.freeze)
    torch.manual_seed(spec.seed)
    model = build_model(
        recipe.architecture,
        n_labels=len(data.label_ids),
        image_size=recipe.image_size,
        dropout=recipe.dropout,
        weights=beginning(spec, run.store.trial(spec.trial_id)),
        prior=data.labels[data.rows(spec.fold, held_out=False)].mean(0),
        drop_path=recipe.drop_path,
    )
    content = safetensors.torch.save({name: t.contiguous() for name, t in model.state_dict().items()})
    name = f"{spec.variant.name}-f{spec.fold}-start.safetensors"
    if secret is not None:
        name += ".encrypted"
        sealed = io.BytesIO()
        encrypt(io.BytesIO(content), sealed, secret)
        content = sealed.getvalue()
    (staging / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return Weights(trial=spec.trial_id, name=name, sha256=digest, size=len(content))


def _header(manifest: TrainingManifest) -> str:
    """What a person reads at the top of the file."""
    spec = manifest.spec
    take = pasted("python", "-m", "kernel_builder", "--take", "DIR", "--name", manifest.run)
    lines = [
        f"imet_ray: trains {spec.title} of the run {manifest.run}.",
        "",
        f"Hparams: {hparams_text(spec.hparams) or 'as the variant says'}; {spec.recipe.epochs} epochs.",
        f"Its output, fetched to DIR, is taken into the run by: {take}",
    ]
    if manifest.start is not None:
        lines += ["", "Begins from, found under the input folder by its sha256:"]
        lines.append(f"  {manifest.start.sha256}  {manifest.start.name}")
    return "\n".join(lines) + "\n"
