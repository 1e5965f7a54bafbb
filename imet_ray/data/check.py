"""The report on a data directory, before a night is spent on it: counts, sizes, labels, problems.

Decodes every picture. Reading the tables is `imet_ray.data.formats`, comparing names `imet_ray.data.catalog`.
"""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class LabelStatistics:
    """How labels are spread."""

    mean: float  # per picture
    most: int  # on one picture
    counts: np.ndarray  # (C,) int64

    @classmethod
    def of(cls, labels: np.ndarray) -> "LabelStatistics":
        """From (N, C) uint8."""
        per_picture = labels.sum(axis=1, dtype=np.int64)
        return cls(
            mean=float(per_picture.mean()) if len(labels) else 0.0,
            most=int(per_picture.max(initial=0)),
            counts=labels.sum(axis=0, dtype=np.int64),
        )

    def text(self, names: Sequence[str], shown: int = 5) -> str:
        """Mean, head and tail, for people."""
        order = np.argsort(-self.counts, kind="stable")
        used = int(np.count_nonzero(self.counts))

        def listed(part: np.ndarray) -> str:
            return ", ".join(f"{names[c]} {self.counts[c]:,}" for c in part)

        spread = f"{self.mean:.2f} per picture, at most {self.most}"
        lines = [
            f"labels        {len(names):,}, of which {used:,} are used; {spread}",
            f"  head        {listed(order[:shown])}",
            f"  tail        {listed(order[-shown:])}",
        ]
        for bound in (10, 100):
            lines.append(f"  under {bound:<6}{int(np.count_nonzero(self.counts < bound)):,} labels")
        return "\n".join(lines)


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
            lines.append(LabelStatistics.of(self.catalog.labels).text(self.catalog.label_names))
        if len(self.sizes):
            short = self.sizes.min(axis=1)
            aspect = (self.sizes.max(axis=1) / short).max()
            low, middle, high = np.quantile(short, [0, 0.5, 1]).astype(int)
            lines.append(f"short sides   {low} to {high} px, median {middle}; longest aspect {aspect:.1f}")
        lines += listed(self.problems)
        verdict = "must not be trained on" if self.forbids else "may be trained on"
        lines.append(f"verdict       {verdict}")
        return "\n".join(lines)


def check_data(root: Path, *, workers: int, progress: bool) -> DataReport:
    """Read a data directory, decode all its pictures, and report every problem.

    A picture that no table names may be damaged: that is a warning.

    Args:
        workers: threads; decoding releases the interpreter's lock.
        progress: draw a bar, if stderr is a terminal.
    """
    reading = read_directory(root)
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
        disable = None if progress else True
        bar = tqdm(found, total=len(reading.pictures), desc="decoding", unit="img", disable=disable)
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
