"""The learning-rate finder's page: the loss over the rate, and what it suggests."""

from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator

from imet_ray.reporting.pages import COLOURS, INK, Section, canvas, draw_sections, render


@dataclass(frozen=True)
class RateFigure:
    """What the page shows; the arrays are (n,)."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None  # None: the loss fell nowhere


def rate_page(title: str, found: RateFigure) -> str:
    """The whole page."""
    return render("rate.html.j2", title=title, sections=draw_sections({"curve": _curve}, found))


def _curve(found: RateFigure) -> Section:
    figure, axes = canvas(3.4)
    axes.plot(found.rates, found.losses, color=COLOURS[0], alpha=0.35, label="each update")
    axes.plot(found.rates, found.smoothed, color=COLOURS[0], label="smoothed")
    told = "The loss fell at no rate: set lr by hand."
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color=INK, linestyle=":", label=f"suggestion: {found.suggestion:.1e}")
        told = (
            f"Suggested: lr {found.suggestion:.1e}, a tenth of the rate where the smoothed loss is least. "
            "The ramp ends where the loss diverges."
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.0e}"))
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    low, start = float(found.smoothed.min()), float(found.smoothed[0])
    axes.set_ylim(low - 0.3 * (start - low) - 0.02 * start, start + 0.5 * (start - low) + 0.02 * start)
    axes.legend()
    return Section("Training loss at a rising rate", told, figure)
