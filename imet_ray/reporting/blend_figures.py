"""Figures and tables of what a blend found: its score and its members', its methods, weights and thresholds.

Each function draws what `ensemble.json` keeps and computes nothing else. It returns None where the numbers are not
there: a single member has nothing to compare with, and earlier versions kept less.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imet_ray.reporting.pages import COLOURS, INK, Cell, Section, Table, canvas, shorten
from imet_ray.reporting.report_data import ReportData

NUMBERED = 12  # members: numbers in the cells of a larger matrix cannot be read
MOST_MEMBERS = 12  # that are drawn beside the blend


def blend_and_members(data: ReportData) -> Section | None:
    """The blend's nested score, and the better one of each member."""
    single, chosen = data.blend.get("single"), data.taken
    best: dict[str, float] = {}
    for row in data.blend.get("rows", ()):
        if row["is_single"]:
            best[row["method"]] = max(row["nested"], best.get(row["method"], 0.0))
    if not single or len(best) < 2:
        return None
    names = sorted(best, key=lambda name: -best[name])[:MOST_MEMBERS]
    figure, axes = canvas(0.3 * len(names) + 1.1)
    _name_rows(axes, ["the blend", *names])
    _interval(axes, 0, chosen["over_single"], COLOURS[0], start=single["nested"])
    axes.plot(chosen["nested"], 0, "o", color=COLOURS[0], markersize=9)
    axes.plot([best[name] for name in names], range(1, len(names) + 1), "o", color=COLOURS[6])
    _dashed(axes, single["nested"])
    axes.set_xlabel(f"nested {data.score}")
    return Section(
        "The blend and its members",
        "The line is the 95 % interval of the blend's gain, drawn from the best member's score (dashed).",
        figure,
    )


def methods(data: ReportData) -> Section | None:
    """Nested and own score of each way of blending, and the interval of its gain over the best single member."""
    blends = [row for row in data.blend.get("rows", ()) if not row["is_single"]]
    if not blends:
        return None
    rows = [(row["method"], row["decoder"], row) for row in blends]
    rows += [(f"level 2: {row['kind']}", row["decoder"], row) for row in data.blend.get("level2", ())]
    axes, place, colour = _method_rows([(method, decoder) for method, decoder, _ in rows])
    single = data.blend.get("single")
    for method, decoder, row in rows:
        y, of = place[method, decoder], colour[decoder]
        if single and "over_single" in row:
            _interval(axes, y, row["over_single"], of, start=single["nested"])
        axes.plot(row["own"], y, "o", color=of, fillstyle="none")
        axes.plot(row["nested"], y, "o", color=of)
        if row == data.taken:
            axes.plot(row["nested"], y, "o", color=INK, markersize=12, fillstyle="none")
    if single:
        _dashed(axes, single["nested"])
        axes.set_title(f"dashed: {shorten(single['method'], 40)}", fontsize="medium")
    axes.set_xlabel(f"{data.score}, nested (full) and own (hollow); ringed: chosen")
    head = ("method or member", "decoder", "own", "nested", "over uniform", "over the best member")
    cells = [_method_cells(row) for row in data.blend["rows"]]
    cells += [_level2_cells(row) for row in data.blend.get("level2", ())]
    return Section(
        "Methods and decoders",
        "A gain is beyond noise where its line, the 95 % interval, does not touch the dashed one. Own: fitted and "
        "scored on the same pictures, so it flatters. Nested: fitted without the fold that is scored.",
        _with_legend(axes, colour),
        Table(head, cells),
    )


def gains(data: ReportData) -> Section | None:
    """Nested gain of each method over uniform weights under the same decoder, with its interval."""
    rows = [r for r in data.blend.get("rows", ()) if not r["is_single"] and r["method"] != "uniform"]
    if not rows:
        return None
    axes, place, colour = _method_rows([(row["method"], row["decoder"]) for row in rows])
    for row in rows:
        gain, of = row["over_uniform"], colour[row["decoder"]]
        y = place[row["method"], row["decoder"]]
        _interval(axes, y, gain, of)
        axes.plot(gain["mean"], y, "o", color=of)
    _dashed(axes, 0)
    axes.set_xlabel(f"gain in nested {data.score} over uniform weights")
    axes.xaxis.set_major_locator(MaxNLocator(5))  # long numbers
    return Section(
        "Fitted weights against uniform ones",
        "A gain is beyond noise where its 95 % interval does not touch 0.",
        _with_legend(axes, colour),
    )


def weights(data: ReportData) -> Section | None:
    """Each member's weight with its spread over the nested folds, and the nested score without it."""
    names, chosen = data.blend.get("names", ()), data.blend.get("chosen", data.blend)
    if len(names) < 2 or "weights" not in chosen:
        return None
    worth = {found["name"]: found for found in data.blend.get("worth", ())}
    figure, _ = canvas(0.32 * len(names) + 1.2)
    figure.clear()
    panels = figure.subplots(1, 2 if worth else 1, sharey=True, squeeze=False)[0]
    places = range(len(names))
    panels[0].barh(places, chosen["weights"], color=COLOURS[0], alpha=0.35)
    for by_fold in chosen.get("weights_by_fold", ()):
        panels[0].plot(by_fold, places, ".", color=COLOURS[0])
    panels[0].set_xlabel("weight")
    panels[0].xaxis.set_major_locator(MaxNLocator(3))
    _name_rows(panels[0], names)
    if worth:
        _draw_worth(panels[1], names, worth, data)
    rows = []
    for i, name in enumerate(names):
        by_fold = [fitted[i] for fitted in chosen.get("weights_by_fold", ())]
        spread = f"{min(by_fold):.3f} to {max(by_fold):.3f}" if by_fold else ""
        adds = gain_text(worth[name]["gain"]) if name in worth else ""
        rows.append((name, float(chosen["weights"][i]), spread, adds))
    return Section(
        "Weights, and what each member is worth",
        "Left: the dots are weights fitted without one fold. Right: the nested score where a member's weight goes to "
        "the others, with the 95 % interval of the loss; a full dot is beyond noise; dashed: the whole blend.",
        figure,
        Table(("member", "weight", "over the folds", "adds"), rows),
    )


def correlation(data: ReportData) -> Section | None:
    """How alike the members' errors are."""
    matrix, names = np.array(data.blend.get("correlation", ())), data.blend.get("names", ())
    m = len(matrix)
    if m < 2:
        return None
    lowest = min(0.9, float(matrix[~np.eye(m, dtype=bool)].min()))
    figure, axes = canvas(min(0.36 * m + 0.5, 5.0) if m <= NUMBERED else min(0.16 * m + 1, 9.0))
    image = axes.imshow(matrix, cmap="Blues", vmin=lowest, vmax=1, aspect="auto")
    size = min(10.0, max(4.0, 360 / m))
    axes.set_yticks(range(m), [f"{shorten(name)}  {i + 1}" for i, name in enumerate(names)], fontsize=size)
    axes.xaxis.tick_top()
    numbered = range(m) if m <= NUMBERED else range(4, m, 5)
    axes.set_xticks(numbered, [str(i + 1) for i in numbered])
    if m > NUMBERED:
        figure.colorbar(image, location="bottom", shrink=0.6, aspect=40)
    else:
        for i, j in np.ndindex(m, m):
            shade = "white" if matrix[i, j] > (lowest + 1) / 2 else "black"
            text = f"{matrix[i, j]:.2f}".replace("0.", ".")
            axes.text(j, i, text, ha="center", va="center", color=shade, fontsize="small")
    return Section(
        "Correlation of the members' errors", "Members that err alike add little to each other.", figure
    )


def threshold_curve(data: ReportData) -> Section | None:
    """The score against the threshold of the blended probability, with the thresholds that were chosen."""
    curve = data.blend.get("threshold_curve", ())
    if not curve:
        return None
    figure, axes = canvas(3.2)
    axes.plot([x for x, _ in curve], [y for _, y in curve], color=COLOURS[0])
    axes.set_xlabel("threshold of the blended probability")
    axes.set_ylabel(f"{data.score} of all pictures")
    chosen = data.blend["chosen"]
    marks = chosen.get("thresholds", ())  # of the blended probability, one or one per group
    if "thresholds" in chosen and not marks:
        label = f"{chosen['decoder']}, without a threshold"
        axes.axhline(chosen["own"], color=COLOURS[1], linestyle="--", label=label)
    names = data.blend["groups"] if len(marks) > 1 else ["chosen"] * len(marks)
    for i, (mark, name) in enumerate(zip(marks, names, strict=True)):
        label = f"{shorten(name or 'no group')}: {mark:.3f}" if i < len(COLOURS) - 1 else ""
        colour = COLOURS[1:][i % (len(COLOURS) - 1)]
        axes.axvline(mark, color=colour, linestyle="--", label=label or None)
    if "thresholds" in chosen:  # earlier versions lack them
        axes.legend(fontsize="small")
    return Section(
        "Threshold curve",
        "One threshold for all labels, on the pictures that the weights were fitted on. A picture without a label "
        "above the threshold counts as 0 here.",
        figure,
    )


def greedy(data: ReportData) -> Section | None:
    """The score after each choice of forward selection, a line per decoder."""
    curves: dict[tuple[float, ...], list[str]] = {}  # decoders may share one
    for row in data.blend.get("rows", ()):
        if row.get("curve"):
            curves.setdefault(tuple(row["curve"]), []).append(row["decoder"])
    if not curves:
        return None
    figure, axes = canvas(3)
    for i, (curve, decoders) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(range(1, len(curve) + 1), curve, ".-", color=colour, label=", ".join(decoders))
        best = int(np.argmax(curve))
        axes.plot(best + 1, curve[best], "o", color=colour, markersize=9, fillstyle="none")
    axes.set_xlabel("members chosen (ringed: the best)")
    axes.set_ylabel(f"{data.score} of all pictures")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize="small")
    return Section(
        "Greedy selection",
        "Members are chosen with replacement, on the pictures that are scored here, so it flatters.",
        figure,
    )


def budget(data: ReportData) -> Section | None:
    """The best score for the seconds that prediction may take."""
    found = data.blend.get("budget") or {}
    curve = sorted(found.get("curve", ()), key=lambda step: float(step["seconds"]))
    if not curve:
        return None
    figure, axes = canvas(3)
    seconds = [step["seconds"] for step in curve]
    limit = found.get("limit_s")
    end = max(seconds[-1], limit or 0.0)
    axes.step(
        [*seconds, end], [*(s["score"] for s in curve), curve[-1]["score"]], where="post", color=COLOURS[0]
    )
    axes.plot(seconds, [step["score"] for step in curve], "o", color=COLOURS[0])
    if limit is not None:
        axes.axvline(limit, color=COLOURS[1], linestyle="--", label=f"limit: {limit:,.0f} s")
        axes.legend(fontsize="small")
    axes.set_xlabel("seconds for the test pictures")
    axes.set_ylabel(data.score)
    rows = [(round(s["seconds"]), float(s["score"]), ", ".join(s["members"])) for s in curve]
    return Section(
        "Score against seconds",
        "The best blend that predicts the test pictures within each time.",
        figure,
        Table(("seconds", data.score, "members"), rows),
    )


def gain_text(gain: Mapping[str, float]) -> str:
    """A gain with its 95 % interval."""
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _method_cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    name = row["method"] + (" (weights of the threshold)" if row["transferred"] else "")
    over_uniform = "" if row["is_single"] or row["method"] == "uniform" else gain_text(row["over_uniform"])
    return (
        name,
        row["decoder"],
        float(row["own"]),
        float(row["nested"]),
        over_uniform,
        gain_text(row["over_single"]),
    )


def _level2_cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    name = f"level 2: {row['kind']}" + (" (used)" if row.get("used") else "")
    over_uniform = gain_text(row["over_uniform"]) if "over_uniform" in row else ""  # earlier versions lack it
    over_best = f"{gain_text(row['over_best'])} (over the best blend)"
    return name, row["decoder"], float(row["own"]), float(row["nested"]), over_uniform, over_best


def _draw_worth(axes: Axes, names: Sequence[str], worth: Mapping[str, Any], data: ReportData) -> None:
    blend = data.blend["chosen"]["nested"]
    for y, name in enumerate(names):
        if name not in worth:
            continue
        without, gain = worth[name]["without"], worth[name]["gain"]
        beyond_noise = gain["low"] > 0 or gain["high"] < 0
        axes.hlines(y, blend - gain["high"], blend - gain["low"], color=COLOURS[1])
        axes.plot(without, y, "o", color=COLOURS[1], fillstyle="full" if beyond_noise else "none")
    _dashed(axes, blend)
    axes.set_xlabel(f"{data.score} without it")
    axes.xaxis.set_major_locator(MaxNLocator(2))


def _method_rows(
    keys: Sequence[tuple[str, str]],
) -> tuple[Axes, dict[tuple[str, str], float], dict[str, str]]:
    """Axes with a row per method, the height of each (method, decoder), and the colour of each decoder."""
    names = tuple(dict.fromkeys(method for method, _ in keys))
    decoders = tuple(dict.fromkeys(decoder for _, decoder in keys))
    _, axes = canvas(0.18 * len(names) * (len(decoders) + 1) + 1.3)
    _name_rows(axes, names)
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#888888", alpha=0.12, linewidth=0)
    step = 1 / (len(decoders) + 1)
    middle = (len(decoders) - 1) / 2
    place = {(m, d): names.index(m) + (decoders.index(d) - middle) * step for m, d in keys}
    return axes, place, {decoder: COLOURS[i % len(COLOURS)] for i, decoder in enumerate(decoders)}


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _with_legend(axes: Axes, colour: Mapping[str, str]) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    for decoder, of in colour.items():
        axes.plot([], [], "o", color=of, label=decoder)
    figure.legend(loc="outside lower center", ncols=len(colour), fontsize="small")
    return figure


def _interval(axes: Axes, y: float, gain: Mapping[str, float], colour: str, *, start: float = 0.0) -> None:
    """The 95 % interval of a gain, drawn from `start`."""
    axes.hlines(y, start + gain["low"], start + gain["high"], color=colour)


def _dashed(axes: Axes, x: float) -> None:
    axes.axvline(x, color=INK, linestyle="--", linewidth=1)
