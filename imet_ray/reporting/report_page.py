"""The page that a person looks at after a sweep or a blend: one self-contained HTML file with its pictures inside.

It draws what the artefacts say (the blend's findings, out-of-fold predictions, leaderboard, learning curves, test
pictures) and computes nothing that is not in them. What an artefact of an earlier version lacks is left out.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imet_ray.data.catalog import Catalog
from imet_ray.data.images import read_rgb
from imet_ray.prediction.decode import decode
from imet_ray.prediction.ensemble import Ensemble, blend_oof
from imet_ray.reporting import blend_figures as figures
from imet_ray.reporting.error_analysis import LabelCounts, Mistake, confident_mistakes, count_labels
from imet_ray.reporting.html import (
    COLOURS,
    bar,
    canvas,
    drawing,
    grid,
    page,
    paragraph,
    preformatted,
    section,
    shortened,
    table,
)
from imet_ray.storage.checked_read import read_json, read_json_lines
from imet_ray.storage.files import write_text
from imet_ray.storage.results import Standing, read_spec
from imet_ray.storage.run_directory import EnsembleDirectory, RunDirectory

SHOWN_PICTURES = 12
SHOWN_MISTAKES = 12  # of each kind
SHOWN_LABELS = 8  # of a picture with a mistake
SHORT_SIDE = 150
BINS = (1, 10, 30, 100, 300)  # training pictures that a label has, at least
LONGEST = 28  # characters of a name in a figure or table


def write_report(
    place: EnsembleDirectory,
    ensemble: Ensemble,
    store: RunDirectory,
    catalog: Catalog,
    found: Sequence[Standing],
    test_probs: np.ndarray | None,
    *,
    oof: np.ndarray | None = None,
) -> None:
    """Write `report.html`.

    Args:
        found: the leaderboard, best first.
        test_probs: (n, C) float32 blended probabilities of the test split, or None if there is none.
        oof: (N, C) float32 blended out-of-fold probabilities; read if None, unless another tool made a member's.
    """
    if oof is None and all(member.trials for member in ensemble.members):
        oof = blend_oof(ensemble, store, catalog.train.ids)
    parts = _findings(ensemble.report)
    if place.half.exists():  # a kernel was built of it
        parts.append(paragraph(str(dict(read_json(place.half)).get("text", ""))))
    if oof is None:
        parts.append(paragraph("What needs out-of-fold predictions is left out: another tool made some."))
    else:
        counts = count_labels(oof, catalog.labels, ensemble.decoder)
        parts += [
            section("F2 by label frequency", _by_frequency(counts)),
            *_by_group(counts, catalog.label_groups),
            section("The most confident mistakes", *_mistakes(oof, catalog)),
        ]
    parts += _leaderboard(found, ensemble)
    parts += _curves(store, [standing.variant for standing in found])
    if oof is not None:
        title = "Labels: out-of-fold recall by frequency"
        parts.append(section(title, drawing(_labels(counts, catalog.label_names), title)))
    if test_probs is not None:
        parts.append(section("Test pictures", _pictures(ensemble, catalog, test_probs)))
    write_text(place.report, page(f"{store.root.name}: {ensemble.name}", parts))


def write_findings(place: EnsembleDirectory, name: str, report: Mapping[str, Any]) -> None:
    """Write `report.html` of a blend that has no run: what it found, without pictures.

    Args:
        name: of the ensemble.
        report: `BlendReport.to_dict()`.
    """
    write_text(place.report, page(name, _findings(report)))


def _findings(report: Mapping[str, Any]) -> list[str]:
    """What the blend found, in words and figures."""
    words = [*report.get("verdict", "").splitlines(), *report.get("remarks", ())]
    text = preformatted(report["text"]) if "text" in report else ""
    found = [section("What the blend is worth", *map(paragraph, words), text)]
    for title, drawings in figures.SECTIONS:
        drawn = [(words, draw(report)) for words, draw in drawings]
        shown = [paragraph(words) + drawing(figure, title) for words, figure in drawn if figure is not None]
        if shown:
            found.append(section(title, *shown))
    return found + _budget(report)


def _budget(report: Mapping[str, Any]) -> list[str]:
    figure = figures.budget(report)
    if figure is None:
        return []
    title = "Score against seconds"
    rows = [
        (f"{step['seconds']:,.0f}", f"{step['score']:.4f}", html.escape(", ".join(step["members"])))
        for step in report["budget"]["curve"]
    ]
    return [section(title, drawing(figure, title), table(("seconds", "F2", "members"), rows, "rrl"))]


def _by_frequency(counts: LabelCounts) -> str:
    rows = []
    for low, high in zip(BINS, [*BINS[1:], None], strict=True):
        inside = counts.true >= low if high is None else (counts.true >= low) & (counts.true < high)
        rows.append((f"{low}+" if high is None else f"{low}–{high - 1}", inside))
    return _f2_table("training pictures", [*rows, ("all labels", counts.true > 0)], counts)


def _by_group(counts: LabelCounts, groups: Sequence[str]) -> list[str]:
    names = sorted(set(groups))
    if len(names) < 2:
        return []
    of_label = np.array(groups)
    rows = [(shortened(name, LONGEST) or "without a group", of_label == name) for name in names]
    return [section("F2 by label group", _f2_table("group", rows, counts))]


def _f2_table(title: str, rows: Iterable[tuple[str, np.ndarray]], counts: LabelCounts) -> str:
    cells = [
        (
            html.escape(name),
            bar(counts.f2(inside)),
            f"{np.count_nonzero(inside):,}",
            f"{counts.true[inside].sum():,}",
            f"{counts.chosen[inside].sum():,}",
        )
        for name, inside in rows
        if inside.any()
    ]
    words = (
        "Pooled over the cells of these labels, not averaged over pictures; out of fold, decoded as the "
        "ensemble decodes."
    )
    return paragraph(words) + table((title, "F2", "labels", "true", "predicted"), cells, "llrrr")


def _mistakes(oof: np.ndarray, catalog: Catalog) -> list[str]:
    missing, unseen = confident_mistakes(oof, catalog.labels, SHOWN_MISTAKES)
    kinds = [
        ("Probable labels that the picture lacks: likely missing from train.csv", missing),
        ("Improbable labels that it has", unseen),
    ]
    return [
        section(title, grid(_mistake(mistake, catalog) for mistake in found), level=3)
        for title, found in kinds
        if found
    ]


def _mistake(mistake: Mistake, catalog: Catalog) -> tuple[np.ndarray, str]:
    names = [catalog.label_names[c] for c in np.flatnonzero(catalog.labels[mistake.row])]
    more = ", …" if len(names) > SHOWN_LABELS else ""
    labelled = html.escape(", ".join(names[:SHOWN_LABELS]) + more)
    name = html.escape(catalog.label_names[mistake.label]).replace("::", "::<wbr>")
    caption = (
        f"<b>{name}</b> {mistake.probability:.4f}<br>"
        f"<small>{html.escape(catalog.train.ids[mistake.row])}<br>labelled: {labelled}</small>"
    )
    return read_rgb(catalog.train.files[mistake.row], short_side=SHORT_SIDE), caption


def _leaderboard(found: Sequence[Standing], ensemble: Ensemble) -> list[str]:
    if not found:
        return []
    figure = canvas(0.36 * len(found) + 1.3)
    axes = figure.subplots()
    for row, standing in enumerate(found):
        colour = COLOURS[row % len(COLOURS)]
        axes.barh(row, standing.mean, color=colour, alpha=0.35)
        axes.plot(list(standing.score.values()), [row] * len(standing.score), "o", color=colour, markersize=5)
    shown = [score for standing in found for score in standing.score.values()]
    nested = ensemble.report.get("nested")
    if nested is not None:
        shown.append(nested)
        axes.axvline(nested, color="#000000", linestyle="--", label=f"blend, nested: {nested:.4f}")
        figure.legend(loc="outside lower center", fontsize="small", frameon=False)
    margin = 0.15 * (max(shown) - min(shown)) + 0.005
    axes.set_xlim(max(0.0, min(shown) - margin), max(shown) + margin)
    axes.set_yticks(range(len(found)), [shortened(standing.variant, LONGEST) for standing in found])
    axes.invert_yaxis()
    axes.set_xlabel("F2 (bar: mean over folds; not from 0)")
    title = "Leaderboard: F2 of each fold, at its best threshold"
    return [section(title, drawing(figure, title))]


def _curves(store: RunDirectory, variants: Sequence[str]) -> list[str]:
    figure = canvas(3.4)
    axes = figure.subplots()
    lines = {}
    for trial in store.begun_trials():
        rows = read_json_lines(trial.metrics)
        if not rows:
            continue
        name = read_spec(trial).variant.name
        if name not in variants:
            continue
        (lines[name],) = axes.plot(
            [row["epoch"] for row in rows],
            [row["score"] for row in rows],
            marker=".",
            color=COLOURS[variants.index(name) % len(COLOURS)],
            alpha=0.7,
        )
    if not lines:
        return []
    shown = [name for name in variants if name in lines]
    axes.set_xlabel("epoch")
    axes.set_ylabel("F2")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        [lines[name] for name in shown],
        [shortened(name, LONGEST) for name in shown],
        loc="outside lower center",
        ncols=2,
        fontsize="small",
        frameon=False,
    )
    title = "Learning curves: F2 of the held-out fold"
    return [section(title, drawing(figure, title))]


def _labels(counts: LabelCounts, names: Sequence[str]) -> Figure:
    recall = counts.hits / np.maximum(counts.true, 1)
    figure = canvas(3.6)
    axes = figure.subplots()
    axes.plot(counts.true, recall, "o", alpha=0.6, color=COLOURS[0])
    axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("training pictures with the label")
    axes.set_ylabel("recall, out of fold")
    order = np.argsort(counts.true)
    for place, label in enumerate([*order[:3], *order[-3:]]):
        rare = (
            place < 3
        )  # their lines go down as a rule, the others' up: behind the names that are drawn later
        height = 0.66 - 0.08 * place if rare else 0.3 + 0.08 * (place - 3)
        axes.annotate(
            shortened(names[label], LONGEST),
            (counts.true[label], recall[label]),
            xytext=(0.02 if rare else 0.98, height),
            textcoords="axes fraction",
            horizontalalignment="left" if rare else "right",
            arrowprops={"arrowstyle": "-", "alpha": 0.3},
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0},
            fontsize="small",
            parse_math=False,
        )
    return figure


def _pictures(ensemble: Ensemble, catalog: Catalog, probs: np.ndarray) -> str:
    shown = np.linspace(0, len(probs) - 1, min(SHOWN_PICTURES, len(probs))).astype(int)
    decoded = decode(probs[shown], ensemble.decoder)
    captioned = []
    for i, chosen in zip(shown, decoded, strict=True):
        truth = catalog.test_labels[i].astype(bool) if catalog.test_labels is not None else None
        words = []
        for label in np.argsort(-probs[i]):
            if chosen[label]:
                kind = "" if truth is None else ("hit" if truth[label] else "miss")
                name = html.escape(catalog.label_names[label])
                words.append(f"<span class='{kind}'>{name} {probs[i, label]:.2f}</span>")
        missed = [] if truth is None else [catalog.label_names[c] for c in np.flatnonzero(truth & ~chosen)]
        note = f"<br><small>not found: {html.escape(', '.join(missed))}</small>" if missed else ""
        picture = read_rgb(catalog.test.files[i], short_side=SHORT_SIDE)
        captioned.append((picture, f"{', '.join(words)}{note}"))
    legend = (
        "<p><span class='hit'>green: right</span>, <span class='miss'>red: not among the labels</span></p>"
        if catalog.test_labels is not None
        else ""
    )
    return legend + grid(captioned)
