"""A tagger: an ensemble that is loaded, and tags any pictures. `imet_ray.load` makes one.

It decides as `launch.py --predict` does. What each picture is to the models is `imet_ray.prediction.prepared`.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from imet_ray.cores import usable_cores
from imet_ray.errors import ConfigError, DataError, StoreError, unknown_name
from imet_ray.models.checkpoint import load_tagger
from imet_ray.models.folded import folded
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, combined, in_order
from imet_ray.prediction.pooling import add_share
from imet_ray.prediction.predict import Inference, out_of_memory, predict_batch
from imet_ray.prediction.prefetch import prefetched
from imet_ray.prediction.prepared import AnyPicture, Prepared, Preparer, Sight, sights_of
from imet_ray.prediction.tagger_files import TaggerFiles, find_ensemble
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.startup import keep_freed_memory
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import runs_at

logger = logging.getLogger(__name__)

PICTURES = 64  # that go through the models together
PART = 16  # of them by each core of a CPU; in larger parts their maps leave its cache
AHEAD = 2  # batches that are prepared while the models look at others

Views = ViewSet | str | Sequence[str]
Work = Callable[[torch.nn.Module, torch.Tensor, Inference], np.ndarray]


@dataclass
class _Loaded:
    """A checkpoint on the device."""

    path: Path
    model: torch.nn.Module
    how: Inference
    sight: int  # its place in `Prepared.seen`


class Tagger:
    """A loaded ensemble. It decides on its own probabilities; people are shown calibrated ones."""

    def __init__(
        self,
        files: TaggerFiles,
        device: torch.device,
        views: ViewSet | None = None,
        *,
        cores: int | None = None,
    ) -> None:
        """Load all checkpoints; raises StoreError for what is wrong with them.

        Args:
            views: None: those that the ensemble was fitted on.
            cores: that the models use on a CPU; None: all.
        """
        self.ensemble: Ensemble = files.ensemble
        self.place = files.place
        self.device = device
        self.views = views or files.ensemble.views  # None: each recipe's own
        self.labels = list(files.label_names)
        self.label_ids = list(files.ensemble.label_ids)
        self._members = in_order(files.ensemble)
        self._process = os.getpid()
        self._cores = None
        self._n_cores = cores or usable_cores()
        if device.type == "cpu":
            keep_freed_memory()
            self._cores = ThreadPoolExecutor(
                self._n_cores, "imet_ray", initializer=lambda: torch.set_num_threads(1)
            )
        files.check()
        seen: list[Sight] = []
        loaded = []
        for trial_id in (trial_id for member in self._members for trial_id in member.trials):
            path = files.checkpoints[trial_id]
            model, info = load_tagger(path, device)
            if list(info.label_ids) != self.label_ids:
                raise StoreError(f"{path} was trained on other labels than {files.place} has: {files.again}")
            how = Inference.of(info.spec.recipe, device, views=self.views)
            if device.type == "cpu":
                size = how.image_size
                noise = torch.randint(
                    0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator()
                )
                model = folded(model, noise)
            seen.append(Sight(info.spec.pack_short_side, how.image_size, how.views))
            loaded.append((trial_id, path, model, how))
        self.prepare = Preparer(sights_of(seen))
        places = {sight: place for place, sight in enumerate(self.prepare.sights)}
        self._loaded = {
            trial_id: _Loaded(path, model, how, places[sight])
            for (trial_id, path, model, how), sight in zip(loaded, seen, strict=True)
        }
        if self.ensemble.calibration is None:
            logger.warning(
                "%s is not calibrated (`blend.py` does it): probabilities are shown as they are", self.place
            )

    @property
    def members(self) -> list[EnsembleMember]:
        """The members that predict, with their weights."""
        return list(self._members)

    # what servers and batches use

    def scores(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """The ensemble's probabilities, on which it decides: (n, C) float32.

        Raises:
            StoreError: if a checkpoint predicts NaN.
        """
        if not prepared:
            return np.zeros((0, len(self.labels)), np.float32)
        return np.concatenate(self._in_parts(prepared, self._scores_of))

    def _scores_of(self, prepared: Sequence[Prepared]) -> np.ndarray:
        seen = self._stacked(prepared)
        return combined(self.ensemble, ((member, self._member(member, seen)) for member in self._members))

    def _in_parts(
        self, prepared: Sequence[Prepared], work: Callable[[Sequence[Prepared]], np.ndarray]
    ) -> list[np.ndarray]:
        """`work` on all pictures; on a CPU on some by each core, which is faster than all cores on one layer.

        32 views of EfficientNet-Lite0 at 48 px take 0.11 s of one core; by torch's threads on two of a busy machine,
        which wait for each other, they took six times as much.
        """
        if os.getpid() != self._process:  # its threads are not here: it would wait for ever
            raise ConfigError(
                "this tagger was loaded before the process was forked: load one in each process"
            )
        if self._cores is None:
            return [work(prepared)]
        each = min(PART, -(-len(prepared) // self._n_cores))
        parts = [prepared[start : start + each] for start in range(0, len(prepared), each)]
        return list(self._cores.map(work, parts))

    def decide(self, probs: np.ndarray) -> list[list[int]]:
        """The labels of each picture by the ensemble's decoder, as positions in `labels`, the most probable first.

        Args:
            probs: (n, C) float32 of `scores`.
        """
        return self._positions(probs, self.ensemble.decoder.decode(probs))

    def calibrated(self, probs: np.ndarray) -> np.ndarray:
        """What share of pictures with such probabilities have the label: (n, C) float32.

        As they are, if the ensemble is not calibrated.
        """
        calibration = self.ensemble.calibration
        return np.asarray(probs, np.float32) if calibration is None else calibration.applied(probs)

    def chosen(
        self, probs: np.ndarray, *, top: int | None = None, min_probability: float | None = None
    ) -> list[list[int]]:
        """As `decide`, or the most probable labels: `top` of them at most, of a calibrated probability at least."""
        if top is None and min_probability is None:
            return self.decide(probs)
        wanted = (
            np.ones(probs.shape, bool)
            if min_probability is None
            else self.calibrated(probs) >= min_probability
        )
        return [row[:top] for row in self._positions(probs, wanted)]

    def decided_by(self, *, top: int | None = None, min_probability: float | None = None) -> str:
        """How `chosen` decides, in words."""
        if top is None and min_probability is None:
            return str(self.ensemble.decoder)
        parts = [] if top is None else [f"top {top}"]
        parts += [] if min_probability is None else [f"probability at least {min_probability:g}"]
        return ", ".join(parts)

    # what people use

    def probabilities(self, pictures: AnyPicture | Iterable[AnyPicture]) -> pd.DataFrame:
        """Calibrated probabilities: a row per picture, a column per label.

        Args:
            pictures: one or many of: a path, a file's bytes, a Pillow image, an array (H, W, 3) uint8.

        Raises:
            DataError: naming the first picture that cannot be read.
        """
        index, probs = self._all_scores(pictures)
        return pd.DataFrame(self.calibrated(probs), index=index, columns=self.labels)

    def predict(
        self,
        pictures: AnyPicture | Iterable[AnyPicture],
        *,
        top: int | None = None,
        min_probability: float | None = None,
    ) -> pd.DataFrame:
        """The labels of each picture: columns path, labels, probabilities (calibrated), decided_by.

        Args:
            pictures: as of `probabilities`.
            top: the most probable labels, so many, instead of those that the ensemble decides on.
            min_probability: those of at least this calibrated probability; with `top`, no more than that.

        Raises:
            DataError: naming the first picture that cannot be read.
        """
        check_choice(top, min_probability)
        index, probs = self._all_scores(pictures)
        calibrated = self.calibrated(probs)
        chosen = self.chosen(probs, top=top, min_probability=min_probability)
        return pd.DataFrame(
            {
                "path": index,
                "labels": [[self.labels[c] for c in row] for row in chosen],
                "probabilities": [[float(calibrated[i, c]) for c in row] for i, row in enumerate(chosen)],
                "decided_by": self.decided_by(top=top, min_probability=min_probability),
            }
        )

    def embed(self, pictures: AnyPicture | Iterable[AnyPicture], *, member: str | None = None) -> np.ndarray:
        """What the models see in each picture: (n, D) float32, to compare pictures by their dot product.

        Each checkpoint's pooled features before its classifier, averaged over the views and of length 1, one behind the
        other; divided by the root of their number, so that a row has length 1 and a dot product is a mean cosine.

        Args:
            pictures: as of `probabilities`.
            member: the variant whose checkpoints are asked; None: all members.

        Raises:
            ConfigError: for a member that there is not.
        """
        known = {one.variant: one for one in self._members}
        if member is not None and member not in known:
            raise unknown_name("member", member, known)
        asked = self._members if member is None else [known[member]]
        loaded = [self._loaded[trial_id] for one in asked for trial_id in one.trials]

        def seen_by(prepared: Sequence[Prepared]) -> np.ndarray:
            seen = self._stacked(prepared)
            found = [_in_batches(one, seen[one.sight], _features) for one in loaded]
            return np.asarray(np.concatenate(found, axis=1) / np.float32(np.sqrt(len(found))))

        rows: list[np.ndarray] = []
        for _, prepared in self._batches(pictures):
            rows += self._in_parts(prepared, seen_by)
        if not rows:
            raise ConfigError("embed was given no picture")
        return np.concatenate(rows)

    def _all_scores(self, pictures: AnyPicture | Iterable[AnyPicture]) -> tuple[list[str | int], np.ndarray]:
        index: list[str | int] = []
        found = [np.zeros((0, len(self.labels)), np.float32)]
        for names, prepared in self._batches(pictures):
            index += names
            found.append(self.scores(prepared))
        return index, np.concatenate(found)

    def _batches(
        self, pictures: AnyPicture | Iterable[AnyPicture]
    ) -> Iterator[tuple[list[str | int], list[Prepared]]]:
        """Names, paths or positions, and prepared pictures; others are prepared meanwhile."""
        many = _many(pictures)

        def prepare(item: tuple[int, AnyPicture]) -> Prepared:
            return self.prepare(item[1], name=f"picture {item[0]}")

        for batch in prefetched(
            prepare, enumerate(many), batch=PICTURES, ahead=AHEAD, threads=usable_cores()
        ):
            ready = []
            for _, prepared in batch:
                if isinstance(prepared, DataError):
                    raise prepared
                ready.append(prepared)
            named = [
                os.fspath(one) if isinstance(one, str | os.PathLike) else place for (place, one), _ in batch
            ]
            yield named, ready

    def _stacked(self, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """Pictures by sight: (n, V, 3, S, S) uint8, channels last in memory."""
        return [
            torch.from_numpy(np.stack([one.seen[sight] for one in prepared])).permute(0, 1, 4, 2, 3)
            for sight in range(len(self.prepare.sights))
        ]

    def _member(self, member: EnsembleMember, seen: Sequence[torch.Tensor]) -> np.ndarray:
        """The mean of its checkpoints' probabilities: (n, C) float32."""
        total: np.ndarray | None = None
        for trial_id in member.trials:
            one = self._loaded[trial_id]
            probs = _in_batches(one, seen[one.sight], predict_batch)
            if not np.isfinite(probs).all():
                raise StoreError(f"{one.path} predicts NaN: train it again, and blend again")
            total = add_share(total, 1 / len(member.trials), probs, "probability")
        assert total is not None
        return total

    def _positions(self, probs: np.ndarray, wanted: np.ndarray) -> list[list[int]]:
        """Of the wanted labels, the most probable first."""
        found = []
        for row, of in zip(probs, wanted, strict=True):
            columns = np.flatnonzero(of)
            found.append(columns[np.argsort(-row[columns], kind="stable")].tolist())
        return found


def load(
    where: str | Path,
    *,
    device: str | torch.device | None = None,
    views: Views | None = None,
    runs: str = "runs",
) -> Tagger:
    """What `imet_ray.load` does."""
    if views is not None and not isinstance(views, ViewSet):
        views = ViewSet.of(views.split(",") if isinstance(views, str) else views, None)
    files = find_ensemble(where, runs_at(runs, Cache.default()))
    return Tagger(files, device_of(device), views)


def device_of(asked: str | torch.device | None) -> torch.device:
    """The device that is asked for; None: a GPU, if there is one.

    Raises:
        ConfigError: if it is not there.
    """
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"device {asked!s} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def _many(pictures: AnyPicture | Iterable[AnyPicture]) -> Iterable[AnyPicture]:
    """One picture is many, too. An array is a picture, or a column of paths, or a batch of pictures.

    Raises:
        DataError: for what is neither one nor many.
    """
    if isinstance(pictures, np.ndarray):
        return [pictures] if pictures.ndim in (2, 3) else list(pictures)
    if isinstance(pictures, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        return [pictures]
    if not isinstance(pictures, Iterable):
        raise DataError(
            f"pictures are one or many paths, bytes, Pillow images or arrays, got {pictures!r:.40}"
        )
    return pictures


def check_choice(top: int | None, min_probability: float | None) -> None:
    """Refuse what cannot be meant.

    Raises:
        ConfigError: naming the number.
    """
    if top is not None and top < 1:
        raise ConfigError(f"top must be 1 or more, got {top}")
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise ConfigError(f"min_probability must be in 0..1, got {min_probability}")


def _in_batches(one: _Loaded, images: torch.Tensor, work: Work) -> np.ndarray:
    """`work` on all pictures; too little GPU memory halves the batch, for good."""
    parts: list[np.ndarray] = []
    done, full = 0, False
    while done < len(images):
        try:
            found = work(one.model, images[done : done + one.how.batch_size], one.how)
            parts.append(found)
            done += len(found)
        except Exception as error:
            if not out_of_memory(error) or one.how.batch_size == 1:
                raise
            full = True
        if full:  # after the handler: its traceback held what is to be freed
            full = False
            one.how.batch_size //= 2
            torch.cuda.empty_cache()
            logger.warning("out of GPU memory: predicting in batches of %d", one.how.batch_size)
    return np.concatenate(parts)


@torch.inference_mode()
def _features(model: torch.nn.Module, images: torch.Tensor, how: Inference) -> np.ndarray:
    """(b, V, 3, S, S) uint8 to the mean of the views' features, of length 1: (b, D) float32."""
    n, n_views = images.shape[:2]
    flat = images.flatten(0, 1).to(how.device)
    with torch.autocast(how.device.type, dtype=how.autocast, enabled=how.autocast is not None):
        features: torch.Tensor = model.features(flat)  # type: ignore[operator]  # of a Tagger, or of Snapshots
    mean = features.float().view(n, n_views, -1).mean(1)
    return np.asarray(torch.nn.functional.normalize(mean, dim=1).cpu().numpy())
