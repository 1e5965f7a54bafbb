"""What an ensemble loses when its weights are stored in float16, measured out of fold.

Each checkpoint predicts a sample of its own held-out pictures with rounded weights; the blend of these is decoded and
scored beside the blend of what the run predicted with all bits. On a machine without a GPU the rest is computed in
float32, so only the rounding of the weights is seen.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from imet_ray.checkpoint import load_tagger
from imet_ray.decode import decode
from imet_ray.ensemble import Ensemble, EnsembleMember, add_share, as_probabilities, gather_oof
from imet_ray.metrics import f2_per_image
from imet_ray.predict import predict_by_recipe
from imet_ray.results import read_spec
from imet_ray.stages import Run
from imet_ray.store import TrialStore

SAMPLE = 8192  # pictures
HARMLESS = 0.0005  # F2
SURE = 2.0  # standard errors that are added to what was measured


@dataclass(frozen=True)
class HalfLoss:
    """How the score moves."""

    moved: float  # mean of F2 with float16 minus F2 with float32
    noise: float  # its standard error
    pictures: int
    device: str

    @property
    def harmless(self) -> bool:
        """Surely below HARMLESS, up or down."""
        return abs(self.moved) + SURE * self.noise < HARMLESS

    def __str__(self) -> str:
        return (
            f"float16 moves F2 out of fold by {self.moved:+.5f} (standard error {self.noise:.5f}; "
            f"{self.pictures:,} pictures, on {self.device})"
        )


def measure_half(
    run: Run, ensemble: Ensemble, members: Sequence[EnsembleMember], *, seed: int = 0
) -> HalfLoss:
    """Predict the sample again with rounded weights.

    Raises:
        StoreError: if a checkpoint, or what it predicted out of fold, is missing or damaged.
    """
    data = run.data
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.split.ids))[:SAMPLE])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full: np.ndarray | None = None
    half: np.ndarray | None = None
    for member in tqdm(members, "float16, out of fold", unit="member", disable=not sys.stderr.isatty()):
        trials = [run.store.trial(trial) for trial in member.trials]
        stored, _ = gather_oof(trials, data.split.ids, member.variant)
        rounded = _predicted_with_half(trials, run, rows, device)
        if not np.isfinite(rounded).all():
            return HalfLoss(-1.0, 0.0, len(rows), str(device))
        full = add_share(full, member.weight, stored[rows], ensemble.scale)
        half = add_share(half, member.weight, rounded, ensemble.scale)
    assert full is not None
    assert half is not None
    before, after = (
        f2_per_image(decode(as_probabilities(total, ensemble.scale), ensemble.decoder), data.labels[rows])
        for total in (full, half)
    )
    return half_loss(before, after, str(device))


def half_loss(before: np.ndarray, after: np.ndarray, device: str) -> HalfLoss:
    """Of F2 a picture, with all bits and with half of them: (n,) float64 each."""
    moved = after - before
    return HalfLoss(float(moved.mean()), float(moved.std() / np.sqrt(len(moved))), len(moved), device)


def _predicted_with_half(
    trials: Sequence[TrialStore], run: Run, rows: np.ndarray, device: torch.device
) -> np.ndarray:
    """Each picture of `rows` by the checkpoint that never saw it: (n, C) float16."""
    data = run.data
    probs = np.empty((len(rows), len(data.label_ids)), np.float16)
    for trial in trials:
        spec = read_spec(trial)
        own = np.flatnonzero(data.folds[rows] == spec.fold)
        if not len(own):
            continue
        model, _ = load_tagger(trial.best)
        for tensor in model.state_dict().values():
            if tensor.dtype == torch.float32:
                tensor.copy_(tensor.half())
        pack = data.split.pack(spec.pack_short_side)
        probs[own] = predict_by_recipe(model, spec.recipe, pack, rows[own], device=device)
    return probs
