"""The report's figures in the order of the page, and those of trials and labels.

How the trials learned, and which labels are known; what the blend found is drawn in `imet_ray.reporting.blend_figures`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from imet_ray.reporting import blend_figures
from imet_ray.reporting.pages import COLOURS, INK, Section, Table, canvas, shorten
from imet_ray.reporting.pseudo_label_table import pseudo_labels
from imet_ray.reporting.report_data import ReportData
from imet_ray.reporting.run_status import TrialStatus
from imet_ray.specs import hparams_text

MOST_POINTS = 1000  # that are drawn as shapes; more are drawn as pixels, else a page takes megabytes
BINS = (1, 10, 30, 100, 300)  # training pictures that a label has, at least

POOLED = "Counted over all cells of these labels, out of fold, decoded as the ensemble decodes."


def leaderboard(data: ReportData) -> Section | None:
    """Each variant's best hparams and the score of each fold."""
    if not data.leaderboard:
        return None
    rows = [
        (
            standing.variant,
            standing.mean,
            " ".join(f"{value:.4f}" for _, value in sorted(standing.score.items()))
            + ("" if standing.whole else f" ({len(standing.score)} of {standing.n_folds})"),
            hparams_text(standing.hparams),
        )
        for standing in data.leaderboard
    ]
    return Section(
        "Leaderboard",
        "Each variant's best hparams, the mean over its folds: each fold is scored by a model that never saw it.",
        table=Table(("variant", data.score, "by fold", "hparams"), rows, bar=1),
    )


def learning_curves(data: ReportData) -> Section | None:
    """A curve for each trial, in its variant's colour: the score of the held-out fold after each epoch."""
    shown = [trial for trial in data.trials if trial.rows and trial.spec.variant.name in data.variants]
    if not shown:
        return None
    figure, axes = canvas(3.4)
    many = sum(len(trial.rows) for trial in shown) > MOST_POINTS
    for trial in shown:
        axes.plot(
            [row["epoch"] for row in trial.rows],
            [row["score"] for row in trial.rows],
            marker=".",
            color=variant_colour(trial, data.variants),
            alpha=0.7,
            rasterized=many,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(data.score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    variant_legend(figure, data.variants)
    return Section(
        "Learning curves", f"A line per trial: {data.score} of the held-out fold after each epoch.", figure
    )


def label_frequency(data: ReportData) -> Section | None:
    """Recall of each label against its training pictures, and the score of labels that are about as frequent."""
    counts = data.counts
    if counts is None:
        return None
    recall = counts.hits / np.maximum(counts.true, 1)
    figure, axes = canvas(3.6)
    axes.plot(counts.true, recall, "o", alpha=0.6, color=COLOURS[0], rasterized=len(recall) > MOST_POINTS)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("training pictures with the label")
    axes.set_ylabel("recall, out of fold")
    order = np.argsort(counts.true)
    for place, label in enumerate([*order[:3], *order[-3:]]):
        rare = place < 3  # lines to rare labels go down as a rule, those to frequent ones up
        axes.annotate(
            shorten(data.label_names[label]),
            (counts.true[label], recall[label]),
            xytext=(0.02 if rare else 0.98, 0.66 - 0.08 * place if rare else 0.06 + 0.08 * place),
            textcoords="axes fraction",
            horizontalalignment="left" if rare else "right",
            arrowprops={"arrowstyle": "-", "alpha": 0.3, "color": INK},
            fontsize="small",
        )
    rows = []
    for low, high in zip(BINS, [*BINS[1:], None], strict=True):
        inside = counts.true >= low if high is None else (counts.true >= low) & (counts.true < high)
        rows.append((f"{low}+" if high is None else f"{low}–{high - 1}", inside))
    rows.append(("all labels", counts.true > 0))
    title = f"{data.score} by label frequency"
    caption = f"A dot per label: its recall. The table has {data.score}. {POOLED}"
    return Section(title, caption, figure, _label_table("training pictures", rows, data))


def label_groups(data: ReportData) -> Section | None:
    """The score of each label group."""
    names = sorted(set(data.label_groups))
    if len(names) < 2:
        return None
    of_label = np.array(data.label_groups)
    rows = [(shorten(name) or "without a group", of_label == name) for name in names]
    return Section(f"{data.score} by label group", POOLED, table=_label_table("group", rows, data))


def variant_colour(trial: TrialStatus, variants: Sequence[str]) -> str:
    """The colour of a trial's variant; one that was taken out of the search space has the last."""
    name = trial.spec.variant.name
    return COLOURS[variants.index(name) % len(COLOURS)] if name in variants else COLOURS[-1]


def variant_legend(figure: Figure, variants: Sequence[str]) -> None:
    """Name the variants' colours below the figure."""
    figure.legend(
        [Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=4) for i in range(len(variants))],
        [shorten(name) for name in variants],
        loc="outside lower center",
        ncols=2,
        fontsize="small",
    )


def _label_table(title: str, rows: Sequence[tuple[str, np.ndarray]], data: ReportData) -> Table:
    """Args: rows: a name and its labels, (C,) bool."""
    counts = data.counts
    assert counts is not None
    cells = [
        (
            name,
            counts.score(inside, data.metric),
            int(np.count_nonzero(inside)),
            int(counts.true[inside].sum()),
            int(counts.chosen[inside].sum()),
        )
        for name, inside in rows
        if inside.any()
    ]
    return Table((title, data.score, "labels", "true", "predicted"), cells, bar=1)


# In the order of the page. A new figure is one function and one line here.
FIGURES: dict[str, Callable[[ReportData], Section | None]] = {
    "blend": blend_figures.blend_and_members,
    "methods": blend_figures.methods,
    "gains": blend_figures.gains,
    "weights": blend_figures.weights,
    "correlation": blend_figures.correlation,
    "threshold": blend_figures.threshold_curve,
    "greedy": blend_figures.greedy,
    "budget": blend_figures.budget,
    "leaderboard": leaderboard,
    "pseudo-labels": pseudo_labels,
    "curves": learning_curves,
    "frequency": label_frequency,
    "groups": label_groups,
}
