"""The report: one page that needs nothing but itself, and says what the artefacts say."""

import base64
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hostile_run import HOSTILE, blended, pictures_at, train_all, with_findings
from html_page import Page
from PIL import Image

from imet_ray.data.catalog import Catalog
from imet_ray.prediction.ensemble import Ensemble, blend_oof
from imet_ray.prediction.metrics import METRICS
from imet_ray.reporting import report_page as report
from imet_ray.reporting.error_analysis import confident_mistakes
from imet_ray.reporting.pages import INK
from imet_ray.reporting.report_page import (
    MISTAKES,
    SHOWN_LABELS,
    SHOWN_MISTAKES,
    SHOWN_PICTURES,
    write_findings,
    write_report,
)
from imet_ray.storage.results import standings
from imet_ray.storage.run_directory import RunDirectory

F2 = METRICS["f2"]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Catalog:
    return pictures_at(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, catalog) -> RunDirectory:
    store = RunDirectory(tmp_path_factory.mktemp("runs") / "r & d")
    train_all(store, catalog)
    return store


@pytest.fixture(scope="module")
def ensemble(store) -> Ensemble:
    return blended(store)


@pytest.fixture(scope="module")
def full(store, catalog, ensemble) -> Ensemble:
    return with_findings(ensemble, store, catalog)


@pytest.fixture(scope="module")
def probs() -> np.ndarray:
    """Of the test pictures: (13, 4) float32."""
    return np.random.default_rng(2).random((13, 4), dtype=np.float32)


def page_of(store, ensemble, catalog, probs, *, variants=("one", "two"), oof=None) -> Page:
    place = store.ensemble("blend")
    write_report(place, ensemble, store, catalog, standings(store, variants), probs, oof=oof)
    return Page(place.report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(store, ensemble, catalog, probs) -> Page:
    return page_of(store, ensemble, catalog, probs)


@pytest.fixture(scope="module")
def full_page(store, full, catalog, probs) -> Page:
    return page_of(store, full, catalog, probs)


def images(page, kind) -> list[bytes]:
    prefix = f"data:image/{kind};base64,"
    found = [src.removeprefix(prefix) for src in page.loaded if src.startswith(prefix)]
    return [base64.b64decode(data, validate=True) for data in found]


def photographs_of(page) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)) for data in images(page, "jpeg")]


def figures_of(page) -> list[str]:
    return [data.decode() for data in images(page, "svg+xml")]


BLEND = [
    "The blend and its members",
    "Methods and decoders",
    "Fitted weights against uniform ones",
    "Weights, and what each member is worth",
    "Correlation of the members' errors",
    "Threshold curve",
    "Greedy selection",
    "Score against seconds",
]
TRIALS = ["Leaderboard", "Learning curves"]
LABELS = ["F2 by label frequency", "F2 by label group"]
WRONG = [*MISTAKES]
TEST = ["Test pictures"]
SHOWN_WRONG = 2 * 8  # two per label and kind


def test_the_page_loads_nothing_but_the_pictures_that_it_carries(full_page):
    figures = figures_of(full_page)
    photographs = [picture.size for picture in photographs_of(full_page)]
    assert len(figures) == len(BLEND) + 2  # learning curves and label frequency; the rest are tables
    assert photographs == [(12, 9)] * (SHOWN_WRONG + SHOWN_PICTURES)
    assert len(full_page.loaded) == len(figures) + len(photographs)
    assert not {"link", "iframe", "object"} & set(full_page.elements)


def test_the_page_opens_with_the_score_the_gain_and_a_picture(full_page, full):
    report = full.report
    gain = report["chosen"]["over_single"]
    opening = full_page.text.partition("Methods and decoders")[0]
    for figure in (f"{report['nested']:.4f}", *(f"{gain[key]:+.4f}" for key in ("mean", "low", "high"))):
        assert figure in opening
    assert opening.index(f"{report['nested']:.4f}") < opening.index(BLEND[0])


def test_each_figure_takes_the_colour_of_the_text(full_page):
    for figure in figures_of(full_page):
        assert "currentColor" in figure
        assert INK not in figure
        assert "prefers-color-scheme" in figure


def test_each_section_has_its_line_of_explanation(full_page):
    assert full_page.elements.count("h2") == len(full_page.headings)
    for heading, text in zip(full_page.headings, full_page.explanations, strict=True):
        assert text, heading


def test_the_sections_stand_in_order(full_page):
    assert full_page.headings == [*BLEND, *TRIALS, *LABELS, *WRONG, *TEST]


def test_an_ensemble_of_an_earlier_version_has_a_page_too(page):
    assert page.headings == [*TRIALS, *LABELS, *WRONG, *TEST]
    assert len(figures_of(page)) == 2
    assert f"nested F2 0.4321 {HOSTILE}" in page.text


def test_an_ensemble_that_says_nothing_of_its_worth_has_a_page_too(store, ensemble, catalog):
    page = page_of(store, ensemble.model_copy(update={"report": {}}), catalog, None)
    assert page.headings == [*TRIALS, *LABELS, *WRONG]


def test_the_verdict_stands_before_the_table(full_page):
    verdict = full_page.text.index(f"it is worth it {HOSTILE}")
    assert (
        verdict < full_page.text.index(f"optimistic {HOSTILE}") < full_page.text.index("Methods and decoders")
    )


def test_the_members_of_each_budget_are_listed(full_page):
    assert ["10", "0.5000", f"one, two {HOSTILE}"] in full_page.rows


def counted(catalog, ensemble, oof, inside) -> list[str]:
    """F2, labels, true and predicted cells of some labels, as the tables say them."""
    chosen = ensemble.decoder.decode(oof)[:, inside]
    truth = catalog.labels[:, inside].astype(bool)
    f2 = F2.of_counts((chosen & truth).sum(), truth.sum(), chosen.sum())
    return [f"{f2:.4f}", *(f"{count:,}" for count in (inside.sum(), truth.sum(), chosen.sum()))]


def test_f2_is_pooled_by_frequency(page, store, ensemble, catalog):
    oof = blend_oof(ensemble, store, catalog.train.ids)
    counts = catalog.labels.sum(axis=0)
    bins = {"1–9": counts < 10, "10–29": counts >= 10, "all labels": counts > 0}
    expected = [
        [name, *counted(catalog, ensemble, oof, inside)] for name, inside in bins.items() if inside.any()
    ]
    assert [row for row in page.rows if row[0] in bins] == expected


def test_f2_is_pooled_by_group_where_there_are_two(page, store, ensemble, catalog):
    oof = blend_oof(ensemble, store, catalog.train.ids)
    groups = np.array(catalog.label_groups)
    for name in sorted(set(catalog.label_groups)):
        row = [name or "without a group", *counted(catalog, ensemble, oof, groups == name)]
        assert row in page.rows
    alone = page_of(store, ensemble, replace(catalog, label_groups=("",) * 4), None)
    assert "F2 by label group" not in alone.headings


def test_mistakes_are_shown_with_label_probability_and_picture(page, store, ensemble, catalog):
    oof = blend_oof(ensemble, store, catalog.train.ids)
    expected = []
    missing, unseen = confident_mistakes(oof, catalog.labels, SHOWN_MISTAKES)
    for mistake in [*missing, *unseen]:
        has = ", ".join(catalog.label_names[c] for c in np.flatnonzero(catalog.labels[mistake.row]))
        name = f"{catalog.label_names[mistake.label]} {mistake.probability:.4f}"
        expected.append(f"{name}{catalog.train.ids[mistake.row]}labelled: {has}")
    assert page.captions[:SHOWN_WRONG] == expected


def test_of_many_labels_of_a_picture_some_are_named(store, ensemble, catalog):
    rng = np.random.default_rng(0)
    c = SHOWN_LABELS + 3
    many = replace(
        catalog,
        label_ids=tuple(map(str, range(c))),
        label_names=tuple(f"n{i}" for i in range(c)),
        labels=np.ones((15, c), np.uint8),
        label_groups=("",) * c,
    )
    page = page_of(store, ensemble, many, None, oof=rng.random((15, c), dtype=np.float32))
    assert page.captions[0].endswith(f", n{SHOWN_LABELS - 1}, …")
    assert "Probable labels that the picture lacks" not in page.text


def test_predictions_that_are_at_hand_are_not_read_again(store, ensemble, catalog, page, monkeypatch):
    oof = blend_oof(ensemble, store, catalog.train.ids)
    monkeypatch.setattr(report, "blend_oof", None)
    assert page_of(store, ensemble, catalog, None, oof=oof).rows == page.rows


def test_without_another_tools_predictions_the_rest_is_there(store, full, catalog):
    outside = full.members[1].model_copy(update={"trials": [], "checkpoints": []})
    mixed = full.model_copy(update={"members": [full.members[0], outside]})
    page = page_of(store, mixed, catalog, None)
    assert page.headings == [*BLEND, *TRIALS]
    assert "a member is external" in page.text


def test_a_blend_without_a_run_has_its_findings(store, full):
    place = store.ensemble("findings")
    place.root.mkdir(parents=True)
    write_findings(place, full.name, full.report)
    page = Page(place.report.read_text(encoding="utf-8"))
    assert page.headings == BLEND
    assert full.name in page.text


def test_a_blend_without_a_leaderboard_has_no_empty_figures(store, full, catalog):
    page = page_of(store, full, catalog, None, variants=())
    assert page.headings == [*BLEND, *LABELS, *WRONG]


def test_names_are_shown_as_they_are_and_never_read_as_markup(page, catalog):
    assert page.elements.count("script") == 1  # the page's own, which sorts tables
    assert f"r & d: blend {HOSTILE}" in page.text
    for name in catalog.label_names:
        assert any(text.startswith(f"{name} 0.") for _, text in page.spans)
    assert re.search(rf"not found: \w+ {re.escape(HOSTILE)}", page.text)


SHOWN = np.linspace(0, 12, SHOWN_PICTURES).astype(int)  # of 13 pictures


def test_with_test_labels_each_label_is_right_or_wrong_or_not_found(page, ensemble, catalog, probs):
    decoded = ensemble.decoder.decode(probs)[SHOWN]
    truth, names = catalog.test_labels[SHOWN].astype(bool), catalog.label_names
    for kind, mask in (("hit", decoded & truth), ("miss", decoded & ~truth)):
        expected = [f"{names[c]} {probs[SHOWN[i], c]:.2f}" for i, c in zip(*np.nonzero(mask), strict=True)]
        found = [text for found, text in page.spans[2:] if found == kind]  # the first two are the legend
        assert sorted(found) == sorted(expected)
        assert expected
    missed = [", ".join(names[c] for c in np.flatnonzero(row)) for row in truth & ~decoded if row.any()]
    shown = page.text.split("not found: ")[1:]
    assert [text[: len(m)] for text, m in zip(shown, missed, strict=True)] == missed


def test_without_test_labels_nothing_is_called_right_or_wrong(store, ensemble, catalog, probs):
    page = page_of(store, ensemble, replace(catalog, test_labels=None), probs)
    assert [kind for kind, _ in page.spans] == [""] * ensemble.decoder.decode(probs)[SHOWN].sum()
    assert "green: right" not in page.text
    assert "not found" not in page.text


def test_without_test_predictions_and_with_an_unused_label_the_rest_is_there(store, ensemble, catalog):
    labels = catalog.labels * np.array([0, 1, 1, 1], np.uint8)
    page = page_of(store, ensemble, replace(catalog, labels=labels), None)
    assert len(figures_of(page)) == 2
    assert page.headings == [*TRIALS, *LABELS, *WRONG]


def test_dollar_signs_in_a_name_are_no_formula(store, ensemble, catalog):
    names = tuple(f"coin of $1_$ {name[:9]}" for name in catalog.label_names)
    page = page_of(store, ensemble, replace(catalog, label_names=names, label_groups=names), None)
    assert any(names[0][:16] in figure for figure in figures_of(page))
    assert {row[0] for row in page.rows} >= set(names)


def test_names_in_another_script_are_shown(store, ensemble, catalog):
    names = ("日本語", "عربي", "ελληνικά", "🎨")
    page = page_of(store, ensemble, replace(catalog, label_names=names, label_groups=names), None)
    assert {row[0] for row in page.rows} >= set(names)
    assert any(names[0] in figure for figure in figures_of(page))


def test_figures_are_pictures_though_a_name_holds_control_characters(store, ensemble, catalog):
    names = ("bell\x07", "sea\x1b[31m", "page\x0c", "no\ufffe")
    page = page_of(store, ensemble, replace(catalog, label_names=names, label_groups=names), None)
    for figure in figures_of(page):
        ElementTree.fromstring(figure)
