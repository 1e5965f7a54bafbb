"""What an ensemble loses when its weights are stored as float16, measured out of fold.

Each checkpoint predicts some of its own held-out pictures twice on this machine: with its float32 weights, and with
these rounded to float16. Both blends are decoded and scored. It takes as many pictures as the standard error of the
change needs, and at most a quarter of the sweep's time. Only the rounding of the stored weights shows. A GPU
without bfloat16, such as Kaggle's T4, also computes in float16; that does not show here.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from imet_ray.commands.setup import Run
from imet_ray.cores import usable_cores
from imet_ray.data.loader import Pictures
from imet_ray.errors import StoreError
from imet_ray.models.checkpoint import load_tagger
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, combined
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.predict import Inference, predict_batches
from imet_ray.reporting.report_page import write_report
from imet_ray.storage.checked_read import read_arrays, read_json, read_json_lines
from imet_ray.storage.files import write_json
from imet_ray.storage.results import read_spec, standings
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory

SAMPLE = 8192  # pictures at most
FIRST = 32  # pictures of the first round
SHARE = 0.25  # of the sweep's time that it may take
HARMLESS = 0.0005  # score
CONFIDENCE = 2.0  # standard errors that are added to the measured change
TYPICAL = 0.1  # what a picture that moves moves by: none seen among n may still be one in n
GROWTH = 4  # of the pictures, from round to round
AGAIN = 1.2  # more pictures than the standard error so far asks for


@dataclass(frozen=True)
class Float16Loss:
    """How the score changes."""

    moved: float  # mean score with float16 minus that with float32
    noise: float  # its standard error
    pictures: int
    device: str

    @property
    def harmless(self) -> bool:
        """Surely below HARMLESS, up or down."""
        return abs(self.moved) + CONFIDENCE * self.noise < HARMLESS

    @property
    def sure(self) -> bool:
        """More pictures would change nothing: surely harmless, or surely not."""
        return self.harmless or abs(self.moved) - CONFIDENCE * self.noise > HARMLESS

    @property
    def needed(self) -> int:
        """About how many pictures it takes to be sure; few tell little of that, so it grows by GROWTH at most."""
        gap = max(abs(HARMLESS - abs(self.moved)), 1e-12)
        factor = AGAIN * (CONFIDENCE * self.noise / gap) ** 2
        return math.ceil(self.pictures * min(max(factor, AGAIN), GROWTH))

    def __str__(self) -> str:
        return (
            f"float16 moves the score out of fold by {self.moved:+.5f} (standard error {self.noise:.5f}; "
            f"{self.pictures:,} pictures, on {self.device})"
            + ("" if self.sure else f": too few to be sure that it is below {HARMLESS}")
        )


def float16_loss(run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember]) -> Float16Loss:
    """`measure_loss`, once per ensemble and kind of device; the result also goes into the ensemble's report.

    Raises:
        StoreError: if a checkpoint is missing or damaged.
    """
    directory = run.store.ensemble(ensemble.name)
    with contextlib.suppress(StoreError, TypeError, KeyError):  # missing, or damaged
        known = read_json(directory.half)
        if known["device"] == _device().type:
            return Float16Loss(known["moved"], known["noise"], known["pictures"], known["device"])
    loss = measure_loss(run, ensemble, members, seconds=SHARE * sweep_seconds(run.store))
    write_json(
        directory.half, asdict(loss) | {"text": f"Weights stored as float16: {loss}."}, directory.files
    )
    if directory.report.exists():
        found = standings(run.store, [variant.name for variant in run.experiment.space.variants])
        probs = read_arrays(directory.test)["probs"].astype(np.float32) if directory.test.exists() else None
        write_report(directory, ensemble, run.store, run.catalog, found, probs)
    return loss


def measure_loss(
    run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember], *, seconds: float, seed: int = 0
) -> Float16Loss:
    """Predict pictures with float32 and with rounded weights, round by round, until it is sure or time is up.

    Args:
        seconds: that it may take; the first round of few pictures, which says how long others take, is always whole.

    Raises:
        StoreError: if a checkpoint is missing or damaged.
    """
    device = _device()
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # torch knows no quotas
    order = np.random.default_rng(seed).permutation(len(run.data.split.ids))[:SAMPLE]
    before, after = np.empty(0), np.empty(0)
    began, loading, n = time.monotonic(), 0.0, FIRST
    while True:
        more, took = _scores(run, ensemble, members, np.sort(order[len(before) :][:n]), device)
        before, after = (np.concatenate(pair) for pair in zip((before, after), more, strict=True))
        loading, spent = loading + took, time.monotonic() - began
        loss = loss_between(before, after, device.type)
        each = (spent - loading) / len(before)
        n = min(
            loss.needed - len(before),
            int((seconds - spent - took) / max(each, 1e-9)),
            len(order) - len(before),
        )
        if loss.sure or n < 1:
            return loss


def sweep_seconds(store: RunDirectory) -> float:
    """How long the run's trials took: all together, or from the first to the last where several ran at once."""
    rows = [row for trial in store.begun_trials() for row in read_json_lines(trial.metrics)]
    trained = [row["seconds"] + row["evaluate_s"] for row in rows]
    ends = [(row["at"], took) for row, took in zip(rows, trained, strict=True) if "at" in row]
    if len(ends) < len(rows) or not rows:  # of an earlier version
        return float(sum(trained))
    first, last = min(at - took for at, took in ends), max(at for at, _ in ends)
    return float(min(sum(trained), last - first))


def _scores(
    run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember], rows: np.ndarray, device: torch.device
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """The scores of some pictures with float32 and with float16, (n,) float64; and the seconds of loading models."""
    found: list[list[tuple[EnsembleMember, np.ndarray]]] = [[], []]
    loading = 0.0
    passes = 2 * len(rows) * len(members)
    with tqdm(total=passes, desc="float16, out of fold", unit="picture", disable=None, leave=False) as bar:
        for member in members:
            trials = [run.store.trial(trial) for trial in member.trials]
            predicted, took = _predicted(trials, run, rows, device, bar)
            loading += took
            for pairs, probs in zip(found, predicted, strict=True):
                pairs.append((member, probs))
    metric, labels = metric_named(run.experiment.space.metric), run.data.labels[rows]
    scores = []
    # NaN of float16 shows, whatever float32 gives
    for pairs, of_lost in zip(found, (0.0, -1.0), strict=True):
        lost = np.logical_or.reduce([~np.isfinite(probs).all(axis=1) for _, probs in pairs])
        for _, probs in pairs:
            probs[lost] = 0.5
        decoded = ensemble.decoder.decode(combined(ensemble, pairs))
        scores.append(np.where(lost, of_lost, metric.per_picture(decoded, labels)))
    return (scores[0], scores[1]), loading


def loss_between(before: np.ndarray, after: np.ndarray, device: str) -> Float16Loss:
    """From the scores per picture with float32 and with float16: (n,) float64 each."""
    moved, n = after - before, len(after)
    noise = max(float(moved.std() / np.sqrt(n)), TYPICAL / n)
    return Float16Loss(float(moved.mean()), noise, n, device)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _predicted(
    trials: Sequence[TrialDirectory], run: Run, rows: np.ndarray, device: torch.device, bar: "tqdm[Any]"
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Each picture of `rows` by the checkpoint that never saw it, with float32 and with float16 weights.

    Returns:
        Two arrays, (n, C) float16; the second has NaN if float16 cannot hold a weight. And the seconds of loading.
    """
    data, loading = run.data, 0.0
    exact, rounded = (np.empty((len(rows), len(data.label_ids)), np.float16) for _ in range(2))
    for trial in trials:
        spec = read_spec(trial)
        own = np.flatnonzero(data.folds[rows] == spec.fold)
        if not len(own):
            continue
        began = time.monotonic()
        trial.fetch(trial.best)
        model, _ = load_tagger(trial.best, device)
        pack = data.split.pack(spec.pack_short_side)
        loading += time.monotonic() - began
        exact[own] = _predict(model, pack, rows[own], Inference.of(spec.recipe, device), bar)
        weights = [tensor for tensor in model.state_dict().values() if tensor.dtype == torch.float32]
        for tensor in weights:
            tensor.copy_(tensor.half())
        rounded[own] = _predict(model, pack, rows[own], Inference.of(spec.recipe, device), bar)
        if not all(tensor.isfinite().all() for tensor in weights):
            rounded[own] = np.nan  # what such a variance predicts is finite, and wrong
    return (exact, rounded), loading


def _predict(
    model: torch.nn.Module, pictures: Pictures, rows: np.ndarray, how: Inference, bar: "tqdm[Any]"
) -> np.ndarray:
    """As `predict_rows`, with its progress: (n, C) float16."""
    found = []
    for probs in predict_batches(model, pictures, rows, how):
        bar.update(len(probs))
        found.append(probs)
    return np.concatenate(found)
