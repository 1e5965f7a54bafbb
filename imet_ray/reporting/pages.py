"""What all pages are made of: templates, tables, figures and photographs. A page is one file that needs nothing else.

What a page says is its caller's. Templates escape all text. Figures are SVG images: they take the colour of the
page's text, in dark mode too, and a browser runs no script in an image.
"""

import base64
import functools
import io
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # draws without pyplot: it needs no display
from matplotlib.ticker import LogFormatter, LogFormatterMathtext
from PIL import Image

WIDTH = 5.0  # inches of every figure: 11 pt are 11 px on a phone of 390 px, 17 px on a large screen
LONGEST = 28  # characters of a name beside an axis: 2 of the 5 inches
NOT_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]")  # a label may hold such characters
INK = "#010203"  # in figures: replaced by the colour of the page's text
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#888888", INK)
THEME = "<style>svg{color:#1d2129}@media(prefers-color-scheme:dark){svg{color:#dfe3e8}}</style>"
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 11,
    "legend.frameon": False,
    "savefig.dpi": 160,  # of what is drawn in pixels inside an SVG
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: the browser has fonts for every script
    "svg.hashsalt": "",  # the same figure is the same file
    "text.parse_math": False,  # names may hold $
}
STYLE_LOCK = threading.Lock()  # matplotlib's style belongs to the process, and pages are served by threads

Cell = str | int | float | None
T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Rows under a head. Texts stand left; counts (int) and scores (float) stand right."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bar: int = -1  # the column of shares in 0..1 that are drawn as bars, too

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [any(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.head))]

    @property
    def cards(self) -> bool:
        """Whether it is too wide for a phone, where each row is then shown as a card."""
        return len(self.head) > 3 and not all(self.numeric[1:])


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, a line that explains it, and a figure, a table, or both."""

    title: str
    explanation: str
    figure: Figure | None = None
    table: Table | None = None


def render(template: str, **values: Any) -> str:
    """The whole page.

    Args:
        template: a file name in `templates`.
        values: what the template names.
    """
    return _environment().get_template(template).render(values)


def draw_sections(functions: Mapping[str, Callable[[T], Section | None]], data: T) -> list[dict[str, Any]]:
    """Call each function under the pages' style; what a template needs of the sections that have something to show."""
    found = []
    with STYLE_LOCK, warnings.catch_warnings(), rc_context(STYLE):
        # missing in matplotlib's font, not in the browser's
        warnings.filterwarnings("ignore", message="Glyph")
        for name, function in functions.items():
            section = function(data)
            if section is not None:
                picture = svg(section.figure) if section.figure is not None else None
                found.append({**vars(section), "name": name, "picture": picture})
    return found


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty figure of the page's width, `height` in inches, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def svg(figure: Figure) -> str:
    """The figure as the address of an image. What stands at logarithmic ticks is plain text, not TeX."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
            axis.set_major_formatter(LogFormatter())
        if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
            axis.set_minor_formatter(LogFormatter())
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    text = (
        NOT_XML.sub("\ufffd", data.getvalue())
        .replace(INK, "currentColor")
        .replace("<defs>", f"{THEME}<defs>", 1)
    )
    return _data_url(text.encode(), "svg+xml")


def jpeg(pixels: np.ndarray) -> str:
    """A photograph as the address of an image. Args: pixels: (H, W, 3) uint8."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85)
    return _data_url(data.getvalue(), "jpeg")


def shorten(name: str, width: int = LONGEST) -> str:
    """At most `width` characters: the middle goes, for variants differ at their ends."""
    if len(name) <= width:
        return name
    return f"{name[: width - width // 2 - 1]}…{name[len(name) - width // 2 :]}"


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
