"""2019's level-1 files beside a run's own members: written, read back, blended, predicted; or refused in one line."""

import shutil

import numpy as np
import pytest
import yaml

from imet_ray.blending.level1_2019 import is_level1, read_test_member, read_train_member
from imet_ray.commands import sweep as stages
from imet_ray.errors import ConfigError, ImetError
from imet_ray.prediction.ensemble import blend_test, gather_oof, read_ensemble


@pytest.fixture(scope="module")
def written(trained, swept, tmp_path_factory):
    """A folder with both members of the run, of both splits."""
    import blend

    out = tmp_path_factory.mktemp("written") / "level1"
    argv = [*trained.where, "--method", "uniform", "--out", "w", "--write-2019", str(out)]
    assert blend.main(argv) == 0
    return out


@pytest.fixture
def folder(written, tmp_path):
    """A copy that may be harmed."""
    return shutil.copytree(written, tmp_path / "level1")


def first(folder, split, model="a"):
    return next(iter(sorted(folder.glob(f"level1_{split}_{model}_f0_*.npy"))))


def test_what_is_written_is_read_back_as_the_same_probabilities(trained, written):
    run = trained.run
    ensemble = read_ensemble(run.store.ensemble("w"))
    assert np.array_equal(np.load(written / "folds.npy"), run.data.folds)
    for member in ensemble.members:
        trials = [run.store.trial(trial) for trial in member.trials]
        own, _ = gather_oof(trials, run.data.split.ids, member.variant)
        file = first(written, "train", member.variant)
        back = read_train_member("m", file, run.data.split.ids, own.shape[1], run.data.folds)
        assert np.abs(back.probs - own).max() < 1e-6
        alone = ensemble.model_copy(update={"members": [member.model_copy(update={"weight": 1.0})]})
        test = blend_test(alone, run.store, run.catalog.test.ids)
        file = first(written, "test", member.variant)
        assert np.abs(read_test_member("m", file, *test.shape) - test).max() < 1e-6


def test_a_threshold_of_0_decides_as_each_folds_best_threshold_does(trained, written):
    file = first(written, "train")
    threshold = yaml.safe_load((written / f"{file.stem.removeprefix('level1_train_')}.yml").read_text())[
        "threshold"
    ]
    rows = trained.run.data.folds == 0
    back = read_train_member(
        "m", file, trained.run.data.split.ids, np.load(file).shape[1], trained.run.data.folds
    )
    assert np.array_equal(np.load(file) > 0, back.probs[rows] > np.float32(threshold))


def test_a_2019_model_joins_a_blend_and_its_submission(trained, written, call_blend, monkeypatch):
    run = trained.run
    argv = ["--members", "b", "--member", f"old={first(written, 'train')}", "--method", "uniform"]
    code, _, err = call_blend(*trained.where, "--out", "joined", *argv)
    assert code == 0, err
    files = [f"old={first(written, 'test')}"]
    ensemble = read_ensemble(run.store.ensemble("joined"))
    with pytest.raises(ConfigError, match="--member names one member twice: give one file for each"):
        stages._external_predictions(run, ensemble, files * 2)
    given = stages._external_predictions(run, ensemble, files)
    monkeypatch.setattr(stages, "predict_test", lambda *args: 0)
    stages._predict_test(run, "joined", None, external=given)
    with np.load(run.store.ensemble("joined").test) as file:
        both = read_ensemble(run.store.ensemble("w")).model_copy(update={"scale": ensemble.scale})
        assert np.abs(file["probs"] - blend_test(both, run.store, run.catalog.test.ids)).max() < 2e-3


def test_only_their_names_are_level_1_files(tmp_path):
    assert is_level1(tmp_path / "level1_train_2b_f0_e14_0.5975.npy")
    assert not is_level1(tmp_path / "oof.npz")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda file, yml: yml.unlink(), "beside it does not say which: put that file there"),
        (lambda file, yml: yml.write_text("[1]"), "does not say which"),
        (lambda file, yml: yml.write_text("threshold: 3"), "gives no probabilities"),
        (lambda file, yml: file.unlink(), "is missing: check the path"),
        (lambda file, yml: file.write_bytes(b"x"), "cannot be read"),
        (lambda file, yml: np.save(file, np.zeros((2, 2))), "must have numbers of shape"),
        (lambda file, yml: np.save(file, np.load(file) * np.nan), "gives no probabilities"),
        (lambda file, yml: shutil.copy(file, str(file).replace("_f0_e", "_f0_e9")), "two files of fold 0"),
        (lambda file, yml: shutil.copy(file, str(file).replace("_f0_", "_f7_")), r"the folds \[0, 1, 2, 7\]"),
    ],
)
def test_what_cannot_be_used_is_one_line(trained, folder, harm, expected):
    file = first(folder, "train")
    n_labels = np.load(file).shape[1]
    harm(file, folder / f"{file.stem.removeprefix('level1_train_')}.yml")
    with pytest.raises(ImetError, match=expected) as error:
        read_train_member("m", file, trained.run.data.split.ids, n_labels, trained.run.data.folds)
    assert "\n" not in str(error.value)


def test_a_file_of_the_other_split_is_refused(trained, written):
    with pytest.raises(ImetError, match="here it takes a file level1_test_MODEL"):
        read_test_member("m", first(written, "train"), 20, 3)
