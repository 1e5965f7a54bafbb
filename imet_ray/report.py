"""The page that a person looks at after a sweep: one self-contained HTML file with its pictures inside.

It draws what the artefacts say (leaderboard, learning curves, blend, labels, test pictures) and computes nothing
that is not in them.
"""

import base64
import html
import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure  # draws without pyplot: no display is needed, or asked for
from matplotlib.ticker import MaxNLocator
from PIL import Image

from imet_ray.catalog import Catalog
from imet_ray.decode import decode
from imet_ray.ensemble import Ensemble, blend_oof
from imet_ray.images import read_rgb
from imet_ray.metrics import per_label
from imet_ray.results import Standing, read_spec
from imet_ray.store import EnsembleStore, Store, read_json_lines, write_text

SHOWN_PICTURES = 12
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB", "#000000")


def write_report(
    place: EnsembleStore,
    ensemble: Ensemble,
    store: Store,
    catalog: Catalog,
    found: Sequence[Standing],
    test_probs: np.ndarray | None,
) -> None:
    """Write `report.html`.

    Args:
        found: the leaderboard, best first.
        test_probs: (n, C) float32 blended probabilities of the test split, or None if there is none.
    """
    parts = [
        _section("What the blend is worth", _pre(ensemble.report["text"])),
        _section(
            "Leaderboard: F2 of each fold, at its best threshold", _image(_leaderboard(found, ensemble))
        ),
        _section(
            "Learning curves: F2 of the held-out fold", _image(_curves(store, [s.variant for s in found]))
        ),
        _section("Labels: out-of-fold recall by frequency", _image(_labels(ensemble, store, catalog))),
    ]
    if test_probs is not None:
        parts.append(_section("Test pictures", _pictures(ensemble, catalog, test_probs)))
    title = f"{store.root.name}: {ensemble.name}"
    write_text(
        place.report,
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n",
    )


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}img{max-width:100%}"
    "pre{background:#f6f6f6;padding:1em;overflow-x:auto}"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:1.2em}"
    ".grid img{height:150px;width:100%;object-fit:contain;background:#f6f6f6}"
    ".hit{color:#228833}.miss{color:#c33}small{color:#666}figure{margin:0}"
)


def _leaderboard(found: Sequence[Standing], ensemble: Ensemble) -> Figure:
    figure = Figure(figsize=(9, 0.5 * len(found) + 1.4), layout="constrained")
    axes = figure.subplots()
    for row, standing in enumerate(found):
        colour = COLOURS[row % len(COLOURS)]
        axes.barh(row, standing.mean, color=colour, alpha=0.35)
        axes.plot(list(standing.f2.values()), [row] * len(standing.f2), "o", color=colour)
    nested = ensemble.report["nested"]
    axes.axvline(nested, color="#000000", linestyle="--", label=f"blend, nested: {nested:.4f}")
    low = min([f2 for s in found for f2 in s.f2.values()] + [nested])
    high = max([f2 for s in found for f2 in s.f2.values()] + [nested])
    margin = 0.15 * (high - low) + 0.005
    axes.set_xlim(max(0.0, low - margin), high + margin)
    axes.set_yticks(range(len(found)), [standing.variant for standing in found])
    axes.invert_yaxis()
    axes.set_xlabel("F2 (bar: mean over folds; the axis does not begin at 0)")
    axes.legend(loc="lower right")
    return figure


def _curves(store: Store, variants: Sequence[str]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    labelled: set[str] = set()
    for trial in store.begun_trials():
        rows = read_json_lines(trial.metrics)
        if not rows:
            continue
        name = read_spec(trial).variant.name
        if name not in variants:
            continue
        colour = COLOURS[variants.index(name) % len(COLOURS)]
        label = name if name not in labelled else None
        labelled.add(name)
        axes.plot(
            [row["epoch"] for row in rows],
            [row["f2"] for row in rows],
            marker=".",
            color=colour,
            alpha=0.7,
            label=label,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("F2")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def _labels(ensemble: Ensemble, store: Store, catalog: Catalog) -> Figure:
    decoded = decode(blend_oof(ensemble, store, catalog.train.ids), ensemble.decoder)
    _, recall = per_label(decoded, catalog.labels)
    counts = catalog.labels.sum(axis=0)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(counts, recall, "o", alpha=0.6, color=COLOURS[0])
    axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("training pictures with the label")
    axes.set_ylabel("recall, out of fold")
    order = np.argsort(counts)
    for place, label in enumerate([*order[-3:], *order[:3]]):
        above = place % 3 + 1  # lines of text: the rarest and the commonest labels stand close together
        axes.annotate(
            catalog.label_names[label],
            (counts[label], recall[label]),
            xytext=(0, 18 * above if place >= 3 else -12 * above - 6),
            textcoords="offset points",
            horizontalalignment="left" if place >= 3 else "right",
            arrowprops={"arrowstyle": "-", "alpha": 0.3},
            fontsize="small",
            parse_math=False,
        )
    return figure


def _pictures(ensemble: Ensemble, catalog: Catalog, probs: np.ndarray) -> str:
    decoded = decode(probs, ensemble.decoder)
    shown = np.linspace(0, len(probs) - 1, min(SHOWN_PICTURES, len(probs))).astype(int)
    figures = []
    for i in shown:
        truth = catalog.test_labels[i].astype(bool) if catalog.test_labels is not None else None
        words = []
        for label in np.argsort(-probs[i]):
            if decoded[i, label]:
                kind = "" if truth is None else ("hit" if truth[label] else "miss")
                name = html.escape(catalog.label_names[label])
                words.append(f"<span class='{kind}'>{name} {probs[i, label]:.2f}</span>")
        missed = (
            [catalog.label_names[c] for c in np.flatnonzero(truth & ~decoded[i])] if truth is not None else []
        )
        note = f"<br><small>not found: {html.escape(', '.join(missed))}</small>" if missed else ""
        picture = _picture(read_rgb(catalog.test.files[i], short_side=150))
        figures.append(f"<figure>{picture}<figcaption>{', '.join(words)}{note}</figcaption></figure>")
    legend = (
        "<p><span class='hit'>green: right</span>, <span class='miss'>red: not among the labels</span></p>"
        if catalog.test_labels is not None
        else ""
    )
    return f"{legend}<div class='grid'>{''.join(figures)}</div>"


def _picture(pixels: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'>"


def _image(figure: Figure) -> str:
    data = io.BytesIO()
    with warnings.catch_warnings():  # of names in a script that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(data, format="png", dpi=110)
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}'>"


def _section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{body}"


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
