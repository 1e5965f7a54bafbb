"""A run as a page that keeps itself fresh, served on loopback from the store alone.

It shows what `imet_ray.reporting.run_status` found: phases, a bar a trial over time on each host, learning curves,
the leaderboard and failures.
"""

import contextlib
import html
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from imet_ray.errors import ImetError
from imet_ray.reporting.html import COLOURS, bar, canvas, drawing, page, paragraph, section, shortened, table
from imet_ray.reporting.run_status import STATES, Status, TrialStatus, short
from imet_ray.units import clock

REFRESH_S = 5
LONGEST = 28  # characters of a name
MOST_BARS = 400  # trials that are drawn: the latest
ALPHA = {"complete": 0.9, "runs": 0.9, "stopped": 0.4, "failed": 0.4, "silent": 0.4}


def status_page(status: Status) -> str:
    """The whole page."""
    counts = [(state, f"{status.count(state):,}") for state in STATES if status.count(state)]
    done = sum(status.count(state) for state in ("complete", "stopped", "failed"))
    left = f"; training takes about {clock(status.left_s)} more" if status.left_s is not None else ""
    parts = [
        f"<meta http-equiv='refresh' content='{REFRESH_S}'>",
        paragraph(status.phase),
        paragraph(f"Driver: {status.driven_by}"),
        section(
            "Trials",
            paragraph(f"{done:,} of {status.wanted:,} have ended{left}."),
            table(("state", "trials"), counts, "lr"),
        ),
    ]
    names = [variant.name for variant in status.experiment.space.variants]
    drawn = [trial for trial in status.trials if trial.rows]
    if status.running():
        rows = [(trial.state, html.escape(status.told(trial))) for trial in status.running()]
        parts.append(section("Not done", table(("state", "trial"), rows, "ll")))
    if drawn:
        title = "A bar a trial"
        parts.append(section(title, drawing(_bars(drawn[-MOST_BARS:], names, status.now), title)))
        title = "Learning curves: F2 of the held-out fold"
        parts.append(section(title, drawing(_curves(drawn, names), title)))
    if status.leaderboard:
        best = [
            (
                html.escape(standing.variant),
                f"{len(standing.score)} of {standing.n_folds}",
                bar(standing.mean),
                html.escape(" ".join(f"{key}={short(value)}" for key, value in standing.hparams.items())),
            )
            for standing in status.leaderboard
        ]
        parts.append(section("Leaderboard", table(("variant", "folds", "F2", "hparams"), best, "lrll")))
    failed = [trial for trial in status.trials if trial.state == "failed"]
    told = [
        (html.escape(f"{trial.spec.variant.name} fold {trial.spec.fold}"), html.escape(trial.reason))
        for trial in failed
    ] + [("damaged", html.escape(what)) for what in status.unreadable]
    if told:
        parts.append(section("Failed", table(("trial", "reason"), told, "ll")))
    return page(f"{status.name}: {done:,} of {status.wanted:,} trials", parts)


def serve(look: Callable[[], Status], port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that answers `/` with the page of this moment; the caller runs it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            code = HTTPStatus.OK
            try:
                text = status_page(look())
            except ImetError as error:
                code, text = HTTPStatus.INTERNAL_SERVER_ERROR, page("error", [paragraph(str(error))])
            body = text.encode()
            with contextlib.suppress(ConnectionError):  # who asked has left
                self.send_response(code)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal is the user's."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _bars(trials: list[TrialStatus], names: list[str], now: float) -> Figure:
    """Each trial from its first epoch's begin to its last one's end, in lanes of its host: the slots."""
    lanes: list[tuple[str, float]] = []  # host, free from
    placed = []
    for trial in sorted(trials, key=_began):
        host, start = str(trial.rows[-1].get("host", "")), _began(trial)
        end = now if trial.state == "runs" else trial.heard
        free = [i for i, (whose, since) in enumerate(lanes) if whose == host and since <= start + 1]
        lane = free[0] if free else len(lanes)
        lanes[lane : lane + 1] = [(host, end)]
        placed.append((lane, start, end, trial))
    order = sorted(range(len(lanes)), key=lambda lane: (lanes[lane][0], lane))
    figure = canvas(0.22 * len(lanes) + 1.4)
    axes = figure.subplots()
    origin = min(start for _, start, _, _ in placed)
    for lane, start, end, trial in placed:
        axes.barh(
            order.index(lane),
            (end - start) / 60,
            left=(start - origin) / 60,
            height=0.7,
            color=_colour(trial, names),
            alpha=ALPHA[trial.state],
            edgecolor="white",
        )
    axes.set_yticks(range(len(lanes)), [shortened(lanes[lane][0], LONGEST) or "?" for lane in order])
    axes.invert_yaxis()
    axes.set_xlabel("minutes; faint: stopped, failed or silent")
    _legend(figure, names)
    return figure


def _curves(trials: list[TrialStatus], names: list[str]) -> Figure:
    figure = canvas(3.4)
    axes = figure.subplots()
    for trial in trials:
        axes.plot(
            [row["epoch"] for row in trial.rows],
            [row["score"] for row in trial.rows],
            marker=".",
            color=_colour(trial, names),
            alpha=0.7,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("F2")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, names)
    return figure


def _legend(figure: Figure, names: list[str]) -> None:
    figure.legend(
        [Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=4) for i in range(len(names))],
        [shortened(name, LONGEST) for name in names],
        loc="outside lower center",
        ncols=2,
        fontsize="small",
        frameon=False,
    )


def _colour(trial: TrialStatus, names: list[str]) -> str:
    name = trial.spec.variant.name  # one that was taken out of the space has the last colour
    return COLOURS[names.index(name) % len(COLOURS)] if name in names else COLOURS[-1]


def _began(trial: TrialStatus) -> float:
    """When its last sitting did, as far as its epochs tell."""
    first = trial.rows[0]
    return float(first.get("at", trial.heard) - first["seconds"] - first.get("evaluate_s", 0.0))
