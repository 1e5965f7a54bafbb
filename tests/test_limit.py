"""A first look at a sample of the data: by label, always the same one, and never taken for the whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import launch
from imet_ray.commands.setup import reopen
from imet_ray.data.catalog import part_of
from imet_ray.data.sample import sample, sample_rows
from imet_ray.data.sources import demo
from imet_ray.prediction.predict import predict_checkpoint
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.storage.runs import Runs

TABLES = st.integers(1, 30).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=n, max_size=n)
)


@given(TABLES, st.integers(1, 40))
def test_a_sample_has_so_many_rows_and_is_the_same_each_time(table, n):
    labels = np.array(table, np.uint8)
    rows = sample_rows(labels, n)
    assert len(rows) == min(n, len(labels))
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == sample_rows(labels, n).tolist()


@given(TABLES, st.integers(8, 40))
def test_a_sample_with_two_pictures_for_each_label_keeps_them_all(table, n):
    labels = np.array(table, np.uint8)
    assert labels[sample_rows(labels, n)].any(0).tolist() == labels.any(0).tolist()


def test_a_sample_keeps_many_more_labels_than_chance_and_common_ones_about_as_common():
    rng = np.random.default_rng(1)
    labels = np.hstack(
        [rng.random((3000, 1)) < 0.5, rng.random((3000, 200)) < 2 / 3000, rng.random((3000, 50)) < 0.03]
    ).astype(np.uint8)
    found = labels[sample_rows(labels, 200)]
    by_chance = labels[rng.permutation(3000)[:200]]
    assert found.any(0).sum() > 1.5 * by_chance.any(0).sum()
    assert 0.4 < found[:, 0].mean() < 0.7


def test_a_part_of_a_catalog_has_its_own_digests_and_all_labels(tiny_catalog):
    part = sample(tiny_catalog, 30)
    assert (len(part.train.ids), len(part.test.ids)) == (30, 20)
    assert part.label_ids == tiny_catalog.label_ids
    assert part.digest != tiny_catalog.digest
    place = {picture: row for row, picture in enumerate(tiny_catalog.train.ids)}
    for i, picture in enumerate(part.train.ids):
        row = place[picture]
        assert part.train.files[i] == tiny_catalog.train.files[row]
        assert part.train.contents[i] == tiny_catalog.train.contents[row]
        assert np.array_equal(part.labels[i], tiny_catalog.labels[row])
    everything = part_of(tiny_catalog, np.arange(90), np.arange(20))
    assert (everything.digest, everything.test_digest) == (tiny_catalog.digest, tiny_catalog.test_digest)


def test_test_pictures_are_sampled_with_their_labels(tiny_catalog):
    part = sample(tiny_catalog, 7)
    rows = [tiny_catalog.test.ids.index(picture) for picture in part.test.ids]
    assert len(rows) == 7
    assert np.array_equal(part.test_labels, tiny_catalog.test_labels[rows])
    assert part.test_digest != tiny_catalog.test_digest


class Here:
    """A data directory of 60 and 10 pictures, and runs of it."""

    def __init__(self, folder: Path, cache) -> None:
        self.folder, self.data, self.cache = folder, folder / "data", cache
        demo.generate(self.data, n_images=60, n_test=10, seed=1)
        (folder / "space.yml").write_text(
            "name: few\nn_folds: 3\nbase: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1}\n"
            f"data: {self.data}\nvariants: [{{name: a}}]\n"
        )
        self.where = ["--runs", str(folder / "runs"), "--cache", str(cache.root)]

    def train(self, *options: object, fold: int = 0) -> int:
        argv = ["--train", "--variant", "a", "--fold", fold, "--space", self.folder / "space.yml"]
        return launch.main([str(option) for option in (*argv, *options)] + self.where)

    def store(self, name: str) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / name)

    def reopen(self, name: str):
        return reopen(Runs(self.folder / "runs"), name, self.cache)


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny_cache) -> Here:
    found = Here(tmp_path_factory.mktemp("limited"), tiny_cache)
    for fold in range(3):
        assert found.train("--limit", 24, fold=fold) == 0
    return found


def test_a_limited_run_has_a_name_of_its_own_says_its_limit_and_has_so_many_pictures(here):
    store = here.store("few-limit24")
    experiment = json.loads(store.experiment.read_text())
    assert experiment["limit"] == 24
    assert len(store.folds.read_text().splitlines()) == 25
    assert len(experiment["label_ids"]) == len(here.reopen("few-limit24").catalog.label_ids)
    assert len({read_spec(trial).data_digest for trial in store.trials()}) == 1


def test_later_stages_find_the_same_sample_again(here, call_blend):
    run = here.reopen("few-limit24")
    assert (len(run.data.split.ids), len(run.catalog.test.ids)) == (24, 10)
    assert {read_spec(trial).data_digest for trial in run.store.trials()} == {run.catalog.digest}
    for trial in run.store.trials():
        rows = run.data.rows(read_spec(trial).fold, held_out=True)
        labels = run.data.label_ids
        cpu = torch.device("cpu")
        predict_checkpoint(trial, run.data.split, rows, path=trial.oof, label_ids=labels, device=cpu)
    code, out, _ = call_blend("--name", "few-limit24", "--method", "uniform", *here.where)
    assert code == 0
    assert "nested F2" in out


def test_the_same_command_goes_on_and_another_limit_does_not(here, capsys):
    assert here.train("--limit", 24) == 0
    for options, now in (((), "no --limit now"), (("--limit", 25), "--limit 25 now")):
        capsys.readouterr()
        assert here.train("--name", "few-limit24", *options) == 1
        err = capsys.readouterr().err
        assert f"was begun with other data (--limit 24 then, {now})" in err
        assert len(err.splitlines()) == 1


def test_a_whole_run_does_not_go_on_as_a_limited_one(here, capsys):
    assert here.train("--name", "whole") == 0
    assert json.loads(here.store("whole").experiment.read_text())["limit"] is None
    assert here.train("--name", "whole", "--limit", 30) == 1
    assert "(no --limit then, --limit 30 now)" in capsys.readouterr().err


def test_a_limit_above_the_data_is_the_whole(here, capsys):
    assert here.train("--limit", 60, "--name", "all") == 0
    experiment = json.loads(here.store("all").experiment.read_text())
    assert experiment["limit"] is None
    assert "limit   " not in capsys.readouterr().out
    assert here.train("--name", "all") == 0


def test_extended_a_limited_run_grows_to_the_whole_and_old_pictures_keep_their_folds(here, capsys):
    assert here.train("--limit", 12, "--name", "grows") == 0
    before = dict(line.split(",") for line in here.store("grows").folds.read_text().split())
    assert here.train("--extend", "--name", "grows") == 0
    after = dict(line.split(",") for line in here.store("grows").folds.read_text().split())
    assert len(after) == 61
    assert before.items() <= after.items()
    assert json.loads(here.store("grows").experiment.read_text())["limit"] is None


@pytest.mark.parametrize(
    ("limit", "code", "expected"),
    [
        ("1", 1, "--limit must be at least n_folds=3, a picture for each fold, got 1"),
        ("0", 2, "must be 1 or more"),
        ("-3", 2, "must be 1 or more"),
        ("many", 2, "--limit"),
        ("2.5", 2, "--limit"),
    ],
)
def test_a_limit_that_cannot_be_is_one_line(here, capsys, limit, code, expected):
    try:
        found = here.train(f"--limit={limit}")
    except SystemExit as stop:
        found = stop.code
    err = capsys.readouterr().err
    assert (found, len(err.splitlines())) == (code, 1)
    assert expected in err


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_given_folds_are_those_of_the_whole_data(here, tmp_path, suffix, capsys):
    ids = [line.split(",")[0] for line in (here.data / "train.csv").read_text().splitlines()[1:]]
    folds, path = np.arange(60) % 4, tmp_path / f"folds.{suffix}"
    if suffix == "npy":
        np.save(path, folds)
    else:
        path.write_text("id,fold\n" + "".join(f"{i},{k}\n" for i, k in zip(ids, folds, strict=True)))
    assert here.train("--limit", 24, "--folds", path, "--name", suffix) == 0
    kept = dict(line.split(",") for line in here.store(suffix).folds.read_text().splitlines()[1:])
    assert len(kept) == 24
    assert all(int(kept[i]) == k for i, k in zip(ids, folds, strict=True) if i in kept)
    if suffix == "npy":
        np.save(path, np.where(np.arange(60) == 59, 3, np.arange(60) % 3))
        assert here.train("--limit", 6, "--folds", path, "--name", "x") == 1
        assert "--limit 6 has no picture of fold 3" in capsys.readouterr().err
