"""Each kind of thing that people add has one registry: one of each is added here from outside, and run."""

import json

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from obstore.store import MemoryStore
from PIL import Image

import launch
from imet_ray.data import augmentation, crops, formats, views
from imet_ray.data.catalog import Table, Tables
from imet_ray.data.csv_tables import Problem
from imet_ray.data.picture_names import picture_files
from imet_ray.errors import ConfigError
from imet_ray.space_file import read_space
from imet_ray.storage import object_store
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.files import write_json, write_text
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import runs_at
from imet_ray.training import kept_weights, losses, schedules
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial


class Halved(schedules.Schedule):
    """Half of the rate from the second epoch on."""

    def __init__(self, optimizer, recipe, *, total, warmup):
        self.optimizer, self.lr, self.half = optimizer, recipe.lr, total // recipe.epochs

    def before_update(self, update):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr / 2 if update >= self.half else self.lr


def squared_error(weight):
    return lambda logits, targets: weight * ((logits.sigmoid() - targets) ** 2).mean()


def grey(calls):
    def augmentations():
        calls.append("grey")
        return [A.ToGray(p=1.0)]

    return augmentations


def corner(calls):
    def crop(image, how, numbers):
        calls.append("corner")
        return np.ascontiguousarray(image[: how.size, : how.size])

    return crop


def upside_down(calls):
    def view(image, size):
        calls.append("upside-down")
        return views.VIEWS["centre"](image, size)[::-1]

    return view


def first_epoch(calls):
    class First(kept_weights.Keep):
        at_once = True

        def kept(self, history):
            calls.append("first")
            return history[0]

    return First


KINDS = {  # what is added: its registry, and the setting that names it
    "loss": (losses.LOSSES, lambda calls: (squared_error, 2.0), {"loss": "mine"}),
    "schedule": (schedules.SCHEDULES, lambda calls: Halved, {"schedule": "mine"}),
    "augmentation": (augmentation.PRESETS, grey, {"augmentation": "mine"}),
    "keep": (kept_weights.KEEPS, first_epoch, {"keep": "mine"}),
    "crop": (crops.CROPS, corner, {"crop": "mine"}),
    "view": (views.VIEWS, upside_down, {"views": ["mine", "centre"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_recipe_names_is_one_entry_in_one_registry(kind, monkeypatch, tmp_path, tiny_data, make_spec):
    registry, make, setting = KINDS[kind]
    calls = []
    space = tmp_path / "space.yml"
    base = {"architecture": "test_resnet", "weights": "none", "image_size": 32, "epochs": 2, "lr": 0.003}
    space.write_text(f"variants: [{ {'name': 'a'} | base | setting }]\n")
    with pytest.raises(ConfigError, match="line 1: unknown .* 'mine'"):
        read_space(space, check=check_recipe)

    monkeypatch.setitem(registry, "mine", make(calls))
    variant = read_space(space, check=check_recipe).variants[0]
    spec = make_spec().model_copy(update={"variant": variant})
    trial = RunDirectory(tmp_path).trial(spec.trial_id)
    rates = []
    result = train_trial(
        spec,
        tiny_data,
        trial,
        device=torch.device("cpu"),
        report=lambda metrics: rates.append(metrics["lr"]),
    )
    assert result.status == "complete"
    assert np.isfinite(result.score)
    if kind == "schedule":
        assert rates == [0.003, 0.0015]
    elif kind != "loss":
        assert calls


def test_a_report_figure_is_one_function_and_one_line(tmp_path, monkeypatch):
    from imet_ray.reporting.pages import Section, canvas
    from imet_ray.reporting.report_figures import FIGURES
    from imet_ray.reporting.report_page import write_findings
    from imet_ray.storage.run_directory import RunDirectory

    def one_dot(data):
        figure, axes = canvas(1)
        axes.plot([1], [1], "o")
        return Section(f"A dot for {data.score}", "It says nothing.", figure)

    monkeypatch.setitem(FIGURES, "dot", one_dot)
    place = RunDirectory(tmp_path / "run").ensemble("blend")
    place.root.mkdir(parents=True)
    write_findings(place, "blend", {})
    page = place.report.read_text()
    assert "<h2>A dot for F2</h2>\n<p>It says nothing.</p>" in page
    assert 'alt="A dot for F2" src="data:image/svg+xml;base64,' in page


def test_a_status_exporter_is_one_entry_and_has_its_flag(tmp_path, monkeypatch, capsys):
    import launch
    from imet_ray.reporting.exports import EXPORTERS, Exporter

    told = []

    def write(store):
        told.append(store.root.name)
        return 2, 3

    exporter = Exporter("a list of trials", write, place=lambda store: "here", hint=lambda store: "look")
    monkeypatch.setitem(EXPORTERS, "listing", exporter)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "experiment.json").write_text("{}")
    assert launch.main(["--listing", "--runs", str(tmp_path)]) == 0
    assert told == ["r"]
    assert capsys.readouterr().out == "2 trials written, 1 were there: here\nlook\n"
    assert launch.main(["--listing", "--serve", "--runs", str(tmp_path)]) == 1
    assert "--serve has no meaning for --listing" in capsys.readouterr().err


class OneJson:
    """A format of one file: `labelled.json` has the labels of each picture, and `pictures/` the pictures."""

    def recognises(self, root):
        return (root / "labelled.json").exists()

    def read(self, root, problems):
        labels = json.loads((root / "labelled.json").read_text())
        rows = pd.DataFrame(
            {"id": labels.keys(), "attribute_ids": map(" ".join, labels.values())}, dtype=object
        )
        if rows["id"].eq("").any():
            problems.append(Problem("a picture without a name", "labelled.json", None, ""))
        return Tables(
            train=Table("labelled.json", rows[rows["id"] != ""]),
            labels=None,
            test=Table("labelled.json", rows.iloc[:0]),
            test_labels=None,
            train_pictures=picture_files(root / "pictures"),
            test_pictures={},
        )


def test_a_data_format_is_one_class_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(formats.FORMATS, "json", OneJson())
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        Image.new("RGB", (5, 4)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "labelled.json").write_text('{"b": ["sea", "tree"], "a.png": ["sea"]}')
    catalog = formats.read_catalog(tmp_path)
    assert catalog.train.ids == ("b", "a.png")
    assert catalog.label_names == ("sea", "tree")
    assert catalog.labels.tolist() == [[1, 1], [1, 0]]
    assert launch.main(["--check-data", str(tmp_path)]) == 0
    assert "2 pictures" in capsys.readouterr().out
    (tmp_path / "labelled.json").write_text('{"": ["sea"], "c": ["sea"]}')
    assert launch.main(["--check-data", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "a picture without a name" in said
    assert "no picture is called 'c'" in said


def test_an_object_store_is_one_line(monkeypatch, tmp_path):
    memory = MemoryStore()
    kind = object_store.Kind(lambda name, client, retry: memory, "it needs no credentials")
    monkeypatch.setitem(object_store.STORES, "mem", kind)
    object_store.open_bucket.cache_clear()
    here, there = (runs_at("mem://bucket/runs", Cache(tmp_path / node)).run("r") for node in "ab")
    with only_driver(here):
        write_json(here.experiment, {"a": 1}, here.files)
        trial = here.trial("t")
        trial.fetch_all()
        token = trial.acquire()
        for epoch in ("epoch 1", "epoch 2"):
            write_text(trial.last, epoch, trial.files)
    other = there.trial("t")
    other.fetch_all()
    other.check(token)
    assert other.last.read_text() == "epoch 2"
    assert runs_at("mem://bucket/runs", Cache(tmp_path / "b")).open(None).experiment.exists()
    with pytest.raises(ConfigError, match=r"unknown object store 'men://': did you mean 'mem://'\?"):
        runs_at("men://bucket/runs", Cache(tmp_path))
    object_store.open_bucket.cache_clear()


@pytest.fixture
def few_cells(make_members):
    """Members whose cells are few enough to try all that a blend of two can be."""
    return make_members([0.8, 1.2], n=24, c=4)


def every_blend(members, labels, metric) -> float:
    """The best score of two members under any weights and any threshold: all crossings are tried."""
    one, two = (member.probs.astype(np.float64) for member in members)
    best = 0.0
    flat = (two - one).ravel()
    pairs = flat[:, None] - flat
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = (
            -(one.ravel()[:, None] - one.ravel()) / pairs
        )  # shares of `two` at which two cells are equal
    edges = np.unique(np.concatenate([[0, 1], crossings[(crossings > 0) & (crossings < 1)]]))
    for share in (edges[1:] + edges[:-1]) / 2:
        best = max(
            best, metric.best_threshold(((1 - share) * one + share * two).astype(np.float32), labels)[1]
        )
    return best


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_metric_is_one_entry_and_the_blends_search_is_exact_for_it(beta, monkeypatch, few_cells):
    from blends import evaluate

    from imet_ray.blending.disputed_cells import DisputedCells
    from imet_ray.blending.methods import fit
    from imet_ray.prediction.metrics import METRICS, FBeta

    monkeypatch.setitem(METRICS, "mine", FBeta(beta))
    members, labels, folds = few_cells
    values = [member.probs for member in members]
    cells = DisputedCells.build(values, [0.5, 0.5], labels, half_range=0.5, metric="mine")
    found = fit(cells, "line", seed=0)
    assert found.score == pytest.approx(every_blend(members, labels, FBeta(beta)), abs=1e-9)
    report = evaluate(members, labels, folds, methods=["line"], metric="mine", scale="probability")
    assert report.decoder.name in ("threshold", "expected-f2")
    mean = sum(w * value.astype(np.float32) for w, value in zip(report.weights, values, strict=True))
    assert FBeta(beta).score(report.decoder.decode(mean), labels) == pytest.approx(
        report.chosen.own, abs=0.02
    )
    assert f"nested F{beta:g}:" in report.text()


def test_a_metric_that_is_no_f_beta_is_blended_too(monkeypatch, few_cells):
    from blends import evaluate

    from imet_ray.blending.disputed_cells import DisputedCells
    from imet_ray.blending.methods import fit
    from imet_ray.prediction.metrics import METRICS, Metric

    class Jaccard(Metric):
        title = "Jaccard"

        def of_counts(self, hits, true, chosen):
            return hits / np.maximum(true + chosen - hits, 1)

    monkeypatch.setitem(METRICS, "mine", Jaccard())
    members, labels, folds = few_cells
    cells = DisputedCells.build([m.probs for m in members], [0.5, 0.5], labels, half_range=0.5, metric="mine")
    mean = sum(0.5 * member.probs.astype(np.float32) for member in members)
    assert fit(cells, "uniform", seed=0).score == pytest.approx(
        Jaccard().best_threshold(mean, labels)[1], abs=1e-12
    )
    report = evaluate(members, labels, folds, methods=["smooth"], metric="mine")
    assert {row.decoder for row in report.rows} == {"threshold"}  # its expectation is not known
    with pytest.raises(ConfigError, match="'mine' does not know its expectation"):
        evaluate(members, labels, folds, metric="mine", decoders=["expected-f2"])


def test_a_decoder_is_one_class_and_one_line(monkeypatch, few_cells, tmp_path):
    from typing import Literal

    from blends import evaluate

    from imet_ray.blending.blend_run import frozen
    from imet_ray.prediction.decode import DECODERS, SampleDecoder
    from imet_ray.prediction.ensemble import read_ensemble, write_ensemble
    from imet_ray.prediction.metrics import metric_named

    class TopK(SampleDecoder):
        """The k most probable labels."""

        name: Literal["top-k"] = "top-k"
        k: int

        @classmethod
        def fit(cls, probs, labels, metric):
            scores = [metric_named(metric).score(cls(k=k).decode(probs), labels) for k in (1, 2, 3)]
            return cls(k=1 + int(np.argmax(scores)))

        def decode(self, probs):
            return probs >= np.sort(probs, axis=1)[:, [-self.k]]

    monkeypatch.setitem(DECODERS, "top-k", TopK)
    members, labels, folds = few_cells
    report = evaluate(members, labels, folds, methods=["line"], use="line", decoders=["top-k"])
    assert isinstance(report.decoder, TopK)
    place = RunDirectory(tmp_path).ensemble("mine")
    write_ensemble(place, frozen("mine", members, report, list("abcd")))
    again = read_ensemble(place)
    assert again.decoder == report.decoder
    assert again.prefixes[-1].decoder == report.decoder
    assert (again.decoder.decode(members[0].probs).sum(axis=1) >= report.decoder.k).all()


def test_a_blend_method_is_one_function_and_one_line(monkeypatch, few_cells):
    from blends import evaluate

    from imet_ray.blending.methods import METHODS, Method

    def first(objective, start, rng):
        return np.concatenate([np.eye(objective.cells.n_members)[0], start[objective.cells.n_members :]]), ()

    members, labels, folds = few_cells
    with pytest.raises(ConfigError, match="unknown method 'first'"):
        evaluate(members, labels, folds, use="first")
    monkeypatch.setitem(METHODS, "first", Method(first))
    report = evaluate(members, labels, folds, methods=[], use="first")
    assert report.chosen.method == "first"
    assert report.weights == (1.0, 0.0)
    assert report.chosen.own == pytest.approx(report.single.own, abs=0.05)


def test_a_stacker_is_one_function_and_one_line(monkeypatch, few_cells):
    from blends import evaluate

    from imet_ray.blending.stacking import STACKERS
    from imet_ray.prediction.level2 import Packed, PerLabel

    def last(data):
        weights = np.zeros((len(data.probs) + 1, data.labels.shape[1]), np.float32)
        weights[-1] = 1
        return [PerLabel(weights=Packed.of(weights))] * (data.n_folds + 1)

    members, labels, folds = few_cells
    with pytest.raises(ConfigError, match="unknown level 2 'last'"):
        evaluate(members, labels, folds, level2=["last"])
    monkeypatch.setitem(STACKERS, "last", last)
    report = evaluate(members, labels, folds, methods=[], use="last")
    assert report.model.stacker == "last"
    found = report.model.predict({member.name: member.probs for member in members})
    assert found == pytest.approx(members[-1].probs, abs=1e-3)
