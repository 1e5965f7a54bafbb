"""Images per second of a trial against a plain torch loop with the same model and its data already in memory.

    uv run python -m benchmarks.train [--size 96] [--batch 32] [--rounds 5] [--architecture tf_efficientnet_lite0]

Ours is the real thing: `imet_ray.training.train_trial.train_trial` on the packed demo pictures with `medium`
augmentation, the loss, optimizer, schedule and NaN check of a sweep's trial. The peer is the shortest loop that
trains the same model with torch alone: a tensor of ready crops, BCE, AdamW, nothing else; it is timed with timm's
model as it is, and with the depthwise gradient that our models have on a CPU. They take turns, an epoch each, in one
process; the median of the rounds counts. On a GPU the peer's crops lie there: it is the model alone.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch

from imet_ray.data.formats import read_catalog
from imet_ray.data.sources import resolve_data
from imet_ray.data.training_data import prepare
from imet_ray.data.views import apply_view
from imet_ray.models.depthwise_cpu import train_small_maps_fast
from imet_ray.models.models import Tagger
from imet_ray.specs import TrialSpec, Variant, default_pack_short_side
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics

OUR_GRADIENT = "our depthwise gradient"
KINDS = ("as timm has it", OUR_GRADIENT)


def plain_epoch(
    model: Tagger,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    targets: torch.Tensor,
    batch: int,
) -> float:
    """Train one epoch as anyone would write it; images per second."""
    device = images.device
    bf16 = device.type == "cuda"
    loss_of = torch.nn.BCEWithLogitsLoss()
    model.train()
    started = time.monotonic()
    for rows in torch.randperm(len(images), device=device).split(batch):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(images[rows])
        loss = loss_of(logits.float(), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return len(images) / (time.monotonic() - started)


def peer_of(
    architecture: str, n_labels: int, kind: str, device: torch.device
) -> tuple[Tagger, torch.optim.Optimizer]:
    """A model of the plain loop, and its optimizer."""
    body = timm.create_model(architecture, num_classes=n_labels)
    if kind == OUR_GRADIENT:
        train_small_maps_fast(body)
    config = body.pretrained_cfg
    peer = Tagger(body, config["mean"], config["std"])
    peer = peer.to(device).to(memory_format=torch.channels_last)
    return peer, torch.optim.AdamW(peer.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--architecture", default="tf_efficientnet_lite0")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of ours")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cache = Cache.default()
    catalog = read_catalog(resolve_data("demo", cache=cache.root))
    variant = Variant(
        name="bench",
        architecture=args.architecture,
        weights="none",
        image_size=args.size,
        epochs=args.rounds + 1,
        batch_size=args.batch,
        optimizer="adamw",
        schedule="onecycle",
        lr=1e-3,
        keep="last",
    )
    with tempfile.TemporaryDirectory() as folder:
        store = RunDirectory(Path(folder))
        data = prepare(catalog, store, cache, n_folds=5, seed=0)
        short_side = default_pack_short_side(args.size)
        pack = data.split.pack(short_side)
        rows = data.rows(0, held_out=False)
        crops = np.stack([apply_view(pack[i], "centre", args.size) for i in rows])
        images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)  # channels last in memory
        targets = torch.from_numpy(data.labels[rows]).float().to(device)
        peers = {kind: peer_of(args.architecture, len(data.label_ids), kind, device) for kind in KINDS}
        ours: list[float] = []
        plain: dict[str, list[float]] = {kind: [] for kind in peers}

        def take_turns(metrics: EpochMetrics) -> None:
            ours.append(metrics["images_per_s"])
            for kind, (peer, optimizer) in peers.items():
                plain[kind].append(plain_epoch(peer, optimizer, images, targets, args.batch))
            turn = "warm-up" if len(ours) == 1 else f"round {len(ours) - 1}"
            rates = "  ".join(f"{rates[-1]:8.1f}" for rates in (ours, *plain.values()))
            print(f"{turn:>8}  {rates}  images/s", flush=True)

        spec = TrialSpec(
            variant=variant,
            hparams={},
            fold=0,
            n_folds=5,
            seed=0,
            data_digest=data.split.digest,
            folds_digest=data.folds_digest,
            pack_short_side=short_side,
        )
        train_trial(
            spec, data, store.trial("bench"), device=device, loader_workers=args.workers, report=take_turns
        )
    how = f"{args.size} px, batch {args.batch}, {device}, {torch.get_num_threads()} threads"
    print(f"\n{args.architecture}, {how}")
    show(ours[1:], {kind: rates[1:] for kind, rates in plain.items()})


def show(ours: list[float], plain: dict[str, list[float]]) -> None:
    """Medians over rounds, images per second, and the median of the rounds' ratios."""
    print(f"{'a trial of ours':<58}{statistics.median(ours):9.1f} images/s")
    for kind, rates in plain.items():
        ratio = statistics.median(x / y for x, y in zip(ours, rates, strict=True))
        what = f"plain torch loop, crops in memory, {kind}"
        print(f"{what:<58}{statistics.median(rates):9.1f} images/s   ratio {ratio:5.3f}")


if __name__ == "__main__":
    main()
