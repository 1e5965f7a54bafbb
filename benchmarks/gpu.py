"""Images per second and memory of a model on a GPU, in each precision and memory layout.

    uv run python -m benchmarks.gpu [--architecture seresnext50_32x4d] [--size 288] [--batch 32] [--search]

Training is a forward pass, BCE, a backward pass and Adam's step; prediction is a forward pass and the sigmoid; both
from uint8 pictures that lie on the GPU. The peer is what torch does when nothing is said: fp32, channels first (its
convolutions are in TF32 then, where the card can). What a trial does is bf16, channels last; a long one lets cuDNN
search for its fastest kernels, in the first step: `--search`, a run of its own, for what a process has found it keeps.
They take turns, and the median of the rounds counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from imet_ray.models.models import Tagger, build_model

LABELS = 1103
STEPS = 20  # a round
WAYS = {
    "fp32": (None, torch.contiguous_format),
    "fp32, channels last": (None, torch.channels_last),
    "bf16": (torch.bfloat16, torch.contiguous_format),
    "bf16, channels last": (torch.bfloat16, torch.channels_last),
    "fp16, channels last": (torch.float16, torch.channels_last),  # of a GPU without bf16; prediction only
}


def training(model: Tagger, images: torch.Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """One step."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    targets = (torch.rand(len(images), LABELS, device="cuda") < 0.003).float()
    loss_of = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        loss = loss_of(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def prediction(model: Tagger, images: torch.Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """One step."""
    model.eval()

    @torch.inference_mode()
    def step() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            model(images).float().sigmoid()

    return step


def seconds(step: Callable[[], None], times: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="seresnext50_32x4d", help="of timm")
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--search", action="store_true", help="let cuDNN search for its fastest kernels")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU: run this on a machine that has one")
    torch.backends.cudnn.benchmark = args.search
    print(
        f"{args.architecture}, {args.size} px, batch {args.batch}, {torch.cuda.get_device_name()}, "
        f"torch {torch.__version__}\n{'':<32}{'images/s':>10}{'ratio':>8}{'GB':>7}{'first step, s':>15}"
    )
    pictures = torch.randint(0, 255, (args.batch, 3, args.size, args.size), dtype=torch.uint8, device="cuda")
    for what, make in (("training", training), ("prediction", prediction)):
        steps, memory, rates, first = {}, {}, {}, {}
        for way, (dtype, layout) in WAYS.items():
            if make is training and dtype == torch.float16:
                continue
            model = build_model(
                args.architecture, n_labels=LABELS, image_size=args.size, dropout=0.0, weights="none"
            ).to("cuda", memory_format=layout)  # type: ignore[call-overload]
            images = pictures.contiguous(memory_format=layout)
            steps[way], rates[way] = make(model, images, dtype), []
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            first[way] = seconds(steps[way], 1)
            seconds(steps[way], 2)  # warm
            memory[way] = (torch.cuda.max_memory_allocated() - before) / 1e9
        for _ in range(args.rounds):
            for way, step in steps.items():
                rates[way].append(STEPS * args.batch / seconds(step, STEPS))
        base = statistics.median(rates["fp32"])
        for way, found in rates.items():
            middle = statistics.median(found)
            print(
                f"{what + ', ' + way:<32}{middle:>10.0f}{middle / base:>8.2f}{memory[way]:>7.1f}{first[way]:>15.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
