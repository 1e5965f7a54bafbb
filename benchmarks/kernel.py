"""Pictures per second of a kernel with six checkpoints of one size, against a plain loop that decodes for each.

    uv run python -m benchmarks.kernel [--images 400] [--size 96] [--architecture test_resnet] [--rounds 3]

Ours is the kernel's own path: pictures are packed once, checkpoints go one by one through `Schedule` and its running
blend, and a submission is written after each. The peer predicts one checkpoint after the other with torch's DataLoader.
Its dataset decodes a picture with PIL, scales it, takes the crop and its mirror image, and normalises them in float32
numpy. It has as many workers as make it fastest (several numbers are tried). Probabilities are added up and decoded
once. Both have the same models, the same two views, the same batches and precision, as many compute threads as there
are cores, and a GPU if there is one. They take turns; the median of the rounds counts. Also printed: how far their mean
probabilities are apart (PIL scales pictures a little differently from OpenCV), and on a CPU the share of the time that
is not spent in the models. The pictures are generated: PNG files like photographs, short side 300 pixels as iMet's.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.loader import MEAN, STD, photograph
from imet_ray.cores import usable_cores
from imet_ray.models.models import Tagger, build_model
from imet_ray.prediction.decode import Threshold
from imet_ray.prediction.ensemble import Prefix
from imet_ray.prediction.predict import EVAL_BATCH, Inference, half_of, predict_batches
from imet_ray.prediction.submission import write_submission
from imet_ray.specs import Variant, default_pack_short_side
from kernel_builder.runtime.image_cache import ImageCache
from kernel_builder.runtime.inputs import TestPictures
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights
from kernel_builder.runtime.running_blend import RunningBlend
from kernel_builder.runtime.schedule import Deadline, Schedule

CHECKPOINTS = 6
LABELS = 100
VIEWS = ("centre", "flip")
BATCH = EVAL_BATCH // len(VIEWS)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
AUTOCAST = half_of(DEVICE) if ON_GPU else None


class Stopwatch:
    """Seconds spent in forward passes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._began


class Decoded(Dataset[torch.Tensor]):
    """What most inference scripts have: a picture from its file, each time."""

    def __init__(self, files: Sequence[Path], short_side: int, size: int) -> None:
        self.files, self.short_side, self.size = files, short_side, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.files[row]) as file:
            image = file.convert("RGB")
        scale = self.short_side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        crop = np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        normalised = (crop.astype(np.float32) / 255 - MEAN) / STD
        views = np.stack([normalised, normalised[:, ::-1]]).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(views))


def make_manifest(architecture: str, size: int) -> Manifest:
    weights = [Weights(trial=str(i), name=f"m-f{i}", sha256="", size=1) for i in range(CHECKPOINTS)]
    recipe = Variant(name="m", architecture=architecture, weights="none", image_size=size, views=VIEWS)
    member = KernelMember(
        name="m",
        weight=1.0,
        recipe=recipe,
        pack_short_side=default_pack_short_side(size),
        weights=weights,
    )
    return Manifest(
        ensemble="benchmark",
        label_ids=[str(i) for i in range(LABELS)],
        prior=[0.03] * LABELS,
        scale="probability",
        members=[member],
        prefixes=[Prefix(members=["m"], decoder=Threshold(threshold=0.5), score=0.0)],
        encrypted=False,
        key=None,
        limit=1e6,
        reserve=0.0,
    )


def ours(files: Sequence[Path], models: Sequence[Tagger], manifest: Manifest, folder: Path) -> np.ndarray:
    """Mean probabilities, (n, C)."""
    pictures = TestPictures(tuple(file.stem for file in files), tuple(files))
    cores = usable_cores()
    images = ImageCache(pictures, folder, cores)
    recipe, short_side = manifest.members[0].recipe, manifest.members[0].pack_short_side

    def batches(member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        how = Inference.of(recipe, DEVICE, workers=cores - 1 if ON_GPU else 0)
        return predict_batches(
            models[int(weights.trial)], images.get(short_side, keep=[short_side]), np.arange(len(files)), how
        )

    def publish(blend: RunningBlend) -> None:
        write_submission(
            folder / "submission.csv", pictures.ids, manifest.label_ids, blend.decoded(images.unreadable)
        )

    deadline = Deadline(manifest.limit, manifest.reserve, time.monotonic)
    schedule = Schedule(manifest, len(files), deadline, publish, lambda text: None, lambda text: None)
    schedule.begin()
    assert schedule.run(batches).checkpoints == CHECKPOINTS
    return schedule.blend.probabilities()


@torch.inference_mode()
def peer(
    files: Sequence[Path], models: Sequence[Tagger], manifest: Manifest, folder: Path, workers: int
) -> np.ndarray:
    """Mean probabilities, (n, C)."""
    member = manifest.members[0]
    data = Decoded(files, member.pack_short_side, member.recipe.image_size)
    total = np.zeros((len(files), LABELS), np.float32)
    for model in models:
        done = 0
        for views in DataLoader(data, batch_size=BATCH, num_workers=workers, pin_memory=ON_GPU):
            flat = views.to(DEVICE, non_blocking=True).flatten(0, 1)
            flat = flat.contiguous(memory_format=torch.channels_last)
            with torch.autocast(DEVICE.type, dtype=AUTOCAST, enabled=AUTOCAST is not None):
                logits = model.body(flat)
            probs = logits.float().sigmoid().view(len(views), len(VIEWS), -1).mean(1)
            total[done : done + len(probs)] += probs.cpu().numpy() / len(models)
            done += len(probs)
    write_submission(folder / "peer.csv", [file.stem for file in files], manifest.label_ids, total > 0.5)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=96, help="pixels of the crops")
    parser.add_argument("--architecture", default="test_resnet", help="of timm")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    manifest = make_manifest(args.architecture, args.size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"p{i:05d}.png" for i in range(args.images)]
        for file in files:
            Image.fromarray(photograph(generator)).save(file)
        models = []
        for _ in range(CHECKPOINTS):
            model = build_model(
                args.architecture, n_labels=LABELS, image_size=args.size, dropout=0.0, weights="none"
            )
            models.append(model.eval().to(DEVICE, memory_format=torch.channels_last))  # type: ignore[call-overload]

        means: dict[str, np.ndarray] = {}

        def timed(who: str, workers: int = 0) -> tuple[float, float]:
            """Pictures per second, and the share of the time that is not the models'."""
            watch = Stopwatch()
            hooks = [model.body for model in models] if who == "peer" else models
            handles = []
            for module in hooks:
                handles.append(module.register_forward_pre_hook(lambda *_: watch.start()))
                handles.append(module.register_forward_hook(lambda *_: watch.stop()))
            began = time.perf_counter()
            if who == "ours":
                means[who] = ours(files, models, manifest, folder)
            else:
                means[who] = peer(files, models, manifest, folder, workers)
            seconds = time.perf_counter() - began
            for handle in handles:
                handle.remove()
            return args.images / seconds, 1 - watch.seconds / seconds

        timed("ours")  # warm
        tried = (4, usable_cores() - 1) if ON_GPU else (0, 1, 2)
        best = max(tried, key=lambda workers: timed("peer", workers)[0])
        found: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
        for i in range(args.rounds):
            for who in ("ours", "peer") if i % 2 == 0 else ("peer", "ours"):
                found[who].append(timed(who, best))
        ratio = statistics.median(a[0] / b[0] for a, b in zip(found["ours"], found["peer"], strict=True))
    where = torch.cuda.get_device_name() if ON_GPU else f"{torch.get_num_threads()} threads"
    print(
        f"{CHECKPOINTS} checkpoints of {args.architecture} at {args.size} px, {args.images} pictures, 2 views, {where}"
    )
    print(f"{'':<34}{'pictures/s':>12}{'' if ON_GPU else 'not in the model':>20}")
    for who, what in (("ours", "kernel"), ("peer", f"plain loop, {best} workers")):
        rate, rest = (statistics.median(column) for column in zip(*found[who], strict=True))
        print(f"{what:<34}{rate:>12.1f}" + ("" if ON_GPU else f"{rest:>19.0%}"))
    print(
        f"ratio {ratio:.2f}; probabilities differ by {np.abs(means['ours'] - means['peer']).max():.4f} at most"
    )


if __name__ == "__main__":
    main()
