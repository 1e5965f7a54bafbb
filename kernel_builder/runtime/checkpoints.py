"""Checkpoints as models that predict: their weights are read while the one before is on the device."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch

from imet_ray.errors import StoreError
from imet_ray.models.models import Tagger, build_model
from imet_ray.prediction.predict import EVAL_BATCH, Pace, compute_dtype, predicted_batches
from kernel_builder.runtime.image_cache import PictureShelf
from kernel_builder.runtime.locate_weights import FoundWeights, read_weights
from kernel_builder.runtime.manifest import KernelMember, Manifest, Weights

if TYPE_CHECKING:
    from imet_ray.storage.encryption import Secret


class Checkpoints:
    """Opens one after the other, in the manifest's order."""

    def __init__(
        self,
        manifest: Manifest,
        found: Mapping[str, FoundWeights],
        secret: "Secret | None",
        shelf: PictureShelf,
        *,
        device: torch.device,
        batch_size: int | None,
        workers: int,
    ) -> None:
        """
        Args:
            found: by trial.
            batch_size: pictures; None: as many as make `EVAL_BATCH` views.
            workers: loader processes.
        """
        self.manifest, self.found, self.secret, self.shelf = manifest, found, secret, shelf
        self.device, self.batch_size, self.workers = device, batch_size, workers
        self._order = [weights.trial for member in manifest.members for weights in member.weights]
        self._read: dict[str, Future[bytes]] = {}  # being read, or read and not yet used
        self._paces: dict[str, Pace] = {}  # of members: what was too large once is not tried again

    def open(self, member: KernelMember, weights: Weights) -> Iterator[np.ndarray]:
        """Set a checkpoint up, its pictures too; its batches are (b, C) float16, in order.

        Raises:
            StoreError: naming the file, if it is not what the kernel was built with or does not fit the model.
        """
        self._ahead(weights.trial)
        sizes = [other.pack_short_side for other in self.manifest.members]
        begun = self.manifest.members.index(member)
        pictures = self.shelf.of(member.pack_short_side, keep=sizes[begun:])
        model = self._model(member, weights)
        return predicted_batches(
            model.to(self.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            pictures,
            np.arange(len(self.shelf.pictures.ids)),
            views=member.recipe.views,
            image_size=member.recipe.image_size,
            pace=self._pace(member),
            device=self.device,
            autocast=compute_dtype(self.device, member.recipe.precision),
        )

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
        except Exception as error:  # each fault of such a file has an exception of its own
            raise StoreError(f"{weights.plain.name} does not fit its architecture: {error}") from error
        self._ahead(*self._order[self._order.index(weights.trial) + 1 :][:1])
        return model

    def _ahead(self, *trials: str) -> None:
        """Begin to read the weights of these."""
        for trial in trials:
            if trial not in self._read:
                future: Future[bytes] = Future()
                try:
                    threading.Thread(target=self._read_into, args=(trial, future), daemon=True).start()
                except RuntimeError:  # no more threads
                    self._read_into(trial, future)
                self._read[trial] = future

    def _read_into(self, trial: str, future: "Future[bytes]") -> None:
        """In a thread that no end of the process waits for, for it may hang."""
        try:
            future.set_result(read_weights(self.found[trial], self.secret))
        except BaseException as error:
            future.set_exception(error)

    def _pace(self, member: KernelMember) -> Pace:
        """How its pictures go through the model; loaders that died once are not started again for others."""
        if member.name not in self._paces:
            workers = min((pace.workers for pace in self._paces.values()), default=self.workers)
            size = self.batch_size or max(1, EVAL_BATCH // len(member.recipe.views))
            self._paces[member.name] = Pace(size, workers)
        return self._paces[member.name]
