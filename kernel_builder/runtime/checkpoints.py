"""Checkpoints as models that predict, and their device. The weights of the next are read while one predicts."""

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch

from imet_ray.errors import StoreError, first_line
from imet_ray.models.models import Tagger, build_model
from imet_ray.prediction.predict import Inference, half_of, predict_batches
from kernel_builder.runtime.image_cache import ImageCache
from kernel_builder.runtime.locate_weights import FoundWeights, read_weights
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights

if TYPE_CHECKING:
    from imet_ray.storage.encryption import Secret

logger = logging.getLogger(__name__)


class Checkpoints:
    """Opens them one after the other, in the manifest's order."""

    def __init__(
        self,
        manifest: Manifest,
        found: Mapping[str, FoundWeights],
        secret: "Secret | None",
        images: ImageCache,
        *,
        device: torch.device,
        batch_size: int | None,
        workers: int,
    ) -> None:
        """
        Args:
            found: by trial.
            batch_size: pictures; None: as `Inference.of` has it.
            workers: loader processes.
        """
        self.manifest, self.found, self.secret, self.images = manifest, found, secret, images
        self.device, self.batch_size, self.workers = device, batch_size, workers
        self._order = [weights.trial for member in manifest.members for weights in member.weights]
        self._read: dict[str, Future[bytes]] = {}  # begun, and not yet used
        self._how: dict[str, Inference] = {}  # by member: a batch that was too large once is not tried again

    def open(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        """Set up a checkpoint and its pictures. Its batches are (b, C) float16, in order.

        Raises:
            StoreError: naming the file, if it is not what the kernel was built with or does not fit the model.
        """
        self._start_reading(weights.trial)
        members = self.manifest.members
        needed = {other.pack_short_side for other in members[members.index(member) :]}
        pictures = self.images.get(member.pack_short_side, keep=needed)
        model = self._model(member, weights).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = np.arange(len(self.images.test.ids))
        return predict_batches(model, pictures, rows, self._inference(member))

    def _model(self, member: KernelMember, weights: Weights) -> Tagger:
        read = self._read.pop(weights.trial)
        model = build_model(
            member.recipe.architecture,
            n_labels=len(self.manifest.label_ids),
            image_size=member.recipe.image_size,
            dropout=member.recipe.dropout,
            weights="none",
        )
        plain = read.result()
        try:
            model.load_state_dict(safetensors.torch.load(plain))
        except Exception as error:  # each fault of such a file has its own exception
            raise StoreError(f"{weights.plain.name} does not fit its architecture: {error}") from error
        self._start_reading(*self._order[self._order.index(weights.trial) + 1 :][:1])
        return model

    def _start_reading(self, *trials: str) -> None:
        """Begin to read the weights of these trials."""
        for trial in trials:
            if trial not in self._read:
                future: Future[bytes] = Future()
                try:
                    threading.Thread(target=self._read_into, args=(trial, future), daemon=True).start()
                except RuntimeError:  # no more threads
                    self._read_into(trial, future)
                self._read[trial] = future

    def _read_into(self, trial: str, future: "Future[bytes]") -> None:
        """Runs in a daemon thread: it may hang, and the process must not wait for it at its end."""
        try:
            future.set_result(read_weights(self.found[trial], self.secret))
        except BaseException as error:
            future.set_exception(error)

    def _inference(self, member: KernelMember) -> Inference:
        """How a member predicts. Loaders that died once are not started again for other members."""
        if member.name not in self._how:
            workers = min((how.workers for how in self._how.values()), default=self.workers)
            self._how[member.name] = how = Inference.of(member.recipe, self.device, workers=workers)
            how.batch_size = self.batch_size or how.batch_size
        return self._how[member.name]


def usable_device() -> torch.device:
    """The GPU if a small convolution works on it, in float32 and in the half precision that models use there.

    A build of torch has no code for GPUs that are much older or newer than itself; the first operation fails there.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda")
    try:
        convolution = torch.nn.Conv2d(3, 8, 3).to(device)
        for dtype in (None, half_of(device)):
            with torch.inference_mode(), torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                convolution(torch.ones(1, 3, 8, 8, device=device)).float().sum().item()
    except Exception as error:  # of any kind: the CPU is there
        logger.warning("the GPU cannot be used (%s): predicting on the CPU", first_line(error))
        return torch.device("cpu")
    return device
