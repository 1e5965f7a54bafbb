"""The pieces of a page that needs nothing but itself: sections, tables, figures and photographs, all inside the file.

What a page says is its caller's. Text is escaped here; what is called `markup` is HTML already.
"""

import base64
import html
import io
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure  # draws without pyplot: no display is needed, or asked for
from PIL import Image

WIDTH = 5.8  # inches of every figure: its 10 pt are 8.6 px wide on a phone of 390 px, 17 px where it is shown whole
DPI = 160
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB", "#000000")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222;"
    "overflow-wrap:anywhere}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2.5em}h3{font-size:1em;margin-top:1.5em}"
    "p{max-width:45em}.plot{display:block;width:720px;max-width:100%}"
    "pre{background:#f6f6f6;padding:1em;overflow-x:auto;overflow-wrap:normal;font-size:12.5px}"
    ".scroll{overflow-x:auto;overflow-wrap:normal}table{border-collapse:collapse}"
    "th,td{padding:.2em 1em .2em 0;text-align:left;vertical-align:bottom}td{white-space:nowrap}"
    ".number{text-align:right}"
    ".bar{display:inline-block;width:220px;max-width:20vw;margin-right:.6em;background:#eee}"
    ".bar i{display:block;height:.8em;background:#4477AA}"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:1.2em}"
    ".grid img{height:150px;width:100%;object-fit:contain;background:#f6f6f6}"
    ".hit{color:#228833}.miss{color:#c33}small{color:#666}figure{margin:0}figcaption{line-height:1.35}"
)


def page(title: str, sections: Iterable[str]) -> str:
    """The whole file."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )


def section(title: str, *markup: str, level: int = 2) -> str:
    """A heading and what stands under it."""
    return f"<h{level}>{html.escape(title)}</h{level}>{''.join(markup)}"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table that scrolls inside its own box.

    Args:
        rows: cells in markup.
        align: `l` or `r` for each column.
    """
    how = [" class='number'" if side == "r" else "" for side in align]
    lines = ["".join(f"<th{a}>{html.escape(name)}</th>" for a, name in zip(how, head, strict=True))]
    lines += ["".join(f"<td{a}>{cell}</td>" for a, cell in zip(how, row, strict=True)) for row in rows]
    return f"<div class='scroll'><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def bar(share: float) -> str:
    """A number in 0..1, drawn and written."""
    return f"<div class='bar'><i style='width:{100 * share:.1f}%'></i></div>{share:.4f}"


def grid(pictures: Iterable[tuple[np.ndarray, str]]) -> str:
    """Photographs, (H, W, 3) uint8, side by side, each over its caption in markup."""
    figures = [
        f"<figure>{_inline(_jpeg(pixels), 'jpeg')}<figcaption>{caption}</figcaption></figure>"
        for pixels, caption in pictures
    ]
    return f"<div class='grid'>{''.join(figures)}</div>"


def canvas(height: float) -> Figure:
    """An empty figure of the page's width, `height` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def drawing(figure: Figure, alt: str) -> str:
    """The figure as a picture, `alt` for those who cannot see it."""
    data = io.BytesIO()
    with warnings.catch_warnings():  # of names in a script that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(data, format="png", dpi=DPI)
    return _inline(data.getvalue(), "png", f"class='plot' alt='{html.escape(alt)}'")


def shortened(name: str, width: int) -> str:
    """At most `width` characters: the middle goes, for variants differ at their ends."""
    if len(name) <= width:
        return name
    return f"{name[: width - width // 2 - 1]}…{name[len(name) - width // 2 :]}"


def _jpeg(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85)
    return data.getvalue()


def _inline(data: bytes, kind: str, attributes: str = "alt=''") -> str:
    return f"<img {attributes} src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"
