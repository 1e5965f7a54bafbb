"""An ensemble as a folder that outlives its run: for tagging, for ONNX Runtime, for timm and the Hugging Face hub."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from imet_ray.command_line import pasted
from imet_ray.commands.setup import Run, reopen
from imet_ray.data.images import read_rgb
from imet_ray.data.sources import demo
from imet_ray.data.views import apply_view
from imet_ray.errors import ConfigError, ImetError
from imet_ray.models.checkpoint import load_tagger
from imet_ray.models.onnx_file import TOLERANCE, need_onnx, write_onnx, written_difference
from imet_ray.models.timm_folder import models_of, write_timm_folder
from imet_ray.prediction.ensemble import blend_oof, in_order
from imet_ray.prediction.exported import exporting, refuse_place, write_files
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.tagger_files import TaggerFiles, find_ensemble, with_run
from imet_ray.reporting.model_card import CardFacts, Evidence, evidence, model_card, timm_card
from imet_ray.specs import TrialSpec
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.experiment import read_experiment
from imet_ray.storage.files import write_text, writing
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import Cache, ExportedDirectory, RunDirectory
from imet_ray.storage.runs import Runs
from imet_ray.units import as_typed, user_path

SHOWN = 8  # pictures that ONNX is compared on
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportRequest:
    """What is exported, as it was typed."""

    ensemble: str  # of the run, or RUN/ENSEMBLE
    folder: Path
    name: str | None  # of the run; None: the newest one
    runs: Runs
    cache: Cache
    data: str | None  # where the run's data lie now
    source: Path | None  # openclipart's unpacked packages
    onnx: bool
    hub: bool


@dataclass(frozen=True)
class _Shown:
    """Pictures that a model of any size may be shown."""

    pictures: Sequence[np.ndarray]  # (H, W, 3) uint8 each
    what: str

    def batch(self, image_size: int) -> np.ndarray:
        """The view `centre` of each: (n, 3, image_size, image_size) uint8."""
        views = [apply_view(picture, "centre", image_size) for picture in self.pictures]
        return np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))


def export(request: ExportRequest) -> int:
    """Write the folder, or write it anew; what a stopped export wrote stays.

    Raises:
        ImetError: in one line, if the ensemble cannot be exported or the folder holds something else.
    """
    runs, run_name, name = _which(request)
    request = replace(request, runs=runs)
    store = runs.open(run_name)
    files = find_ensemble(f"{store.root.name}/{name}", runs)
    folder = request.folder.resolve()
    refuse_place(folder, files.ensemble)
    if request.onnx:
        need_onnx()
    members = in_order(files.ensemble)
    specs = {trial: read_spec(store.trial(trial)) for member in members for trial in member.trials}
    run = _with_data(request, store)
    shown = _pictures(run)
    found = _evidence(run, files) if run is not None else None
    with exporting(folder, files.ensemble) as place:
        size = write_files(place, files)
        onnx = _write_onnx(place, ExportedDirectory(folder), files, specs, shown) if request.onnx else {}
        hub = _write_hub(place, files, specs) if request.hub else {}
        for path, wanted in ((place.onnx, onnx), (place.hub, hub)):
            if not wanted:
                shutil.rmtree(path, ignore_errors=True)
        facts = CardFacts(
            ensemble=files.ensemble,
            experiment=read_experiment(store),
            members=members,
            specs=specs,
            label_names=files.label_names,
            evidence=found,
            onnx=onnx,
            tolerance=TOLERANCE,
            compared=shown.what,
            hub=hub,
            command=pasted("python", "launch.py", "--tag", "PICTURES", "--with", folder.name),
        )
        write_text(place.card, model_card(facts))
    where = as_typed(folder)
    print(
        f"export  {where}: {len(members)} members, {len(specs)} checkpoints, {size / 1e6:,.1f} MB of weights"
    )
    if onnx:
        worst = max(onnx.values())
        print(f"onnx    at most {worst:.1e} from torch on {shown.what}; {TOLERANCE:g} is allowed")
    if hub:
        print(f"hub     {sum(map(len, hub.values()))} folders for timm in {where / place.hub.name}")
    print(f"next    {pasted('python', 'launch.py', '--tag', 'PICTURES', '--with', where)}")
    return 0


def _which(request: ExportRequest) -> tuple[Runs, str | None, str]:
    """Where runs lie, the run (None: the newest one) and its ensemble, as `--with` takes them."""
    folder = user_path(request.ensemble)
    if not (folder / "ensemble.json").is_file():
        run_name, _, name = with_run(request.ensemble, request.name).rpartition("/")
        return request.runs, run_name or None, name
    folder = folder.resolve()
    if len(folder.parents) < 3 or not RunDirectory(folder.parents[1]).experiment.exists():
        raise ConfigError(
            f"{request.ensemble} is exported already: copy it; --onnx and --hub begin from its run"
        )
    return Runs(folder.parents[2]), folder.parents[1].name, folder.name


def _with_data(request: ExportRequest, store: RunDirectory) -> Run | None:
    """The run with its data; None, and a line that says why, where these are gone: the card says less then."""
    try:
        return reopen(request.runs, store.root.name, request.cache, at=request.data, source=request.source)
    except ImetError as error:
        if request.data is not None or request.source is not None:
            raise
        print(f"data    not used, so the card counts no labels: {error}")
        return None


def _pictures(run: Run | None) -> _Shown:
    """Some of the run's pictures, or drawn ones."""
    if run is None:
        drawn = [demo.draw(np.random.default_rng(seed))[0] for seed in range(SHOWN)]
        return _Shown(drawn, f"{SHOWN} drawn pictures")
    paths = run.catalog.train.files
    chosen = np.linspace(0, len(paths) - 1, min(SHOWN, len(paths))).astype(int)
    return _Shown([read_rgb(paths[i]) for i in chosen], f"{len(chosen)} pictures of the data")


def _evidence(run: Run, files: TaggerFiles) -> Evidence | None:
    """What out-of-fold predictions say of the ensemble; None, and a line that says why, where they are gone."""
    try:
        probs = blend_oof(files.ensemble, run.store, run.catalog.train.ids)
    except ImetError as error:
        print(f"oof     not used, so the card counts no labels: {error}")
        return None
    metric = metric_named(run.experiment.space.metric)
    return evidence(probs, run.catalog, files.ensemble.decoder, metric)


def _write_onnx(
    place: ExportedDirectory,
    earlier: ExportedDirectory,
    files: TaggerFiles,
    specs: Mapping[str, TrialSpec],
    shown: _Shown,
) -> dict[str, float]:
    """A file per checkpoint; by trial, how far it is from torch. Those of an earlier or a stopped export are kept."""
    found = {}
    for trial_id, spec in tqdm(specs.items(), "onnx", unit="checkpoint", disable=not sys.stderr.isatty()):
        path, recipe = place.onnx_of(trial_id), spec.recipe
        facts = {
            "imet_ray.trial": trial_id,
            "imet_ray.weights": file_digest(place.weights_of(trial_id)),
            "imet_ray.compared": shown.what,
            "label_ids": json.dumps(files.ensemble.label_ids),
            "label_names": json.dumps(files.label_names, ensure_ascii=False),
        }
        known = written_difference(path, facts)
        if known is None and (known := written_difference(earlier.onnx_of(trial_id), facts)) is not None:
            with writing(path) as temporary:
                shutil.copyfile(earlier.onnx_of(trial_id), temporary)
        if known is None:
            model, _ = load_tagger(place.weights_of(trial_id), CPU)
            batch = shown.batch(recipe.image_size)
            known = write_onnx(
                path, model, batch, name=f"{spec.variant.name} ({recipe.architecture})", facts=facts
            )
        found[trial_id] = known
    return found


def _write_hub(
    place: ExportedDirectory, files: TaggerFiles, specs: Mapping[str, TrialSpec]
) -> dict[str, list[str]]:
    """A folder for timm per checkpoint, or per snapshot of one; by trial, their names."""
    shutil.rmtree(place.hub, ignore_errors=True)  # what a stopped export left may be half
    found: dict[str, list[str]] = {}
    for trial_id, spec in tqdm(specs.items(), "hub", unit="checkpoint", disable=not sys.stderr.isatty()):
        model, info = load_tagger(place.weights_of(trial_id), CPU)
        models = models_of(model)
        for k, tagger in enumerate(models):
            name = trial_id if len(models) == 1 else f"{trial_id}-{k}"
            folder, recipe = place.hub / name, spec.recipe
            write_timm_folder(
                folder,
                tagger,
                image_size=recipe.image_size,
                label_names=files.label_names,
                name=f"{spec.variant.name} ({recipe.architecture})",
            )
            facts = {
                "variant": spec.variant.name,
                "architecture": recipe.architecture,
                "pixels": recipe.image_size,
                "held-out fold": spec.fold,
                "epoch": info.epoch,
            }
            if len(models) > 1:
                facts["snapshot"] = f"{k + 1} of {len(models)}, whose probabilities are averaged"
            write_text(
                folder / place.card.name, timm_card(facts, labels=len(files.label_names), repository=name)
            )
            found.setdefault(trial_id, []).append(name)
    return found
