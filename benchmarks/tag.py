"""Pictures per second of `launch.py --tag` on a cold folder of JPEGs, against a plain DataLoader loop.

    uv run python -m benchmarks.tag [--images 5000] [--rounds 2] [--with FOLDER] [--more]    7 minutes on 2 cores

The folder has generated photographs of 640 x 480 to 1600 x 1200 pixels. The ensemble is as the demo's, unless one is
given: four variants of three folds, 48 px, two views; its weights are untrained, which changes no time. The peer is
what one would write: a `Dataset` that decodes a picture once and cuts the views for all models, torch's `DataLoader`
with a worker process per core, batches of 64, and for each batch each model under `inference_mode`. It reads pictures
as we do, so both give the same probabilities, which is checked. With --more there are two more peers. One, "kept", is
the same loop in a process that keeps freed memory, as `--tag` does (`imet_ray.startup`). In the other, "naive", the
loop over the models is outside, and the DataLoader inside, so that each picture is decoded for each model. All run in
processes of their own, with models loaded and a first batch done before the clock starts, and files dropped from the
page cache; they take turns. Seconds of CPU are those of the process and its workers: on a busy machine they tell more
than the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from imet_ray.commands.plan import SPACES
from imet_ray.cores import usable_cores
from imet_ray.data.images import read_rgb, scaled_down
from imet_ray.data.views import apply_views
from imet_ray.models.checkpoint import CheckpointInfo, load_tagger, save_weights
from imet_ray.models.models import build_model
from imet_ray.prediction.decode import Threshold
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, combined, ensemble_text, in_order
from imet_ray.prediction.pooling import add_share
from imet_ray.prediction.tagger import Tagger, device_of
from imet_ray.prediction.tagger_files import find_ensemble, write_labels
from imet_ray.prediction.view_sets import for_recipe
from imet_ray.space_file import read_space
from imet_ray.specs import TrialSpec, default_pack_short_side
from imet_ray.startup import keep_freed_memory
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.run_directory import ExportedDirectory
from imet_ray.storage.runs import Runs
from imet_ray.tagging.collection import Choice, made_by, tag
from imet_ray.tagging.outputs import Asked, output_of
from imet_ray.tagging.pictures import find_pictures
from imet_ray.training.recipe import check_recipe

SIZES = ((640, 480), (800, 600), (1024, 768), (1600, 1200))  # pixels, in turn
SHARES = (0.55, 0.2, 0.15, 0.1)
BATCH = 64
LABELS = 30


def draw(folder: Path, n: int) -> None:
    """Photographs, as JPEG files."""
    rng = np.random.default_rng(0)
    for i in range(n):
        width, height = SIZES[rng.choice(len(SIZES), p=SHARES)]
        image = np.zeros((height, width, 3), np.float32)
        for cells, strength in ((3, 60), (8, 35), (30, 15), (90, 6)):
            coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        pixels = (image + rng.uniform(70, 180, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:05}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])


def make_ensemble(root: Path) -> None:
    """The demo's, untrained, as an exported folder."""
    place, space = ExportedDirectory(root), read_space(SPACES / "demo.yml", {}, check=check_recipe)
    labels = [str(label) for label in range(LABELS)]
    members = []
    for variant in space.variants:
        trials = []
        for fold in range(space.n_folds):
            torch.manual_seed(len(members) * 10 + fold)
            size = variant.image_size
            model = build_model(
                variant.architecture,
                n_labels=LABELS,
                image_size=size,
                dropout=variant.dropout,
                weights="none",
            )
            spec = TrialSpec(
                variant=variant,
                hparams={},
                fold=fold,
                n_folds=space.n_folds,
                seed=0,
                data_digest="",
                folds_digest="",
                pack_short_side=default_pack_short_side(size),
            )
            path = place.weights_of(spec.trial_id)
            save_weights(path, model, CheckpointInfo(spec, tuple(labels), 1, 0.5, 0.5))
            trials.append((spec.trial_id, file_digest(path)))
        members.append(
            EnsembleMember(
                variant=variant.name,
                weight=1 / len(space.variants),
                threshold=0.5,
                score=0.5,
                trials=[trial for trial, _ in trials],
                checkpoints=[digest for _, digest in trials],
            )
        )
    decoder = Threshold(threshold=0.5)
    ensemble = Ensemble(name="bench", label_ids=labels, members=members, decoder=decoder, report={})
    place.ensemble.write_text(ensemble_text(ensemble))
    write_labels(place.labels, labels, labels)


class Pictures(Dataset[list[torch.Tensor]]):
    """What one would write: a picture as all models see it, decoded once; or as one of them does."""

    def __init__(self, files: list[Path], sights: list[tuple[int, int, tuple[str, ...]]]) -> None:
        self.files, self.sights = files, sights

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        pixels, seen = read_rgb(self.files[row]), []
        for short_side, size, views in self.sights:
            cut = np.stack(apply_views(scaled_down(pixels, short_side), views, size, row=0))
            seen.append(torch.from_numpy(cut).permute(0, 3, 1, 2))
        return seen


def plain(folder: Path, where: Path, *, naive: bool) -> Iterator[Callable[[], np.ndarray]]:
    """The peer: first its warm-up, then the loop."""
    files = find_ensemble(where, Runs(Path("runs")))
    loaded = []
    for member in in_order(files.ensemble):
        for trial in member.trials:
            model, info = load_tagger(files.checkpoints[trial], torch.device("cpu"))
            recipe = info.spec.recipe
            sight = (
                info.spec.pack_short_side,
                recipe.image_size,
                for_recipe(recipe, files.ensemble.views)[0],
            )
            loaded.append((model, sight))
    pictures = sorted(folder.glob("*.jpg"))

    def passes(models: list, sights: list, some: list[Path]) -> np.ndarray:  # type: ignore[type-arg]
        loader = DataLoader(Pictures(some, sights), batch_size=BATCH, num_workers=usable_cores())
        found = []
        with torch.inference_mode():
            for seen in loader:
                batch = []
                for model, sight in models:
                    images = seen[sights.index(sight)]
                    n, v = images.shape[:2]
                    batch.append(model(images.flatten(0, 1)).sigmoid().view(n, v, -1).mean(1).numpy())
                found.append(np.stack(batch))
        return np.concatenate(found, axis=1)

    def run(some: list[Path]) -> np.ndarray:
        if naive:
            by_model = np.concatenate([passes([one], [one[1]], some) for one in loaded])
        else:
            by_model = passes(loaded, list(dict.fromkeys(sight for _, sight in loaded)), some)
        rest = iter(by_model)

        def probs(member: EnsembleMember) -> np.ndarray:
            total = None
            for _ in member.trials:
                total = add_share(total, 1 / len(member.trials), next(rest), "probability")
            assert total is not None
            return total

        return combined(files.ensemble, ((member, probs(member)) for member in in_order(files.ensemble)))

    yield lambda: run(pictures[:BATCH])
    yield lambda: run(pictures)


def ours(folder: Path, where: Path, out: Path) -> Iterator[Callable[[], np.ndarray]]:
    """`--tag`, to a table on the disk; it says all probabilities, so that they can be compared."""
    files, choice = find_ensemble(where, Runs(Path("runs"))), Choice(min_probability=0.0)
    made = made_by(files, None, choice)
    tagger = Tagger(files, device_of("cpu"))

    def run(n: int | None) -> np.ndarray:
        output = output_of(Asked(out.with_name(f"{n}.jsonl"), made))
        with output.opened():
            tag(tagger, find_pictures([str(folder)], sys.stdin.buffer)[:n], output, made, choice)
            output.finish()
        lines = out.with_name(f"{n}.jsonl").read_text().splitlines()
        rows = [dict(zip(row["labels"], row["probabilities"], strict=True)) for row in map(json.loads, lines)]
        return np.array([[row[label] for label in tagger.labels] for row in rows])

    yield lambda: run(BATCH)
    yield lambda: run(None)


def timed(what: str, folder: Path, where: Path, scratch: Path) -> tuple[float, float]:
    """Seconds of one loop by the clock, and of CPU; it leaves its probabilities."""
    if what == "kept":
        keep_freed_memory()
    warm, run = (
        ours(folder, where, scratch / "x") if what == "tag" else plain(folder, where, naive=what == "naive")
    )
    warm()
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    probs = run()
    seconds, cpu = time.perf_counter() - began, sum(os.times()[:4]) - cpu
    np.save(scratch / f"{what}.npy", probs)
    return seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--with", dest="ensemble", type=Path)
    parser.add_argument("--more", action="store_true", help="two more peers")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # a process of its own
    args = parser.parse_args()
    if args.one:
        what, *places = args.one
        print(*timed(what, *map(Path, places)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, where = Path(scratch) / "pictures", args.ensemble or Path(scratch) / "ensemble"
        folder.mkdir()
        draw(folder, args.images)
        if args.ensemble is None:
            where.mkdir()
            make_ensemble(where)
        sides = ["tag", "plain", *(["kept", "naive"] if args.more else [])]
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        busy: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(args.rounds):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                own = Path(scratch) / f"{side}{turn}"
                own.mkdir()
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.tag",
                    "--one",
                    side,
                    str(folder),
                    str(where),
                    str(own),
                ]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                clock, cpu = map(float, printed.split()[-2:])
                seconds[side].append(clock)
                busy[side].append(cpu)
                print(f"round {turn + 1}: {side:<6}{clock:8.1f} s, {cpu:8.1f} s of CPU", flush=True)
        found = {side: np.load(Path(scratch) / f"{side}0" / f"{side}.npy") for side in sides}
    off = np.abs(found["tag"] - found["plain"]).max()
    print(f"{args.images} pictures; largest difference of a probability {off:.5f}")
    median, cpus = ({side: statistics.median(of[side]) for side in sides} for of in (seconds, busy))
    for side in sides:
        print(
            f"{side:<6}{args.images / median[side]:8.1f} pictures/s, {1000 * cpus[side] / args.images:6.2f} ms of CPU "
            f"each; --tag is {median[side] / median['tag']:.2f} x as fast, of CPU {cpus[side] / cpus['tag']:.2f} x"
        )


if __name__ == "__main__":
    main()
