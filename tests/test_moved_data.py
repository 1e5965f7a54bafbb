"""A run's data that moved are found by --data; other data are refused, or begin it anew with the old folds."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import blend
import launch
from imet_ray.commands.setup import Run, reopen
from imet_ray.data.catalog import earlier_digest
from imet_ray.data.sources import demo
from imet_ray.errors import ConfigError, StoreError
from imet_ray.storage.files import write_json
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import Runs
from kernel_builder import __main__ as kernel_builder

SPACE = (
    "n_folds: 3\nbase: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1}\n"
    "variants: [{name: a}]\n"
)


class Here:
    """A folder with a data directory, and a run `r` of it."""

    def __init__(self, folder: Path) -> None:
        self.data, self.store = folder / "data", RunDirectory(folder / "runs" / "r")
        self.space, self.cache = folder / "space.yml", Cache(folder / "cache")
        self.where = ["--name", "r", "--runs", str(folder / "runs"), "--cache", str(self.cache.root)]

    def train(self, *options: str) -> int:
        argv = [
            "--train",
            "--variant",
            "a",
            "--fold",
            "0",
            "--space",
            str(self.space),
            "--data",
            str(self.data),
        ]
        return launch.main([*argv, *self.where, *options])

    def reopen(self, at: Path | None = None) -> Run:
        return reopen(Runs(self.store.root.parent), "r", self.cache, at=str(at) if at else None)

    def change(self, *, add: tuple[str, ...] = (), remove: int = 0) -> None:
        """Add training pictures, copies of a test picture each with another last byte; remove the first ones."""
        table = pd.read_csv(self.data / "train.csv", dtype=str)
        table = table[remove:]
        source = sorted((self.data / "test").iterdir())[0]
        for name in add:
            (self.data / "train" / f"{name}{source.suffix}").write_bytes(source.read_bytes() + name.encode())
            table.loc[len(table) + 100] = [name, table["attribute_ids"].iloc[0]]
        table.to_csv(self.data / "train.csv", index=False)

    def folds(self, store: RunDirectory | None = None) -> dict[str, int]:
        table = pd.read_csv((store or self.store).folds, dtype={"id": str})
        return dict(zip(table["id"], table["fold"], strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    demo.generate(folder / "data", n_images=40, n_test=5, seed=1)
    (folder / "space.yml").write_text(SPACE)
    assert Here(folder).train() == 0
    return folder


@pytest.fixture
def here(made, tmp_path) -> Here:
    found = Here(shutil.copytree(made, tmp_path / "here"))
    text = found.store.experiment.read_text()
    found.store.experiment.write_text(text.replace(str(made), str(tmp_path / "here")))
    return found


def test_data_that_moved_are_taken_where_they_lie_now(here, tmp_path):
    here.data.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=f"no longer at {here.data}: say with --data where they lie now"):
        here.reopen()
    assert here.reopen(tmp_path / "moved").catalog.root == tmp_path / "moved"


def test_a_run_goes_on_with_data_that_moved(here, tmp_path):
    written = {trial.trial_id: trial.result.stat().st_mtime_ns for trial in here.store.trials()}
    here.data = here.data.rename(tmp_path / "moved")
    assert here.train() == 0
    assert {trial.trial_id: trial.result.stat().st_mtime_ns for trial in here.store.trials()} == written
    assert here.reopen().catalog.root == tmp_path / "moved"


def test_data_with_other_bytes_are_refused_in_one_line(here, tmp_path):
    other = shutil.copytree(here.data, tmp_path / "other")
    picture = sorted((other / "train").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    with pytest.raises(
        StoreError, match=r"holds other data .*\(pictures or labels are others\): say with --data"
    ) as error:
        here.reopen(other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (launch.main, ["--oof"]),
        (launch.main, ["--predict", "blend"]),
        (blend.main, []),
        (kernel_builder.main, ["blend", "--out", "kernel", "--user", "me"]),
    ],
)
def test_every_stage_of_a_run_takes_its_data_and_checks_them(here, tmp_path, capsys, monkeypatch, main, argv):
    monkeypatch.chdir(tmp_path)
    here.data.rename(tmp_path / "moved")
    assert main([*argv, *here.where]) == 1
    assert "say with --data where they lie now" in capsys.readouterr().err
    main([*argv, *here.where, "--data", str(tmp_path / "moved")])
    assert "data" not in capsys.readouterr().err  # it goes on, and has other things to say
    table = tmp_path / "moved/train.csv"
    table.write_text(table.read_text().rstrip().rpartition("\n")[0])
    assert main([*argv, *here.where, "--data", str(tmp_path / "moved")]) == 1
    assert "holds other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"add": ("x", "y")}, "pictures: 2 new"),
        ({"add": ("x",), "remove": 1}, "pictures: 1 new, 1 gone"),
    ],
)
def test_more_data_are_refused_with_the_ways_out(here, capsys, change, how):
    here.change(**change)
    assert here.train() == 1
    error = capsys.readouterr().err
    assert (
        f"was begun with other data ({how}): choose another --name, or --extend: new pictures get folds"
        in error
    )
    assert error.count("\n") == 1


def test_extend_keeps_the_folds_of_old_pictures_and_begins_new_trials(here, capsys):
    before, trials = here.folds(), {trial.trial_id for trial in here.store.trials()}
    here.change(add=("x", "y"), remove=1)
    assert here.train("--extend") == 0
    assert "extend  pictures: 2 new, 1 gone: the old run is kept as" in capsys.readouterr().out
    after = here.folds()
    assert len(before.keys() - after.keys()) == 1
    assert after.keys() - before.keys() == {"x", "y"}
    assert after["x"] == after["y"]  # other bytes, the same pixels
    assert all(after[name] == fold for name, fold in before.items() if name in after)
    kept = next(path for path in here.store.root.parent.iterdir() if path != here.store.root)
    assert here.folds(RunDirectory(kept)) == before
    assert not trials & {trial.trial_id for trial in here.store.trials()}
    assert here.train("--extend") == 0  # nothing is new: it goes on
    assert len(list(here.store.root.parent.iterdir())) == 2


def test_a_given_folds_file_is_extended_in_a_run_of_another_name(here, capsys):
    before = here.folds()
    here.change(add=("x",))
    assert here.train("--extend", "--folds", str(here.store.folds), "--name", "s") == 0
    after = here.folds(RunDirectory(here.store.root.with_name("s")))
    assert after == before | {"x": after["x"]}


def test_extend_with_another_number_of_folds_leaves_the_old_run(here, capsys):
    here.change(add=("x",))
    assert here.train("--extend", "--folds", "4") == 1
    assert "was begun with 3 folds, not 4" in capsys.readouterr().err
    assert here.store.experiment.exists()
    assert len(list(here.store.root.parent.iterdir())) == 1


def test_a_run_of_an_earlier_version_finds_its_data_by_names_and_sizes(here):
    experiment = here.reopen().experiment
    earlier = experiment.model_copy(update={"data_digest": earlier_digest(here.reopen().catalog)})
    write_json(here.store.experiment, earlier.model_dump(mode="json"))
    assert here.reopen().data.split.digest == experiment.data_digest
