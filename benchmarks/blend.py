"""The blend at the size of iMet 2019: its exact objective against the dense one, and the whole search.

    uv run python -m benchmarks.blend [--images 109237] [--labels 1103] [--members 7] [--rounds 100]
                                      [--parts dense,search,expected,lines,fifty] [--dir DIR]

dense: one evaluation. The peer is the objective as it is written down, and as a solution of 2019 had it: labels in a
float64 matrix, each member's weighted p - t scattered fold by fold into another, added up, compared with 0, F2 by
torch. Under uniform weights a few cells are ties that only rounding decides, so the peer adds up in float64, as that
solution did, and again in float32, as ours does: then the scores must be equal to 1e-6 (asserted). Ours evaluates
`--rounds` times, its median counts.
search: build and all methods but `smooth` under the threshold, on all pictures and nested over 5 folds.
expected: one fit under expected F2 (weights and temperature, on 16,384 pictures), then the F2 of all pictures under
it, under uniform weights, and under the weights that `nelder-mead` and `line` fit under the threshold.
lines: `line` against `nelder-mead` on 20 small problems. fifty: 50 members at 20,000 x 300.

All of it takes 8 minutes on 2 cores, 8 GB for the peer, and 2.4 GB of disk: the predictions are generated into a
temporary folder, or into DIR, where they stay and are used again. Each measurement but `lines` has a process of its
own. Its memory is counted twice: "own" is the peak of its anonymous memory, looked at each 10 ms; "with files" is
its peak resident size, mapped pages of the predictions among it. Linux only.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.oof import Oof, generate
from imet_ray.blending.cross_fit import score_pictures, silent
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.fit_jobs import THRESHOLD, Job, Task, solve, solve_here
from imet_ray.blending.members import Member
from imet_ray.blending.methods import fit, uniform
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.blending.threshold_range import ROOM, first_thresholds
from imet_ray.cores import usable_cores
from imet_ray.prediction.metrics import METRICS

METRIC = "f2"
F2 = METRICS[METRIC]

SAMPLE = 4096  # pictures that members' thresholds are taken from
RANDOM = 2  # random weights, beside the uniform ones
DIRECT, EXPECTED = "nelder-mead", "expected-f2"
SAME = 1e-6
METHODS = ("uniform", "greedy", "nelder-mead", "powell", "line")
EXPECTED_SAMPLE = 16_384  # pictures; 4,096 in the blend, which fits six times
PROBLEMS, SMALL = 20, (1_500, 30, 6)
FIFTY = (20_000, 300, 50)
HEADER = f"{'':<32}{'build':>10}{'evaluation':>14}"


def thresholds_of(oof: Oof) -> list[float]:
    return [F2.best_threshold(np.asarray(p[:SAMPLE]), oof.labels[:SAMPLE])[0] for p in oof.probs]


def range_of(thresholds: Sequence[float]) -> float:
    """How far the search lets the common threshold go."""
    return ROOM * float(np.mean(thresholds))


def cells_of(oof: Oof, thresholds: Sequence[float]) -> DisputedCells:
    return DisputedCells.build(
        oof.probs, thresholds, oof.labels, half_range=range_of(thresholds), metric=METRIC
    )


def warm(home: Path, args: argparse.Namespace) -> Path:
    """The folder of the predictions, its files in the page cache."""
    folder = generate(home, args.images, args.labels, args.members, seed=0)
    for file in folder.iterdir():
        file.read_bytes()
    return folder


def weights_for(members: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [uniform(members), *(rng.dirichlet(np.full(members, 2.0)) for _ in range(RANDOM))]


def apart(work: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """Do the work in a process of its own: the result, and its peak memory in words."""
    context = get_context("spawn")  # a fork would begin with this process's memory
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, work, args))
    process.start()
    sender.close()
    own = 0.0
    while not receiver.poll(0.01):
        own = max(own, memory(process.pid, "RssAnon"))
    try:
        result, peak = receiver.recv()
    except EOFError:
        raise SystemExit(f"the process of {work.__name__} died: is there memory for it?") from None
    process.join()
    return result, f"{own:8.2f} GB own{peak:8.2f} GB with files"


def _work(sender: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send((work(*args), memory(os.getpid(), "VmHWM")))


def memory(pid: int | None, key: str) -> float:
    """A line of the kernel's account of a process, in GB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(key + ":")), 0.0)


def dense(folder: Path, thresholds: Sequence[float], sums: str) -> tuple[float, list[float]]:
    """Seconds an evaluation of the plain objective, and its scores; `sums` is the dtype that it adds up in."""
    import torch  # only here: it would count as memory of ours

    oof = Oof.read(folder)
    labels = np.array(oof.labels, dtype=np.float64)
    folds = [oof.folds == fold for fold in np.unique(oof.folds)]
    margins = [  # as that solution's files: float32, one per member and fold, thresholds subtracted
        [p[rows].astype(np.float32) - np.float32(t) for rows in folds]
        for p, t in zip(oof.probs, thresholds, strict=True)
    ]

    def objective(weights: np.ndarray) -> float:
        total = np.zeros(labels.shape, dtype=sums)
        for member, weight in zip(margins, weights, strict=True):
            scattered = np.zeros(labels.shape, dtype=sums)
            for rows, margin in zip(folds, member, strict=True):
                scattered[rows] = np.float32(weight) * margin
            total += scattered
        predicted, true = torch.from_numpy(total) > 0, torch.from_numpy(labels) > 0
        hits, of = (predicted & true).sum(1), 4 * true.sum(1) + predicted.sum(1)
        f2 = torch.where(
            of > 0, 5 * hits.double() / of, 1.0
        )  # nothing said of a picture without labels is right
        return float(f2.mean())

    return _timed(objective, weights_for(len(margins)), 1)


def ours(
    folder: Path, thresholds: Sequence[float], half_range: float, rounds: int
) -> tuple[float, float, float, list[float]]:
    """Seconds of the build and of an evaluation, share of the cells in dispute, scores."""
    oof = Oof.read(folder)
    started = time.perf_counter()
    cells = DisputedCells.build(oof.probs, thresholds, oof.labels, half_range=half_range, metric=METRIC)
    build = time.perf_counter() - started
    seconds, scores = _timed(cells.score, weights_for(cells.n_members), rounds)
    return build, seconds, len(cells.image) / oof.labels.size, scores


def _timed(
    score: Callable[[np.ndarray], float], weights: Sequence[np.ndarray], rounds: int
) -> tuple[float, list[float]]:
    """Median seconds, and the score under each of the weights."""
    times, scores = [], []
    for i in range(max(rounds, len(weights))):
        started = time.perf_counter()
        scores.append(score(weights[i % len(weights)]))
        times.append(time.perf_counter() - started)
    return statistics.median(times), scores[: len(weights)]


def part_dense(home: Path, args: argparse.Namespace) -> None:
    folder = warm(home, args)
    thresholds = thresholds_of(Oof.read(folder))
    print(HEADER, flush=True)
    seconds, scores = {}, {}
    for sums in ("float64", "float32"):
        (seconds[sums], scores[sums]), columns = apart(dense, folder, thresholds, sums)
        print(f"{f'dense, sums in {sums}':<32}{'':>10}{seconds[sums]:>12.2f} s{columns}", flush=True)
    for name, half_range in (("ours", 0.0), ("ours, free threshold", range_of(thresholds))):
        (build, seconds[name], share, scores[name]), columns = apart(
            ours, folder, thresholds, half_range, args.rounds
        )
        print(
            f"{name:<32}{build:>8.1f} s{1e3 * seconds[name]:>11.2f} ms{columns}   {share:.2%} of the cells",
            flush=True,
        )
    for name in ("ours", "ours, free threshold"):
        ratios = " and ".join(f"{seconds[sums] / seconds[name]:,.0f}" for sums in ("float64", "float32"))
        print(f"{name}: {ratios} times as fast")
    print(f"F2 under uniform and {RANDOM} random weights (how far ours is from it)")
    away = {
        sums: np.abs(np.array([scores["ours"], scores["ours, free threshold"]]) - scores[sums]).max(axis=0)
        for sums in ("float64", "float32")
    }
    for sums, far in away.items():
        print(
            f"  {sums}  " + "   ".join(f"{s:.7f} ({a:.0e})" for s, a in zip(scores[sums], far, strict=True))
        )
    assert away["float32"].max() < SAME, "ours is not the dense objective"


def search(folder: Path) -> tuple[float, float, str, tuple[float, ...]]:
    """Seconds of the whole search, on the clock and of all cores, its report, greedy's curve."""
    oof = Oof.read(folder)
    members = [Member(f"m{i}", p) for i, p in enumerate(oof.probs)]
    started, worked = time.perf_counter(), time.process_time()
    options = BlendOptions(methods=METHODS, decoders=(THRESHOLD,))
    problem = BlendProblem(members, oof.labels, oof.folds, METRIC)
    report = evaluate(problem, options, runner=solve_here, progress=silent)
    seconds, of_cores = time.perf_counter() - started, time.process_time() - worked
    return seconds, of_cores, report.text(), next(row.curve for row in report.rows if row.method == "greedy")


def part_search(home: Path, args: argparse.Namespace) -> None:
    (seconds, of_cores, text, curve), columns = apart(search, warm(home, args))
    print(f"build, {', '.join(METHODS)}, on all pictures and nested over 5 folds")
    print(f"{seconds:.1f} s, {of_cores:.1f} s of processor time; {columns}\n\n{text}\n")
    print("greedy, score after each choice:", " ".join(f"{score:.5f}" for score in curve))


def expected(folder: Path) -> list[tuple[str, float, float, str]]:
    """Weights from where, seconds of their fit, F2 of all pictures under expected F2, and the weights."""
    oof = Oof.read(folder)
    everything = np.arange(len(oof.labels))
    blend = BlendProblem([Member(f"m{i}", p) for i, p in enumerate(oof.probs)], oof.labels, oof.folds, METRIC)
    thresholds = first_thresholds(blend.sample, blend.mean_labels)
    cells = cells_of(oof, thresholds)
    problem = FitProblem(cells, oof.folds, blend.groups, blend.sample_of(EXPECTED_SAMPLE), seed=0)
    found = []
    for method, what in (
        ("line", "threshold, line"),
        ("uniform", "none"),
        (DIRECT, "threshold, nelder-mead"),
    ):
        start = solve(problem, Task(Job(method, THRESHOLD)))
        ways = [("uniform", what), (DIRECT, "expected F2, nelder-mead")]
        for way, named in ways[: 1 + (method == DIRECT)]:
            started = time.perf_counter()
            fitted = solve(problem, Task(Job(way, EXPECTED), start))
            seconds = time.perf_counter() - started
            scores = score_pictures(fitted, everything, blend, problem)
            found.append((named, seconds, float(scores.mean()), " ".join(f"{w:.3f}" for w in fitted.weights)))
    return found


def part_expected(home: Path, args: argparse.Namespace) -> None:
    rows, columns = apart(expected, warm(home, args))
    print(f"expected F2 of all pictures, own; {columns}")
    for what, seconds, score, weights in rows:
        print(f"weights from {what:<32}{seconds:>6.1f} s   F2 {score:.5f}   {weights}")


def part_lines(home: Path, args: argparse.Namespace) -> None:
    scores, times = np.empty((2, PROBLEMS)), np.empty((2, PROBLEMS))
    for seed in range(PROBLEMS):
        oof = Oof.read(generate(home, *SMALL, seed=seed))
        thresholds = thresholds_of(oof)
        cells = cells_of(oof, thresholds)
        for i, method in enumerate(("line", "nelder-mead")):
            started = time.perf_counter()
            scores[i, seed] = fit(cells, method, seed=seed).score
            times[i, seed] = time.perf_counter() - started
    gains = scores[0] - scores[1]
    below = np.flatnonzero(gains < 0).tolist()
    print(f"line against nelder-mead, {PROBLEMS} problems of {SMALL[0]:,} x {SMALL[1]} x {SMALL[2]}")
    seeds = f", seeds {below}" if below else ""
    print(f"above in {(gains > 0).sum()}, below in {len(below)}{seeds}")
    print(f"gain {gains.mean():+.5f} on average, {gains.min():+.5f}..{gains.max():+.5f}")
    print("seconds a search: {:.2f} and {:.2f}".format(*np.median(times, axis=1)))


def fifty(folder: Path) -> list[tuple[str, float, str]]:
    """Steps with their seconds, and what came of them."""
    oof = Oof.read(folder)
    thresholds = thresholds_of(oof)
    started = time.perf_counter()
    cells = cells_of(oof, thresholds)
    steps = [
        ("build", time.perf_counter() - started, f"{len(cells.image) / oof.labels.size:.2%} of the cells")
    ]
    for method in ("uniform", "line", "greedy"):
        started = time.perf_counter()
        found = fit(cells, method, seed=0)
        seconds = time.perf_counter() - started
        used = np.count_nonzero(found.weights)
        steps.append(
            (method, seconds, f"F2 {found.score:.5f}, {used} members, {found.evaluations} evaluations")
        )
    return steps


def part_fifty(home: Path, args: argparse.Namespace) -> None:
    steps, columns = apart(fifty, generate(home, *FIFTY, seed=0))
    print(f"{FIFTY[0]:,} x {FIFTY[1]} x {FIFTY[2]}, free threshold; {columns}")
    for name, seconds, what in steps:
        print(f"{name:<32}{seconds:>8.1f} s   {what}")


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "dense": part_dense,
    "search": part_search,
    "expected": part_expected,
    "lines": part_lines,
    "fifty": part_fifty,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=109_237)
    parser.add_argument("--labels", type=int, default=1_103)
    parser.add_argument("--members", type=int, default=7)
    parser.add_argument(
        "--rounds", type=int, default=100, help="evaluations of ours that the median is taken of"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--dir", type=Path, help="keep the generated predictions here, and use them again")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    print(f"{args.images:,} x {args.labels:,} x {args.members}, float16; {usable_cores()} cores", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for part in parts:
            busy = os.getloadavg()[0]
            print(f"\n== {part} == {busy:.1f} processes wanted to run in the minute before\n", flush=True)
            PARTS[part](args.dir or Path(temporary), args)


if __name__ == "__main__":
    main()
