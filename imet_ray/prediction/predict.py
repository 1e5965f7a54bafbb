"""Probabilities for pictures: with all test-time views, of a held-out fold or of the test split.

What is written carries its ids and the digest of the checkpoint that made it, so that nothing is predicted
twice and nothing that does not belong together is combined. Decoding is `imet_ray.prediction.decode`.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from imet_ray.data.loader import Pictures, loader_died, view_batches
from imet_ray.data.views import count_views, first_view
from imet_ray.errors import StoreError, telling_line
from imet_ray.models.checkpoint import load_tagger, read_info
from imet_ray.prediction.metrics import FLOAT16_ONE
from imet_ray.prediction.view_sets import MEAN, POOLS, ViewSet, for_recipe
from imet_ray.specs import Variant
from imet_ray.storage.checked_read import damaged, file_digest, read_arrays
from imet_ray.storage.files import LOCAL, Files, write_arrays
from imet_ray.storage.run_directory import TrialDirectory

if TYPE_CHECKING:  # a kernel has no folds
    from imet_ray.data.training_data import SplitData

logger = logging.getLogger(__name__)

EVAL_BATCH = 64  # pictures times views in one forward pass


@dataclass(frozen=True)
class Predictions:
    """Raw probabilities of one checkpoint."""

    ids: np.ndarray  # (n,) str
    probs: np.ndarray  # (n, C) float16
    checkpoint: str  # sha256 of the weights
    views: tuple[str, ...]
    pictures: str  # digest of the split they are of
    seconds: float  # that the pass took
    pooling: str = MEAN  # of the views


@dataclass
class Inference:
    """How pictures go through a model. Batch and loaders are lowered where memory or loader processes fail."""

    device: torch.device
    views: tuple[str, ...]
    image_size: int  # pixels
    batch_size: int  # pictures; each has all its views in the batch
    workers: int = 0  # loader processes; 0: this one
    autocast: torch.dtype | None = None  # None: float32
    pooling: str = MEAN  # of the views

    @classmethod
    def of(
        cls, recipe: Variant, device: torch.device, *, workers: int = 0, views: ViewSet | None = None
    ) -> "Inference":
        """As a recipe says, with its own views or others."""
        names, pooling = for_recipe(recipe, views)
        autocast = half_of(device) if device.type == "cuda" and recipe.precision == "bf16" else None
        batch_size = max(1, EVAL_BATCH // count_views(names))
        return cls(device, names, recipe.image_size, batch_size, workers, autocast, pooling)

    @classmethod
    def quick(cls, recipe: Variant, device: torch.device, *, workers: int = 0) -> "Inference":
        """As a recipe says, with the first of its views."""
        return cls.of(recipe, device, workers=workers, views=ViewSet(names=(first_view(recipe.views[0]),)))


def half_of(device: torch.device) -> torch.dtype:
    """bfloat16; float16 on a GPU before Ampere (Kaggle's), which would emulate bfloat16, slower than float32."""
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def predict_rows(model: torch.nn.Module, pictures: Pictures, rows: np.ndarray, how: Inference) -> np.ndarray:
    """Probability pooled over the views: (n, C) float16, in the order of `rows`. NaN is for the caller to judge.

    Args:
        model: on the device.
        rows: (n,) indices of the pictures.
    """
    return np.concatenate(list(predict_batches(model, pictures, rows, how)))


def predict_batches(
    model: torch.nn.Module, pictures: Pictures, rows: np.ndarray, how: Inference
) -> Iterator[np.ndarray]:
    """What `predict_rows` gives, batch by batch as they come: (b, C) float16 each.

    Too little GPU memory halves the batch, and a loader process that dies is replaced by loading here: both in `how`.
    What is predicted already is not predicted again. What float16 is too small for is computed in float32.
    """
    model.eval()
    done, trouble = 0, ""
    while done < len(rows):
        batches = view_batches(
            pictures,
            rows[done:],
            how.views,
            how.image_size,
            batch_size=how.batch_size,
            workers=how.workers,
            pin_memory=how.device.type == "cuda",
        )
        loading = True
        try:
            for images in batches:
                loading = False
                probs = predict_batch(model, images, how)
                done += len(probs)
                yield probs
                loading = True
        except Exception as error:
            loading |= loader_died(error)  # raised wherever this process is
            if out_of_memory(error) and how.batch_size > 1:
                how.batch_size //= 2
                trouble = f"out of GPU memory: predicting in batches of {how.batch_size}"
            elif how.workers and loading:  # one died, or did not start; else it comes again
                how.workers = 0
                trouble = f"loader processes failed ({telling_line(error)}): loading in this process"
            else:
                raise
        if trouble:
            torch.cuda.empty_cache()  # after the handler: its traceback held what is to be freed
            logger.warning("%s", trouble)
            trouble = ""


def out_of_memory(error: Exception) -> bool:
    """Of the GPU, under any of its names."""
    names = ("ALLOC_FAILED", "CUDA out of memory", "unable to find an engine to execute")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(name in str(error) for name in names)


def predict_batch(model: torch.nn.Module, images: torch.Tensor, how: Inference) -> np.ndarray:
    """(b, V, 3, S, S) uint8 to the views' pooled probability, (b, C) float16."""
    probs = _pooled(model, images, how)
    if how.autocast == torch.float16 and not np.isfinite(probs).all():
        logger.warning("numbers too large for float16: computing in float32")
        how.autocast = None
        probs = _pooled(model, images, how)
    return probs


@torch.inference_mode()
def _pooled(model: torch.nn.Module, images: torch.Tensor, how: Inference) -> np.ndarray:
    n, n_views = images.shape[:2]
    flat = images.flatten(0, 1).to(how.device, non_blocking=True)
    with torch.autocast(how.device.type, dtype=how.autocast, enabled=how.autocast is not None):
        logits = model(flat)
    probs: torch.Tensor = POOLS[how.pooling](logits.float().view(n, n_views, -1))
    return np.asarray(probs.half().cpu().numpy())


def write_predictions(path: Path, predictions: Predictions, files: Files = LOCAL) -> None:
    """Write an .npz file, atomically."""
    write_arrays(path, files, **{name: np.array(value) for name, value in vars(predictions).items()})


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        StoreError: if it is missing, damaged, or holds something else, such as NaN.
    """
    arrays = read_arrays(path)
    try:
        found = Predictions(
            ids=arrays["ids"],
            probs=arrays["probs"],
            checkpoint=str(arrays["checkpoint"]),
            views=tuple(str(view) for view in arrays["views"]),
            pictures=str(arrays["pictures"]),
            seconds=float(arrays["seconds"]),
            pooling=str(arrays.get("pooling", MEAN)),
        )
    except KeyError as error:
        raise StoreError(f"{path} has no array {error}: it is no prediction of imet_ray") from None
    probs, ids = found.probs, found.ids
    if probs.dtype != np.float16 or probs.ndim != 2 or ids.shape != probs.shape[:1]:
        raise damaged(path, f"{probs.dtype} {probs.shape} for pictures {ids.shape}")
    if np.ascontiguousarray(probs).view(np.uint16).max(initial=0) > FLOAT16_ONE:
        raise damaged(path, "NaN, or numbers outside 0..1")
    return found


def fits(
    path: Path,
    checkpoint: str,
    views: Sequence[str],
    pictures: str,
    ids: np.ndarray,
    n_labels: int,
    pooling: str = MEAN,
) -> bool:
    """True if `path` holds predictions of exactly this checkpoint, with these views, of these pictures.

    What cannot be used, such as NaN, does not fit.
    """
    if not path.exists():
        return False
    try:
        have = read_predictions(path)
    except StoreError as error:
        logger.warning("predicting again what cannot be used: %s", error)
        return False
    made_from = (have.checkpoint, have.views, have.pooling, have.pictures)
    asked = (checkpoint, tuple(views), pooling, pictures)
    return made_from == asked and np.array_equal(have.ids, ids) and have.probs.shape[1] == n_labels


def predict_checkpoint(
    trial: TrialDirectory,
    split: "SplitData",
    rows: np.ndarray,
    *,
    path: Path,
    label_ids: Sequence[str],
    device: torch.device,
    workers: int = 0,
    views: ViewSet | None = None,
) -> bool:
    """Write the probabilities of one checkpoint for some pictures; False if they were there already.

    Args:
        rows: (n,) which pictures of the split, in the order wanted.
        path: where to write; one of `trial`'s own paths.
        label_ids: of the dataset; the checkpoint must have been trained on the same.
        views: None: the recipe's own.

    Raises:
        StoreError: if the checkpoint is missing, damaged, or of other labels.
    """
    started = time.monotonic()
    info = read_info(trial.best)
    if info.label_ids != tuple(label_ids):
        raise StoreError(
            f"{trial.best} was trained on {len(info.label_ids)} labels, the data have "
            f"{len(label_ids)} or others: predict with the dataset that it was trained on"
        )
    recipe = info.spec.recipe
    digest = file_digest(trial.best)
    ids = np.array(split.ids)[rows]
    how = Inference.of(recipe, device, workers=workers, views=views)
    if fits(path, digest, how.views, split.digest, ids, len(label_ids), how.pooling):
        return False
    model, _ = load_tagger(trial.best, device)
    pack = split.pack(info.spec.pack_short_side)
    probs = predict_rows(model, pack, rows, how)
    if not np.isfinite(probs).all():
        raise StoreError(f"{trial.best} predicts NaN: delete {trial.root} and train it again")
    seconds = time.monotonic() - started
    found = Predictions(ids, probs, digest, how.views, split.digest, seconds, how.pooling)
    write_predictions(path, found, trial.files)
    return True
