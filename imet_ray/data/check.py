"""The report on a data directory, before a night is spent on it: counts, sizes, labels, problems.

Decodes every picture. Reading the tables is `imet_ray.data.formats`, comparing names `imet_ray.data.catalog`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imet_ray.data.catalog import Catalog
from imet_ray.data.csv_tables import Problem, listed
from imet_ray.data.formats import read_directory
from imet_ray.data.images import read_rgb
from imet_ray.errors import DataError

SHOWN_LABELS = 5  # of the most common ones, and of the rarest


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found."""

    root: Path
    catalog: Catalog | None  # None where a problem of the tables or names forbids training
    problems: tuple[Problem, ...]
    sizes: np.ndarray  # (n, 2) int64: height and width of the decoded pictures

    @property
    def forbids(self) -> bool:
        """True if the directory must not be trained on."""
        return any(problem.forbids for problem in self.problems)

    def text(self) -> str:
        """The report, for people."""
        lines = [f"data          {self.root}"]
        if self.catalog is not None:
            lines.append(f"training      {len(self.catalog.train.ids):,} pictures")
            labelled = "with labels" if self.catalog.test_labels is not None else "without labels"
            lines.append(f"test          {len(self.catalog.test.ids):,} pictures, {labelled}")
            lines += _label_lines(self.catalog)
        if len(self.sizes):
            short = self.sizes.min(axis=1)
            aspect = (self.sizes.max(axis=1) / short).max()
            low, middle, high = np.quantile(short, [0, 0.5, 1]).astype(int)
            lines.append(f"short sides   {low} to {high} px, median {middle}; longest aspect {aspect:.1f}")
        lines += listed(self.problems)
        lines.append(f"verdict       {'must not' if self.forbids else 'may'} be trained on")
        return "\n".join(lines)


def check_data(root: Path, *, workers: int, negatives: bool = False) -> DataReport:
    """Read a data directory, decode all its pictures, and report every problem.

    A picture that no table names may be damaged: that is a warning.

    Args:
        workers: threads; decoding releases the interpreter's lock.
        negatives: pictures without labels have none of them; else they are a problem.
    """
    reading = read_directory(root, negatives=negatives)
    problems = list(reading.problems)
    sizes: list[tuple[int, int]] = []

    def decode(file: Path) -> tuple[int, int] | str:
        try:
            height, width, _ = read_rgb(file).shape
        except DataError as error:
            return str(error)
        return height, width

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(decode, reading.pictures)
        bar = tqdm(found, total=len(reading.pictures), desc="decoding", unit="img", disable=None)
        for file, outcome in zip(reading.pictures, bar, strict=True):
            if not isinstance(outcome, str):
                sizes.append(outcome)
                continue
            name, why = f"{file.parent.name}/{file.name}", outcome.removeprefix(f"{file}: ")
            if file in reading.rows:
                table, row = reading.rows[file]
                problems.append(Problem("picture cannot be used", table, row, f"{name}: {why}"))
            else:
                problems.append(Problem("unused picture cannot be decoded", name, None, why, forbids=False))
    return DataReport(
        root=root,
        catalog=reading.catalog,
        problems=tuple(problems),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
    )


def _label_lines(catalog: Catalog) -> list[str]:
    """How labels are spread: the mean per picture, the most common ones, and the rarest."""
    names, counts = catalog.label_names, catalog.labels.sum(axis=0, dtype=np.int64)
    per_picture = catalog.labels.sum(axis=1, dtype=np.int64)
    none = np.count_nonzero(per_picture == 0)
    order = np.argsort(-counts, kind="stable")

    def listed(part: np.ndarray) -> str:
        return ", ".join(f"{names[c]} {counts[c]:,}" for c in part)

    return [
        f"labels        {len(names):,}, of which {np.count_nonzero(counts):,} are used; "
        f"{per_picture.mean():.2f} per picture, at most {per_picture.max()}",
        *([f"  without     {none:,} pictures"] if none else []),
        f"  head        {listed(order[:SHOWN_LABELS])}",
        f"  tail        {listed(order[-SHOWN_LABELS:])}",
        *(f"  under {bound:<6}{np.count_nonzero(counts < bound):,} labels" for bound in (10, 100)),
    ]
