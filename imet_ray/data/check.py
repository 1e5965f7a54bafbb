"""The report on a data directory, before a night is spent on it: counts, sizes, labels, problems.

Decodes every picture. Reading the tables is `imet_ray.data.formats`, comparing names `imet_ray.data.catalog`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imet_ray.data.catalog import UNUSABLE, Catalog, Reading
from imet_ray.data.copies import pixel_digest
from imet_ray.data.csv_tables import Problem, listed
from imet_ray.data.formats import read_directory
from imet_ray.data.images import read_picture
from imet_ray.errors import DataError
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.run_directory import Cache

SHOWN_LABELS = 5  # of the most common ones, and of the rarest


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found."""

    root: Path
    catalog: Catalog | None  # None where a problem of the tables or names forbids training
    problems: tuple[Problem, ...]
    sizes: np.ndarray  # (n, 2) int64: height and width of the decoded pictures
    decoded: tuple[Path, ...] = ()  # these n pictures
    readable: Catalog | None = None  # what there is to look at, whatever is wrong

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


@dataclass(frozen=True)
class _Decoded:
    """What is kept of a decoded picture."""

    size: tuple[int, int]  # height and width
    digest: bytes  # of its pixels
    missing: float  # the share of its pixels that is not there


def check_data(
    root: Path, *, workers: int, cache: Cache | None = None, negatives: bool = False
) -> DataReport:
    """Read a data directory, decode all its pictures, and report every problem.

    A picture that no table names may be damaged: that is a warning.

    Args:
        workers: threads; decoding releases the interpreter's lock.
        cache: where the digests of pictures are remembered; None: all are read.
        negatives: pictures without labels have none of them; else they are a problem.
    """
    reading = read_directory(root, cache, negatives=negatives)
    problems = list(reading.problems)
    told = {(problem.where, problem.row) for problem in problems if problem.kind == UNUSABLE}
    decoded: dict[Path, _Decoded] = {}

    def decode(file: Path) -> _Decoded | str:
        try:
            pixels, missing = read_picture(file)
        except DataError as error:
            return str(error)
        height, width, _ = pixels.shape
        return _Decoded((height, width), pixel_digest(pixels), missing)

    files = [file for file in reading.pictures if file.is_file()]  # a link to nowhere is told of by its row
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(decode, files)
        bar = tqdm(found, total=len(files), desc="decoding", unit="img", disable=None)
        for file, outcome in zip(files, bar, strict=True):
            if isinstance(outcome, str):
                if reading.rows.get(file) not in told:
                    problems.append(_undecodable(file, outcome.removeprefix(f"{file}: "), reading))
                continue
            decoded[file] = outcome
            if outcome.missing:
                text = f"{_name(file)} lacks {outcome.missing:.1%} of its pixels, at its end"
                problems.append(_warning("picture that is cut off", file, text, reading))
    problems += _copies(root.resolve(), decoded, reading)
    return DataReport(
        root=root,
        catalog=reading.catalog,
        problems=tuple(problems),
        sizes=np.array([one.size for one in decoded.values()], dtype=np.int64).reshape(-1, 2),
        decoded=tuple(decoded),
        readable=reading.readable,
    )


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _undecodable(file: Path, why: str, reading: Reading) -> Problem:
    if file in reading.rows:
        table, row = reading.rows[file]
        return Problem(UNUSABLE, table, row, f"{_name(file)}: {why}")
    return Problem("unused picture cannot be decoded", _name(file), None, why, forbids=False)


def _warning(kind: str, file: Path, text: str, reading: Reading) -> Problem:
    table, row = reading.rows.get(file, (_name(file), None))
    return Problem(kind, table, row, text, forbids=False)


def _copies(root: Path, decoded: Mapping[Path, _Decoded], reading: Reading) -> list[Problem]:
    """A warning for each picture whose pixels another one before it has."""
    alike: dict[bytes, list[Path]] = {}
    for file, one in decoded.items():
        alike.setdefault(one.digest, []).append(file)
    labels: dict[Path, bytes] = {}
    if (catalog := reading.catalog) is not None:
        labels |= zip(catalog.train.files, map(np.ndarray.tobytes, catalog.labels), strict=True)
        if catalog.test_labels is not None:
            labels |= zip(catalog.test.files, map(np.ndarray.tobytes, catalog.test_labels), strict=True)
    problems = []
    for first, *others in alike.values():
        digest = file_digest(first) if others else ""
        for file in others:
            what = "bytes" if file_digest(file) == digest else "pixels"
            differ = len({labels[one] for one in (first, file) if one in labels}) > 1
            kind = "copy with other labels" if differ else "copy"
            tops = {one.relative_to(root).parts[0] for one in (first, file)}  # they may lie in sub-folders
            if len(tops) > 1:
                kind = "test picture that is a training picture" + (", with other labels" if differ else "")
            text = f"{_name(file)} has the {what} of {_name(first)}"
            problems.append(_warning(kind, file, text, reading))
    return problems


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
