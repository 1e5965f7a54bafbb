"""A dataset that is ready for training: ids, labels, folds and where its packed pictures lie.

The driver prepares it once. It is cheap to send to workers: they open the pack by its path, or make it on a node
that has none. The directory itself is read in `imet_ray.data.formats`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imet_ray.data.catalog import Catalog, Split
from imet_ray.data.contents import contents
from imet_ray.data.folds import extend_folds, folds_digest, make_folds, read_folds, write_folds
from imet_ray.data.packed_images import HERE, Origin, Pack, build_pack
from imet_ray.errors import DataError, StoreError
from imet_ray.storage.experiment import way_out
from imet_ray.storage.run_directory import Cache, RunDirectory, SharedPacks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitData:
    """One split's pictures."""

    name: str  # train | test
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    digest: str
    cache: Cache
    shared: SharedPacks | None = None  # what nodes copy from each other, by way of a bucket
    contents: tuple[str, ...] = ()  # sha256 of each file's bytes, in hex
    root: Path = Path()  # of the data

    def pack(self, short_side: int, *, workers: int = 1) -> Pack:
        """The packed pictures. They are copied or decoded now if this machine does not have them yet."""
        return build_pack(
            self.files,
            self.ids,
            short_side=short_side,
            path=self.cache.pack(self.digest, self.name, short_side),
            workers=workers,
            origin=Origin(self.shared.copy if self.shared else HERE.copy, self.refuse_others),
        )

    def refuse_others(self) -> None:
        """Raise DataError if the files that lie here, now, are not those that the digest is of."""
        found = contents(self.files, self.cache.contents(self.root))
        pairs = zip(self.files, self.contents, strict=True)
        others = [file for file, content in pairs if found.get(file) != content]
        if others:
            raise DataError(
                f"{len(others):,} of {len(self.files):,} pictures are others now, or on this machine, than when the "
                f"command read them, the first is {others[0]}: run the same command again where all are the same"
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
    return _split("train", catalog.train, catalog.digest, catalog.root, cache, shared)


def test_split(catalog: Catalog, cache: Cache, shared: SharedPacks | None = None) -> SplitData:  # noqa: PT028
    return _split("test", catalog.test, catalog.test_digest, catalog.root, cache, shared)


def _split(
    name: str, split: Split, digest: str, root: Path, cache: Cache, shared: SharedPacks | None
) -> SplitData:
    return SplitData(name, split.ids, split.files, digest, cache, shared, split.contents, root)


def prepare(
    catalog: Catalog,
    store: RunDirectory,
    cache: Cache,
    *,
    n_folds: int,
    seed: int,
    given_folds: np.ndarray | None = None,
    find_copies: Callable[[], np.ndarray] | None = None,
) -> TrainingData:
    """The training split with its folds: those of the run, of a given file, or new stratified ones.

    Args:
        given_folds: (N,) int64.
        find_copies: gives the first row with the same picture as each row; (N,) int64. Called where new folds are
            made, for copies belong in one fold. Without it no picture is taken for a copy.

    Raises:
        StoreError: if the run already has folds and the given file differs from them.
        DataError: if a folds file does not fit the data.
    """
    ids, split = catalog.train.ids, training_split(catalog, cache, store.packs)
    folds: np.ndarray | None
    if store.folds.exists():
        folds = read_folds(store.folds, ids)
        if given_folds is not None and not np.array_equal(folds, given_folds):
            raise StoreError(f"{store.root} was begun with other folds than --folds names: {way_out(store)}")
    else:
        copies = find_copies() if find_copies is not None else np.arange(len(ids))
        folds = given_folds
        if folds is None:
            kept = _kept_together(copies, n_folds)
            folds = make_folds(catalog.labels, n_folds=n_folds, seed=seed, copies=kept)
        elif apart := int((folds != folds[copies]).sum()):
            logger.warning(
                "%d of %d pictures are in another fold than a copy of theirs: scores are too good",
                apart,
                len(ids),
            )
        write_folds(store.folds, ids, folds, store.files)
    return TrainingData(
        split=split,
        label_ids=catalog.label_ids,
        labels=catalog.labels,
        folds=folds,
        folds_digest=folds_digest(ids, folds),
    )


def extended_folds(path: Path, catalog: Catalog, copies: np.ndarray) -> np.ndarray:
    """The folds of a file for the pictures that it knows, and new ones for the others: (N,) int64.

    Args:
        copies: (N,) int64, the first row with the same picture as each row.

    Raises:
        DataError: if a fold has none of the data's pictures.
    """
    known = read_folds(path, catalog.train.ids, extend=True)
    return extend_folds(known, catalog.labels, copies)


def _kept_together(copies: np.ndarray, n_folds: int) -> np.ndarray | None:
    """The copies that are to share a fold; none where too few pictures differ."""
    n, different = len(copies), len(np.unique(copies))
    if different < n_folds:
        logger.warning(
            "only %d of %d pictures differ, which is less than one for each of %d folds: copies are in "
            "several folds, and scores are too good",
            *(different, n, n_folds),
        )
        return None
    if different < n:
        logger.warning(
            "%d of %d pictures are copies of others and share a fold with them: launch.py --check-data names them",
            *(n - different, n),
        )
    return copies
