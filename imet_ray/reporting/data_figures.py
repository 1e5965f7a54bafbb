"""The figures of a data directory's page: labels, sizes, and what comes together.

Reading and checking the directory is `imet_ray.data.check`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from imet_ray.data.check import DataReport
from imet_ray.reporting.pages import COLOURS, INK, Section, Table, canvas, shorten

MOST_ROWS = 2000  # of the table of labels: some 100 bytes each
MOST_POINTS = 1000  # that are drawn as shapes; more are drawn as pixels, else a page takes megabytes
TOGETHER = 12  # labels of the map of what comes together: so many numbers stand side by side
NAME = 22  # characters of a name beside the map
PAIRS = 30  # of labels, in its table
ONE_GROUP = [(None, COLOURS[0])]  # labels of no group, or of too many
MOST_BARS = 30  # of labels per picture; what has more is counted in the last


@dataclass(frozen=True)
class DataOnPage:
    """What a page may show of a data directory: that of the training pictures, and all sizes."""

    names: tuple[str, ...]  # of the labels
    groups: tuple[str, ...]  # of the labels, "" without
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    labels: np.ndarray  # (N, C) uint8
    readable: np.ndarray  # (N,) bool: which of the pictures can be decoded
    counts: np.ndarray  # (C,) int64, pictures that have each label
    sizes: np.ndarray  # (n, 2) int64, height and width of all that could be decoded
    n_test: int

    @classmethod
    def of(cls, report: DataReport) -> Self:
        """What `check_data` could read, which may be nothing."""
        seen, decoded = report.readable, set(report.decoded)
        labels = seen.labels if seen is not None else np.zeros((0, 0), np.uint8)
        files = seen.train.files if seen is not None else ()
        return cls(
            names=tuple(map(_visible, seen.label_names)) if seen is not None else (),
            groups=seen.label_groups if seen is not None else (),
            ids=seen.train.ids if seen is not None else (),
            files=files,
            labels=labels,
            readable=np.array([file in decoded for file in files], bool),
            counts=labels.sum(0, dtype=np.int64),
            sizes=report.sizes,
            n_test=len(seen.test.ids) if seen is not None else 0,
        )

    @property
    def by_frequency(self) -> np.ndarray:
        """Labels, the commonest first: (C,) int64."""
        return np.asarray(np.argsort(-self.counts, kind="stable"))

    @property
    def per_picture(self) -> np.ndarray:
        """Labels of each picture: (N,) int64."""
        return np.asarray(self.labels.sum(1, dtype=np.int64))


def label_frequencies(data: DataOnPage) -> Section | None:
    """Each label's pictures by its rank, and a table of all."""
    if not data.counts.any():
        return None
    order = data.by_frequency
    figure, axes = canvas(3.4)
    of_label = np.array(data.groups)
    groups = sorted(set(data.groups))
    for group, colour in zip(groups, COLOURS, strict=False) if 1 < len(groups) <= len(COLOURS) else ONE_GROUP:
        places = np.flatnonzero(
            (data.counts[order] > 0) & (of_label[order] == group if group is not None else True)
        )
        axes.plot(
            places + 1,
            data.counts[order[places]],
            ".",
            color=colour,
            label=shorten(group or "no group") if group is not None else None,
            rasterized=len(order) > MOST_POINTS,
        )
    if 1 < len(groups) <= len(COLOURS):
        figure.legend(loc="outside upper left", ncols=3)
    axes.set_yscale("log")
    axes.set_xscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("rank of the label")
    axes.set_ylabel("training pictures")
    n = len(data.ids)
    rows = [
        (data.names[c], int(data.counts[c]), float(data.counts[c] / n)) for c in order[:MOST_ROWS].tolist()
    ]
    few = [f"{int((data.counts < bound).sum()):,} have less than {bound}" for bound in (10, 100)]
    cut = f" The table has the commonest {MOST_ROWS:,}." if len(order) > MOST_ROWS else ""
    return Section(
        "Label frequencies",
        f"A dot per label. Of {len(order):,} labels {', '.join(few)} pictures.{cut}",
        figure,
        Table(("label", "pictures", "share"), rows, bar=2),
    )


def labels_per_picture(data: DataOnPage) -> Section | None:
    """How many pictures have one label, two, ..."""
    if not data.labels.size:
        return None
    per_picture = data.per_picture
    counts = np.bincount(np.minimum(per_picture, MOST_BARS))
    first = int(per_picture.min() > 0)
    figure, axes = canvas(2.8)
    axes.bar(np.arange(first, len(counts)), counts[first:], color=COLOURS[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(
        "labels of a picture" + (f" ({MOST_BARS}: or more)" if per_picture.max() > MOST_BARS else "")
    )
    axes.set_ylabel("training pictures")
    return Section(
        "Labels per picture",
        f"{per_picture.mean():.2f} in the mean, {int(np.median(per_picture))} in the median, at most "
        f"{per_picture.max()}; {int((per_picture == 0).sum()):,} pictures have none.",
        figure,
    )


def resolutions(data: DataOnPage) -> Section | None:
    """Width and height of all pictures, and the commonest sizes."""
    if not len(data.sizes):
        return None
    sizes, counts = np.unique(data.sizes, axis=0, return_counts=True)
    figure, axes = canvas(3.6)
    area = 6 + 120 * counts / counts.max()
    many = len(sizes) > MOST_POINTS
    axes.scatter(sizes[:, 1], sizes[:, 0], area, alpha=0.5, color=COLOURS[0], linewidths=0, rasterized=many)
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")
    if sizes.max() > 8 * max(1, int(np.median(sizes))):
        axes.set_xscale("log")
        axes.set_yscale("log")
    short = data.sizes.min(1)
    low, middle, high = np.quantile(short, [0, 0.5, 1]).astype(int)
    common = np.argsort(-counts, kind="stable")[:10]
    rows = [(f"{sizes[k, 1]} x {sizes[k, 0]}", int(counts[k])) for k in common.tolist()]
    return Section(
        "Resolutions",
        f"Short sides from {low} to {high} px, {middle} in the median, of {len(short):,} training and test pictures. "
        "A dot's area is its number of pictures. The table has the commonest sizes, width first.",
        figure,
        Table(("size", "pictures"), rows),
    )


def aspects(data: DataOnPage) -> Section | None:
    """Width over height: what a square crop cuts off."""
    if not len(data.sizes):
        return None
    ratio = data.sizes[:, 1] / data.sizes[:, 0]
    edge = max(2.0, float(np.abs(np.log2(ratio)).max()) * 1.02)
    figure, axes = canvas(2.6)
    axes.hist(np.log2(ratio), bins=np.linspace(-edge, edge, 61).tolist(), color=COLOURS[0])
    ticks = np.arange(-np.floor(edge), np.floor(edge) + 1)[:: max(1, int(edge // 3))]
    axes.set_xticks(ticks, [f"{2**t:g}" if t >= 0 else f"1/{2**-t:g}" for t in ticks])
    axes.set_xlabel("width / height")
    axes.set_ylabel("pictures")
    long = np.maximum(ratio, 1 / ratio)
    return Section(
        "Aspects",
        f"{(long > 4 / 3).mean():.0%} of the pictures are longer than 4:3, {(long > 2).mean():.0%} longer than 2:1; "
        f"the longest is {long.max():.1f}:1.",
        figure,
    )


def together(data: DataOnPage) -> Section | None:
    """How often the commonest labels come together."""
    common = [c for c in data.by_frequency[:TOGETHER].tolist() if data.counts[c]]
    if len(common) < 2:
        return None
    has = data.labels[:, common].astype(np.float32)
    both = has.T @ has  # (k, k) pictures
    share = both / both.diagonal()[:, None]
    names = [shorten(data.names[c], NAME) for c in common]
    figure, axes = canvas(1.8 + 0.27 * len(common))
    shown = share.copy()
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(0.01, float(np.nanmax(shown))), aspect="auto")
    figure.colorbar(
        image, ax=axes, orientation="horizontal", shrink=0.6, format=lambda part, _: f"{part:.0%}"
    )
    axes.set_yticks(range(len(names)), [f"{name} ({i + 1})" for i, name in enumerate(names)])
    axes.set_xticks(range(len(names)), [str(i + 1) for i in range(len(names))])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor(INK + "10")
    pairs = [(i, k) for i in range(len(common)) for k in range(i) if both[i, k]]
    pairs.sort(key=lambda pair: -both[pair])
    rows = [
        (
            data.names[common[k]],
            data.names[common[i]],
            int(both[i, k]),
            float(share[k, i]),
            float(share[i, k]),
        )
        for i, k in pairs[:PAIRS]
    ]
    return Section(
        "The commonest labels together",
        "Each row: the share of its label's pictures that also have the label of the column. The table has the pairs "
        "that come most often, with the share of the first label's pictures and of the second's.",
        figure,
        Table(("label", "with", "pictures", "of the first", "of the second"), rows) if rows else None,
    )


def _visible(name: str) -> str:
    """A label's name, or a word for a name of nothing."""
    return name if name.strip() else "(no name)"


FIGURES: dict[str, Callable[[DataOnPage], Section | None]] = {
    "frequencies": label_frequencies,
    "per-picture": labels_per_picture,
    "together": together,
    "resolutions": resolutions,
    "aspects": aspects,
}
