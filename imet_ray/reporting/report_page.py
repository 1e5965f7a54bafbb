"""The report: the page that a person looks at after a sweep or a blend.

It opens with the score and what the blend gains. Then come the figures of `report_figures`, the most confident
mistakes, and test pictures with their labels.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imet_ray.data.catalog import Catalog
from imet_ray.data.images import read_rgb
from imet_ray.prediction.ensemble import Ensemble, blend_oof
from imet_ray.prediction.metrics import METRICS, Metric, metric_named
from imet_ray.reporting.error_analysis import Mistake, confident_mistakes, count_labels
from imet_ray.reporting.pages import draw_sections, jpeg, render
from imet_ray.reporting.pseudo_label_table import students
from imet_ray.reporting.report_data import ReportData
from imet_ray.reporting.report_figures import FIGURES
from imet_ray.reporting.run_status import Watcher
from imet_ray.storage.checked_read import read_json
from imet_ray.storage.files import write_text
from imet_ray.storage.results import Standing
from imet_ray.storage.run_directory import EnsembleDirectory, RunDirectory

SHOWN_PICTURES = 12
SHOWN_MISTAKES = 12  # of each kind
SHOWN_LABELS = 8  # of a picture with a mistake
SHORT_SIDE = 150  # pixels
MISTAKES = (
    "Probable labels that the picture lacks: likely missing from train.csv",
    "Improbable labels that it has",
)


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
        oof: (N, C) float32 blended out-of-fold probabilities; read if None, unless a member is external.
    """
    if oof is None and all(member.trials for member in ensemble.members):
        oof = blend_oof(ensemble, store, catalog.train.ids)
    notes = []
    if place.half.exists():  # a kernel was built of it
        notes.append(str(dict(read_json(place.half)).get("text", "")))
    if oof is None:
        notes.append("What needs out-of-fold predictions is left out: a member is external.")
    data = ReportData(
        metric=_metric(ensemble.report),
        blend=ensemble.report,
        variants=[standing.variant for standing in found],
        leaderboard=found,
        trials=Watcher(store).trials(time.time())[0],
        counts=count_labels(oof, catalog.labels, ensemble.decoder) if oof is not None else None,
        label_names=catalog.label_names,
        label_groups=catalog.label_groups if oof is not None else (),
        students=students(found, len(catalog.train.ids)),
    )
    page = _page(
        f"{store.root.name}: {ensemble.name}",
        data,
        notes=notes,
        mistakes=_mistakes(oof, catalog) if oof is not None else [],
        pictures=_pictures(ensemble, catalog, test_probs) if test_probs is not None else [],
        judged=catalog.test_labels is not None,
    )
    write_text(place.report, page, place.files)


def write_findings(place: EnsembleDirectory, name: str, report: Mapping[str, Any]) -> None:
    """Write `report.html` of a blend that has no run: what it found, without pictures.

    Args:
        name: of the ensemble.
        report: `BlendReport.to_dict()`.
    """
    write_text(place.report, _page(name, ReportData(_metric(report), report)), place.files)


def _metric(report: Mapping[str, Any]) -> Metric:
    """What the blend was judged by; the report has its title or its name, one of an earlier version neither."""
    known = report.get("metric", "f2")
    by_title = {metric.title: metric for metric in METRICS.values()}
    return by_title.get(known) or metric_named(known)


def _page(
    title: str,
    data: ReportData,
    *,
    notes: Sequence[str] = (),
    mistakes: Sequence[tuple[str, list[dict[str, Any]]]] = (),
    pictures: Sequence[dict[str, Any]] = (),
    judged: bool = False,
) -> str:
    blend = data.blend
    limits = blend.get("limits")  # on the number of labels
    notes = [*([limits["text"]] if limits else []), *notes]
    return render(
        "report.html.j2",
        title=title,
        score=data.score,
        nested=blend.get("nested"),
        gain=data.taken.get("over_single") if len(blend.get("names", ())) > 1 else None,
        words=[*blend.get("verdict", "").splitlines()[:-1], *blend.get("remarks", ()), *notes],
        text="" if blend.get("rows") else blend.get("text", ""),  # the tables say the same
        sections=draw_sections(FIGURES, data),
        mistakes=mistakes,
        pictures=pictures,
        judged=judged,
    )


def _mistakes(oof: np.ndarray, catalog: Catalog) -> list[tuple[str, list[dict[str, Any]]]]:
    """The kinds of mistakes, each with its title."""
    kinds = confident_mistakes(oof, catalog.labels, SHOWN_MISTAKES)
    return [
        (title, [_mistake(mistake, catalog) for mistake in found])
        for title, found in zip(MISTAKES, kinds, strict=True)
        if found
    ]


def _mistake(mistake: Mistake, catalog: Catalog) -> dict[str, Any]:
    names = [catalog.label_names[c] for c in np.flatnonzero(catalog.labels[mistake.row])]
    more = ", …" if len(names) > SHOWN_LABELS else ""
    return {
        "picture": jpeg(read_rgb(catalog.train.files[mistake.row], short_side=SHORT_SIDE)),
        "id": catalog.train.ids[mistake.row],
        "label": catalog.label_names[mistake.label],
        "probability": mistake.probability,
        "labelled": ", ".join(names[:SHOWN_LABELS]) + more,
    }


def _pictures(ensemble: Ensemble, catalog: Catalog, probs: np.ndarray) -> list[dict[str, Any]]:
    """Some test pictures with the labels that the blend gives them; with test labels, which are right."""
    shown = np.linspace(0, len(probs) - 1, min(SHOWN_PICTURES, len(probs))).astype(int)
    names, found = catalog.label_names, []
    for i, chosen in zip(shown, ensemble.decoder.decode(probs[shown]), strict=True):
        truth = None
        if catalog.test_labels is not None and catalog.test_labelled[i]:
            truth = catalog.test_labels[i].astype(bool)
        kinds = [""] * len(names) if truth is None else np.where(truth, "hit", "miss")
        found.append(
            {
                "picture": jpeg(read_rgb(catalog.test.files[i], short_side=SHORT_SIDE)),
                "labels": [(names[c], probs[i, c], kinds[c]) for c in np.argsort(-probs[i]) if chosen[c]],
                "missed": [] if truth is None else [names[c] for c in np.flatnonzero(truth & ~chosen)],
            }
        )
    return found
