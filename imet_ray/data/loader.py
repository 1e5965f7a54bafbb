"""Packed pictures as batches for training and for evaluation.

A picture depends only on (seed, epoch, row), and on how often the epoch has shown it before; the order of an epoch only
on (seed, epoch). So neither the number of worker processes nor an interruption changes a batch. Pixels stay uint8: the
model normalises them on the device, as its first step.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from imet_ray.data.samplers import epoch_order
from imet_ray.data.views import apply_views, count_views
from imet_ray.specs import Sampler

if TYPE_CHECKING:  # prediction needs no albumentations
    from imet_ray.data.augmentation import TrainTransform

Batch = tuple[torch.Tensor, torch.Tensor]


class Pictures(Protocol):
    """Decoded pictures by row: a `Pack`, or something that decodes on demand."""

    def __getitem__(self, row: int) -> np.ndarray:
        """One picture: (H, W, 3) uint8 RGB."""
        ...


class TrainDataset(Dataset[Batch]):
    """Augmented pictures of some rows of a pack, with their labels. They differ in each epoch."""

    def __init__(
        self,
        pack: Pictures,
        rows: np.ndarray,
        labels: np.ndarray,
        transform: "TrainTransform",
        seed: int,
        *,
        sampler: Sampler | None = None,
        targets: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            rows: (n,) int64, indices into the pack and the labels.
            labels: (N, C) uint8, of all pictures in the pack.
            seed: of the augmentations and the order.
            sampler: which of the rows an epoch shows, and how often; None: each once.
            targets: (N, C) float in 0..1, what is learnt; None: the labels.
        """
        self.pack, self.rows = pack, rows
        self.targets = labels if targets is None else targets
        self.transform, self.seed = transform, seed
        self.shown = epoch_order(sampler, labels, rows)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Read this epoch from now on. Loaders that were made before go on with theirs."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """The epoch's order: (len,) int64, indices of the dataset; a permutation of 0..n-1 without a sampler."""
        return self.shown.draw(np.random.default_rng((self.seed, self.epoch)))

    def __len__(self) -> int:
        """Pictures in an epoch."""
        return self.shown.size

    def __getitem__(self, index: int) -> Batch:
        """One picture, (3, S, S) uint8, and its labels, (C,) float32.

        Index i + k * n is that of row i, shown for the k-th time (from 0): another crop of it.
        """
        images, targets = self.__getitems__([index])
        return images[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch in one piece: (B, 3, S, S) uint8 and (B, C) float32."""
        times, places = np.divmod(np.asarray(indices, np.int64), len(self.rows))
        rows = self.rows[places]
        shown = zip(rows.tolist(), times.tolist(), strict=True)
        images = _planes([self.transform(self.pack[row], self._picture_seed(row, k)) for row, k in shown])
        return images, torch.from_numpy(self.targets[rows].astype(np.float32))

    def _picture_seed(self, row: int, times: int = 0) -> int:
        """32 bits from (seed, epoch, row), and how often the epoch has shown it before."""
        again = (times,) if times else ()
        return int(np.random.SeedSequence((self.seed, self.epoch, row, *again)).generate_state(1)[0])


class ViewDataset(Dataset[torch.Tensor]):
    """Some rows of a pack, each in the test-time views. They are the same each time."""

    def __init__(self, pack: Pictures, rows: np.ndarray, views: Sequence[str], image_size: int) -> None:
        """
        Args:
            rows: (n,) int64, indices into the pack.
            views: names as `apply_views` takes them, V pictures.
            image_size: S, pixels.
        """
        self.pack, self.rows = pack, rows
        self.views, self.image_size = tuple(views), image_size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        """A batch in one piece: (B, V, 3, S, S) uint8."""
        rows = self.rows[np.asarray(indices, np.int64)]
        seen = [
            view
            for row in rows.tolist()
            for view in apply_views(self.pack[row], self.views, self.image_size, row=row)
        ]
        planes = _planes(seen)
        return planes.view(len(rows), count_views(self.views), *planes.shape[1:])


def train_batches(
    dataset: TrainDataset,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    size: int = 1,
    least: int = 2,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """The batches of the dataset's current epoch: (B, 3, S, S) uint8 and (B, C) float32.

    Args:
        batch_size: of all `size` processes together.
        workers: processes that prepare batches; 0 prepares them here.
        rank: which of the `size` processes that train together this one is; it gets its part of each batch.
        least: a last batch of fewer pictures is left out, unless it is the only one or `batch_size` is smaller.
            Batch norm cannot learn from one picture.
        pin_memory: for a GPU, which fetches such batches while it computes.
    """
    batches = _cut(dataset.order(), batch_size)
    if len(batches) > 1 and len(batches[-1]) < min(least, batch_size):
        batches.pop()
    parts = [np.array_split(batch, size)[rank] for batch in batches]
    return _loader(dataset, parts, workers, pin_memory=pin_memory)


def view_batches(
    pack: Pictures,
    rows: np.ndarray,
    views: Sequence[str],
    image_size: int,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> DataLoader[torch.Tensor]:
    """All of `rows`, in their order, each in all views: (B, V, 3, S, S) uint8."""
    dataset = ViewDataset(pack, rows, views, image_size)
    return _loader(dataset, _cut(np.arange(len(rows)), batch_size), workers, pin_memory=pin_memory)


class Timed:
    """Batches, with the seconds spent waiting for them, the start of the workers included."""

    def __init__(self, batches: DataLoader[Batch]) -> None:
        self.batches = batches
        self.waited = 0.0  # seconds

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        for batch in self.batches:
            self.waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()
        self.waited += time.perf_counter() - started


def loader_died(error: Exception) -> bool:
    """True if a loader process died; False if one of them raised an error of its own.

    Torch says so once it knows. Before, the connection to a process that was just killed may break.
    """
    text = str(error)
    disconnected = isinstance(error, ConnectionError | EOFError) and "in DataLoader worker" not in text
    return disconnected or "DataLoader worker (pid" in text


def _cut(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """An order, (n,), in batches; the last one may be smaller."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _loader(
    dataset: Dataset[Any], batches: list[np.ndarray], workers: int, *, pin_memory: bool
) -> DataLoader[Any]:
    """Torch's loader. If a worker dies, it raises within five seconds (`loader_died`)."""
    return DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the loader draws a number: not from the generator that dropout uses
    )


def _as_is(batch: Any) -> Any:
    """The datasets make whole batches; nothing is left to collate."""
    return batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # each worker has one core


def _planes(images: Sequence[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) pictures of one size as (B, 3, H, W), channels last in memory: the fastest layout for convolutions."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
