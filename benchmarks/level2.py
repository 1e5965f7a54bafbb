"""What level 2 costs, in time and memory: each stacker beside the blend by weights, on predictions of iMet's shape.

    uv run python -m benchmarks.level2 [--images 10000] [--labels 1103] [--members 7] [--kinds logistic,...] [--dir DIR]

The peer is the whole blend without level 2: build, five methods, on all pictures and nested over 5 folds. A stacker
fits as often, six times, then predicts each picture by the model that never saw its fold. The predictions are
generated (with --dir they stay), and what is learned from them means nothing. Each line has a process of its own, whose
memory is counted as `benchmarks.blend` says; the ratio is of processor time. `--images 109237` is iMet's size.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.blend import METRIC, apart, search, warm
from benchmarks.oof import Oof
from imet_ray.blending.out_of_fold import OutOfFold
from imet_ray.blending.stacking import STACKERS
from imet_ray.cores import usable_cores


def stack(folder: Path, kind: str) -> tuple[float, float, float]:
    """Seconds of the fits, of the predictions, and of the processor for both."""
    oof = Oof.read(folder)
    data = OutOfFold(oof.probs, oof.labels, oof.folds, METRIC)
    began, worked = time.perf_counter(), time.process_time()
    models = STACKERS[kind](data)
    fitted = time.perf_counter()
    data.nested(models)
    return fitted - began, time.perf_counter() - fitted, time.process_time() - worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--labels", type=int, default=1_103)
    parser.add_argument("--members", type=int, default=7)
    parser.add_argument("--kinds", default=",".join(STACKERS), help="of %(default)s")
    parser.add_argument("--dir", type=Path, help="keep the generated predictions here, and use them again")
    args = parser.parse_args()
    if unknown := set(kinds := args.kinds.split(",")) - set(STACKERS):
        parser.error(f"--kinds must be of {', '.join(STACKERS)}, got {', '.join(sorted(unknown))}")
    print(f"{args.images:,} x {args.labels:,} x {args.members}, float16; {usable_cores()} cores", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = warm(args.dir or Path(temporary), args)
        (blend, worked, *_), memory = apart(search, folder)
        print(f"{'':<12}{'fits':>10}{'predicts':>12}{'processor':>12}{'ratio':>8}")
        print(f"{'blend':<12}{blend:>8.1f} s{'':>12}{worked:>10.1f} s{'':>8}{memory}", flush=True)
        for kind in kinds:
            (fits, predicts, own), memory = apart(stack, folder, kind)
            times = f"{fits:>8.1f} s{predicts:>10.1f} s{own:>10.1f} s{own / worked:>8.2f}"
            print(f"{kind:<12}{times}{memory}", flush=True)


if __name__ == "__main__":
    main()
