"""Datasets by name: the demo is drawn from a seed, whole or not at all."""

import csv
from collections import Counter

import pytest

from imet_ray.data.formats import read_catalog, read_directory
from imet_ray.data.images import read_rgb
from imet_ray.data.sources import demo, resolve_data
from imet_ray.errors import ConfigError

MISSING = 0.4


def contents(root):
    """Every file's bytes."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def table(root, name):
    """Id to set of labels."""
    with (root / name).open() as file:
        return {row["id"]: set(row["attribute_ids"].split()) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "drawn"
    demo.generate(root, n_images=150, n_test=20, seed=1, missing=MISSING)
    return root


def draw_few(root, **how):
    demo.generate(root, **{"n_images": 10, "n_test": 3, "seed": 5} | how)
    return contents(root)


def test_demo_is_a_directory_without_any_problem(drawn):
    reading = read_directory(drawn)
    assert reading.problems == ()
    assert (len(reading.catalog.train.ids), len(reading.catalog.test.ids)) == (150, 20)
    assert reading.catalog.test_labels.sum(axis=1).min() > 0


def test_demo_drops_labels_at_the_asked_rate_and_no_pictures_last_one(drawn):
    kept, complete = table(drawn, "train.csv"), table(drawn, "complete.csv")
    assert list(kept) == list(complete)
    assert all(set() < kept[picture] <= complete[picture] for picture in kept)
    share = sum(map(len, kept.values())) / sum(map(len, complete.values()))
    assert abs(1 - share - MISSING) < 0.06


def test_demo_has_40_labels_3_a_picture_in_a_long_tail(drawn):
    complete = table(drawn, "complete.csv")
    counts = Counter(label for labels in complete.values() for label in labels)
    assert len(read_catalog(drawn).label_ids) == 40
    assert 3 <= counts.total() / len(complete) <= 4.5
    assert sum(n for _, n in counts.most_common(8)) > counts.total() / 2
    assert counts["0"] > 3 * counts["11"]  # cultures
    assert counts["12"] > 5 * counts["39"]  # motifs


def test_demo_pictures_differ_in_shape_and_format(drawn):
    files = read_catalog(drawn).train.files
    shapes = {read_rgb(file).shape for file in files[:40]}
    assert len(shapes) > 30
    assert {h > w for h, w, _ in shapes} == {True, False}
    assert {file.suffix for file in files} == {".png", ".jpg"}


def test_demo_is_the_same_for_one_seed_whoever_draws(tmp_path):
    assert draw_few(tmp_path / "one", workers=1) == draw_few(tmp_path / "two", workers=3)


def test_demo_is_another_for_another_seed(tmp_path):
    one, two = draw_few(tmp_path / "one"), draw_few(tmp_path / "two", seed=6)
    pictures = [{data for name, data in found.items() if "/" in name} for found in (one, two)]
    assert not pictures[0] & pictures[1]


def test_only_training_labels_depend_on_how_many_are_missing(tmp_path):
    few, all_ = draw_few(tmp_path / "few", missing=0.6), draw_few(tmp_path / "all", missing=0.0)
    assert all_["train.csv"] == all_["complete.csv"] != few.pop("train.csv")
    assert few.items() <= all_.items()


def test_a_drawn_demo_is_not_drawn_again(tmp_path, monkeypatch):
    options = "demo:n_images=10,n_test=2,missing=0.5,seed=3"
    root = resolve_data(options, cache=tmp_path)
    monkeypatch.setattr(demo, "draw", None)
    assert resolve_data(options, cache=tmp_path) == root
    assert len(table(root, "train.csv")) == 10


def test_other_options_are_another_directory(tmp_path):
    roots = {resolve_data(f"demo:n_images=10,n_test={n}", cache=tmp_path) for n in (0, 1)}
    assert {len(table(root, "test.csv")) for root in roots} == {0, 1}


def test_a_demo_that_was_broken_off_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    draw, calls = demo.draw, iter(range(100))

    def broken(rng):
        assert next(calls) < 7, "broken off"
        return draw(rng)

    monkeypatch.setattr(demo, "draw", broken)
    with pytest.raises(AssertionError, match="broken off"):
        draw_few(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert draw_few(tmp_path / "demo") == draw_few(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("mising=0.3", "unknown option of demo 'mising': did you mean 'missing'?"),
        ("seed=x", "demo's seed takes a whole number, got 'x'"),
        ("seed", "demo's seed takes a whole number, got ''"),
        ("n_images=10.5", "demo's n_images takes a whole number, got '10.5'"),
        ("missing=true", "demo's missing takes a number, got 'true'"),
        ("n_images=9", "n_images >= 10"),
        ("n_test=-1", "n_test >= 0"),
        ("missing=1", "missing in [0, 1)"),
        ("missing=.nan", "missing"),
        ("n_images=10,seed=-1", "seed"),
        ("seed=[1", "demo's seed takes a whole number"),
        ("n_images=10,seed=1,seed=2", "seed"),
    ],
)
def test_an_option_of_demo_that_cannot_be_meant_is_refused_by_name(tmp_path, options, expected):
    with pytest.raises(ConfigError) as caught:
        resolve_data(f"demo:{options}", cache=tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_other_name_is_a_directory(tmp_path):
    assert resolve_data(str(tmp_path), cache=tmp_path / "cache") == tmp_path.resolve()


@pytest.mark.parametrize("name", ["dmeo", "openclipart:small", "~nobody-here/data", "x" * 300])
def test_a_place_that_is_not_there_is_one_line(tmp_path, name):
    with pytest.raises(ConfigError, match="no data at .*--data demo, --data openclipart, or a directory"):
        resolve_data(name, cache=tmp_path)
