"""The page of a data directory: what `--check-data` found, as figures and example pictures.

It is made of what can be read. Where something forbids training, the page says so and shows the rest.
"""

from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.data.check import DataReport
from imet_ray.data.csv_tables import listed
from imet_ray.data.images import read_rgb, resize
from imet_ray.errors import DataError
from imet_ray.reporting.data_figures import FIGURES, DataOnPage
from imet_ray.reporting.pages import draw_sections, jpeg, render, shorten
from imet_ray.storage.files import write_text

SHOWN_LABELS = 8  # of the commonest, and of the rarest
SHOWN_PICTURES = 6  # of each of them
OTHERS = 6  # labels that stand under a picture
NAME = 40  # characters of a label's name there
SHORT_SIDE = 150  # pixels
LONGEST = 3  # times the short side: of a panorama the middle is shown
NAMED = 40  # labels without a picture that are named


def write_data_page(path: Path, report: DataReport) -> None:
    """Write the page of what `check_data` found."""
    data = DataOnPage.of(report)
    page = render(
        "data.html.j2",
        title=f"{report.root.resolve().name}: the data",
        forbids=report.forbids,
        data=data,
        problems=list(listed(report.problems)),
        unused=_unused(data),
        sections=draw_sections(FIGURES, data),
        examples=_examples(data),
    )
    write_text(path, page)


def _unused(data: DataOnPage) -> str:
    """The labels that no training picture has."""
    names = [shorten(data.names[c], NAME) for c in np.flatnonzero(data.counts == 0)]
    if not names:
        return ""
    more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{len(names):,} labels have no picture: {', '.join(names[:NAMED])}{more}."


def _examples(data: DataOnPage) -> list[tuple[str, list[dict[str, Any]]]]:
    """The commonest labels and the rarest, each with pictures: titles, and what the template needs of each label."""
    used = data.by_frequency[data.counts[data.by_frequency] > 0]
    common = used[:SHOWN_LABELS]
    rare = used[len(common) :][-SHOWN_LABELS:][::-1]
    found = [("The commonest labels", common), ("The rarest labels", rare)]
    return [
        (title, [_of_label(data, int(label)) for label in labels]) for title, labels in found if len(labels)
    ]


def _of_label(data: DataOnPage, label: int) -> dict[str, Any]:
    """A label's pictures, spread evenly over those that it has."""
    rows = np.flatnonzero(data.readable & (data.labels[:, label] > 0))
    shown = rows[np.linspace(0, len(rows) - 1, min(SHOWN_PICTURES, len(rows))).astype(int)]
    pictures = []
    for row in shown.tolist():
        try:
            pixels = _small(data.files[row])
        except DataError:  # it has changed since
            continue
        pictures.append({"picture": jpeg(pixels), "id": data.ids[row], "others": _others(data, row, label)})
    return {"name": data.names[label], "count": int(data.counts[label]), "pictures": pictures}


def _others(data: DataOnPage, row: int, label: int) -> str:
    """The picture's other labels."""
    names = [shorten(data.names[c], NAME) for c in np.flatnonzero(data.labels[row]) if c != label]
    return ", ".join(names[:OTHERS]) + (", …" if len(names) > OTHERS else "")


def _small(file: Path) -> np.ndarray:
    """The picture as the page shows it: (h, w, 3) uint8, its short side at most SHORT_SIDE."""
    pixels = read_rgb(file, short_side=SHORT_SIDE)
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short > SHORT_SIDE:  # it was read at its own size
        scale = SHORT_SIDE / short
        pixels = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    longest = LONGEST * min(pixels.shape[:2])
    top, left = (max(0, (side - longest) // 2) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + longest, left : left + longest])
