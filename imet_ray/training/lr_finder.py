"""The learning-rate finder (Smith 2017): train while the rate rises, and see where the loss falls and where it breaks.

The same spec gives the same curve: it begins as the trial would, and no trial goes on from it.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imet_ray.data.training_data import TrainingData
from imet_ray.errors import TrialError
from imet_ray.models.models import train_mode
from imet_ray.specs import TrialSpec
from imet_ray.storage.files import write_json
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.distributed import Hardware
from imet_ray.training.trainer import MAX_SPLITS, Trainer, batch_splits

LOWEST, HIGHEST = 1e-7, 1.0
UPDATES = 100  # from the one to the other
SMOOTHING = 0.9  # of the running mean of the loss
DIVERGED = 1.5  # times the least smoothed loss: no higher rate is tried
SETTLED = 10  # updates until the running mean says something
MARGIN = 10  # the suggestion is so many times below the rate of the least loss


@dataclass(frozen=True)
class RateCurve:
    """The loss at rising rates; all arrays are (n,) float64, n the updates until the loss diverged."""

    rates: np.ndarray
    losses: np.ndarray  # of each update's batches
    smoothed: np.ndarray

    @property
    def suggestion(self) -> float:
        """A tenth of the rate where the smoothed loss is least, to two digits.

        Raises:
            TrialError: if the loss fell at no rate.
        """
        lowest = int(np.argmin(self.smoothed))
        if len(self.smoothed) <= SETTLED or lowest < SETTLED:
            raise TrialError(f"the loss fell at no rate from {self.rates[0]:.1g} to {self.rates[-1]:.1g}")
        return float(f"{self.rates[lowest] / MARGIN:.1e}")


def rising_rates() -> np.ndarray:
    """The rates that are tried, evenly spaced in their logarithm: (UPDATES,) float64."""
    return np.geomspace(LOWEST, HIGHEST, UPDATES)


def smooth(losses: list[float]) -> np.ndarray:
    """The running mean, of which the beginning is as good as the rest (as Adam's): (n,) float64."""
    mean, found = 0.0, []
    for i, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**i))
    return np.array(found)


def find_rate(
    spec: TrialSpec,
    data: TrainingData,
    *,
    device: torch.device,
    loader_workers: int = 0,
    on_update: Callable[[], object] = lambda: None,
) -> RateCurve:
    """Train the trial's model from its beginning, at rising rates.

    Args:
        on_update: called after each of at most `UPDATES` updates.

    Raises:
        TrialError: if no batch fits the GPU's memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = RunDirectory(Path(folder)).trial(spec.trial_id)
        while True:
            ramp = _Ramp(spec, data, trial, "", Hardware(device, loader_workers))
            losses: list[float] = []
            try:
                for loss in ramp.losses():
                    losses.append(loss)
                    smoothed = smooth(losses)
                    on_update()
                    if not math.isfinite(loss) or smoothed[-1] > DIVERGED * smoothed.min():
                        break
            except torch.cuda.OutOfMemoryError:
                splits = batch_splits(trial)
                if splits == MAX_SPLITS:
                    raise TrialError(f"out of GPU memory, even with each batch in {splits} parts") from None
                write_json(trial.splits, 2 * splits)
                continue
            kept = [loss for loss in losses if math.isfinite(loss)]
            return RateCurve(rising_rates()[: len(kept)], np.array(kept), smooth(kept))


class _Ramp(Trainer):
    """A trial that only begins."""

    def losses(self) -> Iterator[float]:
        """The loss of each update, at one rate after another."""
        recipe, updates = self.recipe, iter(self._updates())
        torch.manual_seed(self.spec.seed)
        mixing = np.random.default_rng((self.spec.seed, 0, 1, 0))
        train_mode(self.model, head_only=False, freeze=recipe.freeze)
        for rate in rising_rates():
            batches = next(updates)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            loss = 0.0
            for images, targets in batches:
                images, targets = images.to(self.device), targets.to(self.device)
                images, targets = self._mixed(images, targets, mixing)
                loss += float(self._backward(images, targets, 1 / len(batches))) / len(batches)
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            yield loss

    def _updates(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """The batches of each update, epoch after epoch."""
        epoch = 0
        while True:
            self.dataset.set_epoch(epoch)
            waiting = []
            for batch in self._batches(self.hardware.loader_workers):
                waiting.append(batch)
                if len(waiting) == self.recipe.accumulate:
                    yield waiting
                    waiting = []
            if waiting:
                yield waiting
            epoch += 1
