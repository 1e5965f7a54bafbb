"""What an ensemble loses when its weights are stored as float16, measured out of fold.

Each checkpoint predicts a sample of its own held-out pictures twice on this machine: with its float32 weights, and with
these rounded to float16. Both blends are decoded and scored. Only the rounding of the stored weights shows. A GPU
without bfloat16, such as Kaggle's T4, also computes in float16; that does not show here.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from tqdm import tqdm

from imet_ray.commands.setup import Run
from imet_ray.errors import StoreError
from imet_ray.models.checkpoint import load_tagger
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.pooling import add_share, as_probability
from imet_ray.prediction.predict import Inference, predict_rows
from imet_ray.reporting.report_page import write_report
from imet_ray.storage.checked_read import read_arrays, read_json
from imet_ray.storage.files import write_json
from imet_ray.storage.results import read_spec, standings
from imet_ray.storage.run_directory import TrialDirectory

SAMPLE = 8192  # pictures
HARMLESS = 0.0005  # score
CONFIDENCE = 2.0  # standard errors that are added to the measured change


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

    def __str__(self) -> str:
        return (
            f"float16 moves the score out of fold by {self.moved:+.5f} (standard error {self.noise:.5f}; "
            f"{self.pictures:,} pictures, on {self.device})"
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
    loss = measure_loss(run, ensemble, members)
    write_json(
        directory.half, asdict(loss) | {"text": f"Weights stored as float16: {loss}."}, directory.files
    )
    if directory.report.exists():
        found = standings(run.store, [variant.name for variant in run.experiment.space.variants])
        probs = read_arrays(directory.test)["probs"].astype(np.float32) if directory.test.exists() else None
        write_report(directory, ensemble, run.store, run.catalog, found, probs)
    return loss


def measure_loss(
    run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember], *, seed: int = 0
) -> Float16Loss:
    """Predict a sample with float32 and with rounded weights.

    Raises:
        StoreError: if a checkpoint is missing or damaged.
    """
    data, device = run.data, _device()
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.split.ids))[:SAMPLE])
    totals: list[np.ndarray | None] = [None, None]  # blended with float32, and with float16 weights
    for member in tqdm(members, "float16, out of fold", unit="member", disable=not sys.stderr.isatty()):
        trials = [run.store.trial(trial) for trial in member.trials]
        predicted = _predicted(trials, run, rows, device)
        if not np.isfinite(predicted[1]).all():
            return Float16Loss(-1.0, 0.0, len(rows), device.type)
        totals = [
            add_share(total, member.weight, probs, ensemble.scale)
            for total, probs in zip(totals, predicted, strict=True)
        ]
    metric = metric_named(run.experiment.space.metric)
    scores = []
    for total in totals:
        assert total is not None
        decoded = ensemble.decoder.decode(as_probability(total, ensemble.scale, out=total))
        scores.append(metric.per_picture(decoded, data.labels[rows]))
    before, after = scores
    return loss_between(before, after, device.type)


def loss_between(before: np.ndarray, after: np.ndarray, device: str) -> Float16Loss:
    """From the scores per picture with float32 and with float16: (n,) float64 each."""
    moved = after - before
    return Float16Loss(float(moved.mean()), float(moved.std() / np.sqrt(len(moved))), len(moved), device)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _predicted(
    trials: Sequence[TrialDirectory], run: Run, rows: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Each picture of `rows` by the checkpoint that never saw it, with float32 and with float16 weights.

    Returns:
        Two arrays, (n, C) float16; the second has NaN if float16 cannot hold a weight.
    """
    data = run.data
    exact, rounded = (np.empty((len(rows), len(data.label_ids)), np.float16) for _ in range(2))
    for trial in trials:
        spec = read_spec(trial)
        own = np.flatnonzero(data.folds[rows] == spec.fold)
        if not len(own):
            continue
        trial.fetch(trial.best)
        model, _ = load_tagger(trial.best, device)
        pack = data.split.pack(spec.pack_short_side)
        exact[own] = predict_rows(model, pack, rows[own], Inference.of(spec.recipe, device))
        weights = [tensor for tensor in model.state_dict().values() if tensor.dtype == torch.float32]
        for tensor in weights:
            tensor.copy_(tensor.half())
        rounded[own] = predict_rows(model, pack, rows[own], Inference.of(spec.recipe, device))
        if not all(tensor.isfinite().all() for tensor in weights):
            rounded[own] = np.nan  # what such a variance predicts is finite, and wrong
    return exact, rounded
