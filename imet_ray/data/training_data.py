"""A dataset that is ready for training: ids, labels, folds and where its packed pictures lie.

The driver prepares it once. It is cheap to send to workers: they open the pack by its path, or make it on a node
that has none. The directory itself is read in `imet_ray.data.formats`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imet_ray.data.catalog import Catalog
from imet_ray.data.folds import folds_digest, make_folds, read_folds, write_folds
from imet_ray.data.packed_images import Pack, build_pack
from imet_ray.errors import StoreError
from imet_ray.storage.run_directory import Cache, RunDirectory, SharedPacks


@dataclass(frozen=True)
class SplitData:
    """One split's pictures."""

    name: str  # train | test
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    digest: str
    cache: Cache
    shared: SharedPacks | None = None  # what nodes copy from each other, by way of a bucket

    def pack(self, short_side: int, *, workers: int = 1) -> Pack:
        """The packed pictures. They are copied or decoded now if this machine does not have them yet."""
        return build_pack(
            self.files,
            self.ids,
            short_side=short_side,
            path=self.cache.pack(self.digest, self.name, short_side),
            workers=workers,
            copy=self.shared.copy if self.shared else lambda path: False,
        )

    def share(self, short_side: int, *, workers: int = 1) -> None:
        """Pack the pictures now. Nodes that share no folder can then copy the pack."""
        pack = self.pack(short_side, workers=workers)
        if self.shared is not None:
            self.shared.share(pack.path)


@dataclass(frozen=True)
class TrainingData:
    """The training split with its labels and folds."""

    split: SplitData
    label_ids: tuple[str, ...]
    labels: np.ndarray  # (N, C) uint8
    folds: np.ndarray  # (N,) int64
    folds_digest: str

    @property
    def n_folds(self) -> int:
        return int(self.folds.max()) + 1

    @property
    def negatives(self) -> bool:
        """True if some pictures have none of the labels."""
        return not self.labels.any(axis=1).all()

    def rows(self, fold: int, *, held_out: bool) -> np.ndarray:
        """Indices of the fold's own pictures, or of all others: (n,) int64."""
        return np.flatnonzero((self.folds == fold) == held_out)


def training_split(catalog: Catalog, cache: Cache, shared: SharedPacks | None = None) -> SplitData:
    return SplitData("train", catalog.train.ids, catalog.train.files, catalog.digest, cache, shared)


def test_split(catalog: Catalog, cache: Cache, shared: SharedPacks | None = None) -> SplitData:  # noqa: PT028
    return SplitData("test", catalog.test.ids, catalog.test.files, catalog.test_digest, cache, shared)


def prepare(
    catalog: Catalog,
    store: RunDirectory,
    cache: Cache,
    *,
    n_folds: int,
    seed: int,
    given_folds: Path | None = None,
) -> TrainingData:
    """The training split with its folds: those of the run, of a given file, or new stratified ones.

    Raises:
        StoreError: if the run already has folds and the given file differs from them.
        DataError: if a folds file does not fit the data.
    """
    ids = catalog.train.ids
    given = read_folds(given_folds, ids) if given_folds else None
    if store.folds.exists():
        folds = read_folds(store.folds, ids)
        if given is not None and not np.array_equal(folds, given):
            raise StoreError(
                f"{store.root} was begun with other folds than {given_folds}: "
                "choose another --name, or --fresh to set the old run aside"
            )
    else:
        folds = given if given is not None else make_folds(catalog.labels, n_folds=n_folds, seed=seed)
        write_folds(store.folds, ids, folds, store.files)
    return TrainingData(
        split=training_split(catalog, cache, store.packs),
        label_ids=catalog.label_ids,
        labels=catalog.labels,
        folds=folds,
        folds_digest=folds_digest(ids, folds),
    )
