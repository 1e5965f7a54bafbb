"""The report: one page that needs nothing but itself, and says what the artefacts say."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imet_ray.catalog import Catalog, Split
from imet_ray.decode import Decoder, decode
from imet_ray.ensemble import Ensemble, EnsembleMember
from imet_ray.predict import Predictions, write_predictions
from imet_ray.report import SHOWN_PICTURES, write_report
from imet_ray.results import TrialResult, standings, write_result
from imet_ray.specs import TrialSpec, Variant
from imet_ray.store import Store, write_json, write_json_lines

N_FOLDS = 3
HOSTILE = "<script>alert('x')</script> & \"y\""


class Page(HTMLParser):
    """A page taken apart: elements, what they load, the text of the classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.spans: list[tuple[str | None, str]] = []  # class and text
        self._class: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.elements.append(tag)
        self.loaded += [found[key] for key in ("src", "href", "srcset", "data") if key in found]
        self._class = found.get("class") if tag == "span" else None
        if tag == "span":
            self.spans.append((self._class, ""))

    def handle_endtag(self, tag):
        self._class = None

    def handle_data(self, data):
        self.text += data
        if self._class is not None:
            self.spans[-1] = (self._class, self.spans[-1][1] + data)


def trained(store, variant, fold) -> str:
    """A complete trial with its learning curve; its id."""
    spec = TrialSpec(
        variant=Variant(name=variant, architecture="resnet18"),
        hparams={},
        fold=fold,
        n_folds=N_FOLDS,
        seed=0,
        data_digest="data",
        folds_digest="folds",
        pack_short_side=64,
    )
    trial = store.trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))
    write_json_lines(trial.metrics, [{"epoch": e, "f2": 0.1 * e + 0.01 * fold} for e in (1, 2, 3)])
    result = TrialResult(trial_id=spec.trial_id, status="complete", f2=0.3 + 0.01 * fold, expected_f2=0.3)
    write_result(trial, result)
    return spec.trial_id


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Catalog:
    """15 training and 13 test pictures; label names that would be markup if they were not escaped."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    files = tuple(folder / f"{i}.png" for i in range(13))
    for file in files:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(file)
    return Catalog(
        root=folder,
        label_ids=("0", "1", "2", "3"),
        label_names=tuple(f"{name} {HOSTILE}" for name in ("fire", "water", "earth", "air")),
        train=Split(tuple(f"p{i}" for i in range(15)), tuple(Path(f"p{i}.png") for i in range(15))),
        labels=rng.integers(0, 2, (15, 4), np.uint8),
        test=Split(tuple(f.stem for f in files), files),
        test_labels=rng.integers(0, 2, (13, 4), np.uint8),
        digest="data",
        test_digest="test",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory, catalog) -> Store:
    """Two variants, trained and predicted on all folds."""
    store = Store(tmp_path_factory.mktemp("runs") / "r & d")
    rng = np.random.default_rng(1)
    for variant in ("one", "two"):
        for fold in range(N_FOLDS):
            trial = trained(store, variant, fold)
            own = np.array(catalog.train.ids[fold::N_FOLDS])
            probs = rng.random((len(own), 4)).astype(np.float16)
            write_predictions(
                store.trial(trial).oof, Predictions(own, probs, trial, ("centre",), "pictures", 1.0)
            )
    return store


@pytest.fixture(scope="module")
def ensemble(store) -> Ensemble:
    members = []
    for standing in standings(store, ["one", "two"]):
        ids = [standing.trials[fold].trial_id for fold in range(N_FOLDS)]
        settings = {"variant": standing.variant, "weight": 0.5, "threshold": 0.2, "f2": 0.4}
        members.append(EnsembleMember(**settings, trials=ids, checkpoints=ids))
    return Ensemble(
        name=f"blend {HOSTILE}",
        data_digest="data",
        folds_digest="folds",
        label_ids=["0", "1", "2", "3"],
        members=members,
        decoder=Decoder(name="threshold", threshold=0.6),
        report={"text": f"nested F2 0.4321 {HOSTILE}", "nested": 0.4321},
    )


@pytest.fixture(scope="module")
def probs() -> np.ndarray:
    """Of the test pictures: (13, 4) float32."""
    return np.random.default_rng(2).random((13, 4), dtype=np.float32)


def page_of(store, ensemble, catalog, probs) -> Page:
    place = store.ensemble("blend")
    write_report(place, ensemble, store, catalog, standings(store, ["one", "two"]), probs)
    return Page(place.report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(store, ensemble, catalog, probs) -> Page:
    return page_of(store, ensemble, catalog, probs)


def pictures(page, kind) -> list[Image.Image]:
    prefix = f"data:image/{kind};base64,"
    found = [src.removeprefix(prefix) for src in page.loaded if src.startswith(prefix)]
    return [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for data in found]


def test_the_page_loads_nothing_but_the_pictures_that_it_carries(page):
    assert len(pictures(page, "png")) == 3
    assert [picture.size for picture in pictures(page, "jpeg")] == [(12, 9)] * SHOWN_PICTURES
    assert len(page.loaded) == 3 + SHOWN_PICTURES
    assert not {"script", "link", "iframe", "object"} & set(page.elements)


def test_names_are_shown_as_they_are_and_never_read_as_markup(page, catalog):
    assert "script" not in page.elements
    assert f"r & d: blend {HOSTILE}" in page.text
    assert f"nested F2 0.4321 {HOSTILE}" in page.text
    for name in catalog.label_names:
        assert any(text.startswith(f"{name} 0.") for _, text in page.spans)
    assert re.search(rf"not found: \w+ {re.escape(HOSTILE)}", page.text)


SHOWN = np.linspace(0, 12, SHOWN_PICTURES).astype(int)  # of 13 pictures


def test_with_test_labels_each_label_is_right_or_wrong_or_not_found(page, ensemble, catalog, probs):
    decoded = decode(probs, ensemble.decoder)[SHOWN]
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
    assert [kind for kind, _ in page.spans] == [""] * decode(probs, ensemble.decoder)[SHOWN].sum()
    assert "right" not in page.text
    assert "not found" not in page.text


def test_without_test_predictions_and_with_an_unused_label_the_rest_is_there(store, ensemble, catalog):
    labels = catalog.labels * np.array([0, 1, 1, 1], np.uint8)
    page = page_of(store, ensemble, replace(catalog, labels=labels), None)
    assert len(pictures(page, "png")) == len(page.loaded) == 3
    assert "Test pictures" not in page.text
    assert "nested F2 0.4321" in page.text


def test_dollar_signs_in_a_name_are_no_formula(store, ensemble, catalog):
    names = tuple(f"coin of $1_$ {name}" for name in catalog.label_names)
    page = page_of(store, ensemble, replace(catalog, label_names=names), None)
    assert len(pictures(page, "png")) == 3
