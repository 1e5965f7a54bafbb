"""The blend's findings as figures, from the form that `ensemble.json` keeps (`BlendReport.to_dict`).

A figure whose numbers are not there is None: ensembles of earlier versions lack some of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imet_ray.prediction.pooling import as_probability, on_scale
from imet_ray.reporting.html import COLOURS, canvas, shortened

LONGEST = 28  # characters of a name beside an axis: 2 of the page's 5.8 inches
NUMBERED = 12  # members: in the cells of a larger matrix numbers cannot be read
BAND = "#f2f2f2"

Report = Mapping[str, Any]


def scores(report: Report) -> Figure | None:
    """Nested and own F2 of each way of blending; lines: the gain over the best single member, from its score."""
    blends = [row for row in report.get("rows", ()) if not row["is_single"]]
    if not blends:
        return None
    beside = report.get("level2", ())
    rows = [(row["method"], row["decoder"], row) for row in blends]
    rows += [(f"level 2: {row['kind']}", row["decoder"], row) for row in beside]
    axes, place, colour = _method_rows([(method, decoder) for method, decoder, _ in rows])
    single, chosen = report.get("single"), report.get("chosen", {})
    for method, decoder, row in rows:
        y, of = place[method, decoder], colour[decoder]
        if single and "over_single" in row:
            gain = row["over_single"]
            axes.hlines(y, single["nested"] + gain["low"], single["nested"] + gain["high"], color=of)
        axes.plot(row["own"], y, "o", color=of, markersize=6, fillstyle="none")
        axes.plot(row["nested"], y, "o", color=of, markersize=6)
        if (method, decoder) == (chosen.get("method"), chosen.get("decoder")):
            axes.plot(row["nested"], y, "o", color="#000000", markersize=12, fillstyle="none")
    if single:
        axes.axvline(single["nested"], color="#000000", linestyle="--", linewidth=1)
        axes.set_title(
            f"dashed: {shortened(single['method'], 40)} alone", fontsize="medium", parse_math=False
        )
    axes.set_xlabel("F2, nested (full) and own (hollow); ringed: chosen")
    return _with_legend(axes, colour)


def gains(report: Report) -> Figure | None:
    """Nested gain of each method over uniform weights under the same decoder, with its interval."""
    rows = [r for r in report.get("rows", ()) if not r["is_single"] and r["method"] != "uniform"]
    if not rows:
        return None
    axes, place, colour = _method_rows([(row["method"], row["decoder"]) for row in rows])
    for row in rows:
        gain, of = row["over_uniform"], colour[row["decoder"]]
        y = place[row["method"], row["decoder"]]
        axes.hlines(y, gain["low"], gain["high"], color=of)
        axes.plot(gain["mean"], y, "o", color=of, markersize=6)
    axes.axvline(0, color="#000000", linestyle="--", linewidth=1)
    axes.set_xlabel("gain in nested F2 over uniform weights")
    return _with_legend(axes, colour)


def weights(report: Report) -> Figure | None:
    """Each member's weight with its spread over the nested folds, and the nested F2 without it."""
    names, chosen = report.get("names", ()), report.get("chosen", report)
    if len(names) < 2 or "weights" not in chosen:
        return None
    worth = {found["name"]: found for found in report.get("worth", ())}
    figure = canvas(0.32 * len(names) + 1.2)
    panels = figure.subplots(1, 2 if worth else 1, sharey=True, squeeze=False)[0]
    places = range(len(names))
    panels[0].barh(places, chosen["weights"], color=COLOURS[0], alpha=0.35)
    for by_fold in chosen.get("weights_by_fold", ()):
        panels[0].plot(by_fold, places, ".", color=COLOURS[0])
    panels[0].set_xlabel("weight (dots: folds)")
    panels[0].xaxis.set_major_locator(MaxNLocator(4))
    _name_rows(panels[0], names)
    if worth:
        blend = report["nested"]
        for y, name in enumerate(names):
            if name not in worth:
                continue
            without, gain = worth[name]["without"], worth[name]["gain"]
            beyond_noise = gain["low"] > 0 or gain["high"] < 0
            panels[1].hlines(y, blend - gain["high"], blend - gain["low"], color=COLOURS[1])
            panels[1].plot(
                without, y, "o", color=COLOURS[1], markersize=6, markerfacecolor=None if beyond_noise else "w"
            )
        panels[1].axvline(blend, color="#000000", linestyle="--", linewidth=1)
        panels[1].set_xlabel("nested F2 without it")
        panels[1].xaxis.set_major_locator(MaxNLocator(3))
    return figure


def correlation(report: Report) -> Figure | None:
    """How alike the members' errors are."""
    matrix, names = np.array(report.get("correlation", ())), report.get("names", ())
    m = len(matrix)
    if m < 2:
        return None
    lowest = min(0.9, float(matrix[~np.eye(m, dtype=bool)].min()))
    figure = canvas(min(0.36 * m + 0.5, 5.0) if m <= NUMBERED else min(0.16 * m + 1, 9.0))
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=lowest, vmax=1, aspect="auto")
    size = 10 if m <= NUMBERED else max(4.0, 360 / m)
    axes.set_yticks(
        range(m),
        [f"{shortened(name, LONGEST)}  {i + 1}" for i, name in enumerate(names)],
        parse_math=False,
        fontsize=min(10, size),
    )
    axes.xaxis.tick_top()
    if m > NUMBERED:
        axes.set_xticks([i for i in range(m) if i % 5 == 4], [str(i + 1) for i in range(m) if i % 5 == 4])
        figure.colorbar(image, location="bottom", shrink=0.6, aspect=40)
        return figure
    axes.set_xticks(range(m), [str(i + 1) for i in range(m)])
    for i in range(m):
        for j in range(m):
            shade = "white" if matrix[i, j] > (lowest + 1) / 2 else "black"
            text = f"{matrix[i, j]:.2f}".replace("0.", ".")
            axes.text(j, i, text, ha="center", va="center", color=shade, fontsize="small")
    return figure


def threshold_curve(report: Report) -> Figure | None:
    """F2 against the threshold of the blended probability, with the thresholds that were chosen."""
    curve = report.get("threshold_curve", ())
    if not curve:
        return None
    figure = canvas(3.2)
    axes = figure.subplots()
    axes.plot([x for x, _ in curve], [y for _, y in curve], color=COLOURS[0])
    axes.set_xlabel("threshold of the blended probability")
    axes.set_ylabel("F2 of all pictures")
    chosen = report["chosen"]
    if chosen["decoder"] == "expected-f2":
        axes.axhline(
            chosen["own"], color=COLOURS[1], linestyle="--", label="expected F2, without a threshold"
        )
    else:
        scale = report.get("scale", "probability")
        base = np.dot(chosen["weights"], on_scale(np.array(report["thresholds"]), scale))
        marks = as_probability(base + np.array(chosen["shifts"]), scale)
        names = report["groups"] if len(marks) > 1 else ["chosen"]
        for i, (mark, name) in enumerate(zip(marks, names, strict=True)):
            label = f"{shortened(name or 'no group', LONGEST)}: {mark:.3f}" if i < len(COLOURS) - 1 else None
            colour = COLOURS[1:][i % (len(COLOURS) - 1)]
            axes.axvline(mark, color=colour, linestyle="--", label=label)
    _plain(axes.legend(fontsize="small"))
    return figure


def greedy(report: Report) -> Figure | None:
    """The score after each choice of forward selection, a line a decoder."""
    curves: dict[tuple[float, ...], list[str]] = {}  # under expected F2 it may be the threshold's own
    for row in report.get("rows", ()):
        if row.get("curve"):
            curves.setdefault(tuple(row["curve"]), []).append(row["decoder"])
    if not curves:
        return None
    figure = canvas(3)
    axes = figure.subplots()
    for i, (curve, decoders) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(range(1, len(curve) + 1), curve, ".-", color=colour, label=", ".join(decoders))
        best = int(np.argmax(curve))
        axes.plot(best + 1, curve[best], "o", color=colour, markersize=9, fillstyle="none")
    axes.set_xlabel("members chosen, with replacement (ringed: the best)")
    axes.set_ylabel("F2 of all pictures")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def budget(report: Report) -> Figure | None:
    """The best score for the seconds that prediction may take."""
    found = report.get("budget") or {}
    curve = sorted(found.get("curve", ()), key=lambda step: float(step["seconds"]))
    if not curve:
        return None
    figure = canvas(3)
    axes = figure.subplots()
    seconds = [step["seconds"] for step in curve]
    limit = found.get("limit_s")
    end = max(seconds[-1], limit or 0.0)
    axes.step([*seconds, end], [*(s["score"] for s in curve), curve[-1]["score"]], where="post")
    axes.plot(seconds, [step["score"] for step in curve], "o", color=COLOURS[0])
    if limit is not None:
        axes.axvline(limit, color=COLOURS[1], linestyle="--", label=f"limit: {limit:,.0f} s")
        axes.legend(fontsize="small")
    axes.set_xlabel("seconds for the test pictures")
    axes.set_ylabel("F2")
    return figure


def _method_rows(
    keys: Sequence[tuple[str, str]],
) -> tuple[Axes, dict[tuple[str, str], float], dict[str, str]]:
    """Axes with a row a method, the height of each (method, decoder), and the colour of each decoder."""
    methods = tuple(dict.fromkeys(method for method, _ in keys))
    decoders = tuple(dict.fromkeys(decoder for _, decoder in keys))
    axes = canvas(0.18 * len(methods) * (len(decoders) + 1) + 1.3).subplots()
    _name_rows(axes, methods)
    for row in range(0, len(methods), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0)
    step = 1 / (len(decoders) + 1)
    middle = (len(decoders) - 1) / 2
    place = {(m, d): methods.index(m) + (decoders.index(d) - middle) * step for m, d in keys}
    return axes, place, {decoder: COLOURS[i % len(COLOURS)] for i, decoder in enumerate(decoders)}


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shortened(name, LONGEST) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _with_legend(axes: Axes, colour: Mapping[str, str]) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    for decoder, of in colour.items():
        axes.plot([], [], "o", color=of, label=decoder)
    figure.legend(loc="outside lower center", ncols=len(colour), fontsize="small", frameon=False)
    return figure


def _plain(legend: Any) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)


# Titles, and what stands under them: a caption and its figure.
SECTIONS: tuple[tuple[str, tuple[tuple[str, Callable[[Report], Figure | None]], ...]], ...] = (
    (
        "Methods and decoders",
        (
            (
                "A line is the 95 % interval of the gain over the best single member, drawn from that member's score: "
                "where it does not touch the dashed line, the gain is beyond noise. How far the hollow dot is from the "
                "full one is what fitting flatters itself with.",
                scores,
            ),
            ("The same against uniform weights: beyond noise is what does not touch 0.", gains),
        ),
    ),
    (
        "Weights, and what each member is worth",
        (
            (
                "Left: the weights, and as dots those fitted without each fold. Right, where it is known: the score if "
                "a member's weight goes to the others, with the 95 % interval of the loss; dashed: the blend of all. "
                "Full dots are beyond noise.",
                weights,
            ),
        ),
    ),
    (
        "Correlation of the members' errors",
        (("Members that err alike add little to each other.", correlation),),
    ),
    (
        "Threshold curve",
        (
            (
                "One threshold for all labels, the blend's weights, the pictures that they were fitted on. A picture "
                "without a label above the threshold counts as 0 here.",
                threshold_curve,
            ),
        ),
    ),
    ("Greedy's curve", (("On the pictures that it chose by.", greedy),)),
)
