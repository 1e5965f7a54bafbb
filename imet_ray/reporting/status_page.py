"""A run as a page that keeps itself fresh, served on loopback from the run directory.

It shows what `run_status` found: the phase, a bar per trial over time on each host, learning curves, the
leaderboard and failures.
"""

import contextlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from imet_ray.errors import ImetError
from imet_ray.prediction.metrics import metric_named
from imet_ray.reporting.pages import Section, canvas, draw_sections, render, shorten
from imet_ray.reporting.report_data import ReportData
from imet_ray.reporting.report_figures import FIGURES, variant_colour, variant_legend
from imet_ray.reporting.run_status import Status, TrialStatus
from imet_ray.units import clock

REFRESH_S = 5
MOST_BARS = 400  # trials that are drawn: the latest
ALPHA = {"complete": 0.9, "runs": 0.9, "stopped": 0.4, "failed": 0.4, "silent": 0.4}


def status_page(status: Status) -> str:
    """The whole page."""
    data = ReportData(
        metric=metric_named(status.experiment.space.metric),
        blend={},
        variants=status.variants,
        leaderboard=status.leaderboard,
        trials=status.trials,
    )
    shared = {name: FIGURES[name] for name in ("curves", "leaderboard")}
    return render(
        "status.html.j2",
        title=f"{status.name}: {status.ended:,} of {status.total:,} trials",
        refresh_s=REFRESH_S,
        status=status,
        left=clock(status.remaining_s) if status.remaining_s is not None else "",
        sections=draw_sections({"bars": _bars}, status) + draw_sections(shared, data),
    )


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
                code = HTTPStatus.INTERNAL_SERVER_ERROR
                text = render("base.html.j2", title="error", refresh_s=REFRESH_S, message=str(error))
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


def _bars(status: Status) -> Section | None:
    """Each trial from the start of its first epoch to the end of its last, in a lane of its host: the slots."""
    trials = [trial for trial in status.trials if trial.rows][-MOST_BARS:]
    if not trials:
        return None
    lanes: list[tuple[str, float]] = []  # host, free from
    placed = []
    for trial in sorted(trials, key=_began):
        host, start = str(trial.rows[-1].get("host", "")), _began(trial)
        end = status.now if trial.state == "runs" else trial.written_at
        free = [i for i, (lane_host, since) in enumerate(lanes) if lane_host == host and since <= start + 1]
        lane = free[0] if free else len(lanes)
        lanes[lane : lane + 1] = [(host, end)]
        placed.append((lane, start, end, trial))
    order = sorted(range(len(lanes)), key=lambda lane: (lanes[lane][0], lane))
    figure, axes = canvas(0.22 * len(lanes) + 1.4)
    origin = min(start for _, start, _, _ in placed)
    for lane, start, end, trial in placed:
        axes.barh(
            order.index(lane),
            (end - start) / 60,
            left=(start - origin) / 60,
            height=0.7,
            color=variant_colour(trial, status.variants),
            alpha=ALPHA[trial.state],
            edgecolor="#888888",
            linewidth=0.5,
        )
    axes.set_yticks(range(len(lanes)), [shorten(lanes[lane][0]) or "?" for lane in order])
    axes.invert_yaxis()
    axes.set_xlabel("minutes")
    variant_legend(figure, status.variants)
    return Section(
        "A bar per trial",
        "From the start of its first epoch to the end of its last. Faint: stopped, failed or silent.",
        figure,
    )


def _began(trial: TrialStatus) -> float:
    """When the trial last started, as far as its epochs tell."""
    first = trial.rows[0]
    return float(first.get("at", trial.written_at) - first["seconds"] - first.get("evaluate_s", 0.0))
