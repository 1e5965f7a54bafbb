"""The blend's command line with the 2019 solution's own files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("quick_lines")


@pytest.fixture
def files_2019(tmp_path) -> list[str]:
    """Two models' level-1 files, three folds each."""
    rng = np.random.default_rng(0)
    folds, labels = np.arange(60) % 3, rng.random((60, 4)) < 0.4
    labels[:, 0] |= ~labels.any(axis=1)
    rows = [f"p{i},{' '.join(map(str, np.flatnonzero(row)))}" for i, row in enumerate(labels)]
    (tmp_path / "train.csv").write_text("\n".join(["id,attribute_ids", *rows]) + "\n")
    np.save(tmp_path / "folds.npy", folds)
    for model, noise in (("good", 0.6), ("bad", 1.4)):
        margins = (np.abs(labels - rng.uniform(0, noise, labels.shape).clip(0, 1)) - 0.5).astype(np.float32)
        for fold in range(3):
            np.save(tmp_path / f"level1_train_{model}_f{fold}_e1_0.5000.npy", margins[folds == fold])
    files = [str(tmp_path / f"level1_train_{model}_f0_e1_0.5000.npy") for model in ("good", "bad")]
    return [*files, "--folds", str(tmp_path / "folds.npy"), "--labels", str(tmp_path / "train.csv")]


def by_their_rule(files_2019: list[str], found: dict) -> float:
    """F2 as that solution's blend computes it: labels where the weighted sum is above 0, and no others."""
    folder = Path(files_2019[-1]).parent
    folds, rows = np.load(folder / "folds.npy"), (folder / "train.csv").read_text().splitlines()[1:]
    truth = np.array([[str(label) in row.partition(",")[2].split() for label in range(4)] for row in rows])
    total = np.zeros(truth.shape)
    for name, weight in zip(("good", "bad"), found["chosen"]["weights"], strict=True):
        for fold in range(3):
            total[folds == fold] += weight * np.load(folder / f"level1_train_{name}_f{fold}_e1_0.5000.npy")
    chosen = total > 0
    hits = (chosen & truth).sum(axis=1)
    return float((5 * hits / (4 * truth.sum(axis=1) + chosen.sum(axis=1))).mean())


def test_the_file_of_2019_is_named_by_the_score_of_its_own_rule_and_ours_stands_beside_it(
    call_blend, files_2019, tmp_path
):
    for file in Path(files_2019[0]).parent.glob("level1_*.npy"):
        np.save(file, np.load(file) - 0.3)  # many pictures have no label above 0
    code, out, err = call_blend("old", *files_2019, "--runs", tmp_path / "runs", "--method", "line")
    assert code == 0, err
    folder = tmp_path / "runs" / "2019" / "ensembles" / "old"
    found = json.loads((folder / "ensemble.json").read_text())["report"]
    theirs = by_their_rule(files_2019, found)
    assert found["chosen"]["own"] == pytest.approx(theirs)
    assert (folder / f"old_val_{theirs:.4f}.yml").exists()
    assert f"own F2 {theirs:.4f} is by the 2019 solution's rule" in out
    ours = float(re.search(r"most probable label instead it is (0\.\d{4})", out)[1])
    assert ours > theirs + 0.01


def test_methods_are_judged_by_the_rule_of_2019(call_blend, files_2019, tmp_path):
    for file in Path(files_2019[0]).parent.glob("level1_*.npy"):
        np.save(file, np.load(file) - 0.3)
    code, out, err = call_blend(
        "old", *files_2019, "--runs", tmp_path / "runs", "--method", "uniform", "--json"
    )
    assert code == 0, err
    found = json.loads(out)  # uniform weights are not fitted, so nested is own
    assert found["chosen"]["nested"] == pytest.approx(by_their_rule(files_2019, found))


def test_an_ensemble_of_2019_is_replaced_by_a_smaller_one_only_if_told_to(call_blend, files_2019, tmp_path):
    how = ["--runs", tmp_path / "runs", "--method", "uniform"]
    assert call_blend("old", *files_2019, *how)[0] == 0
    code, _, err = call_blend("old", files_2019[0], *files_2019[2:], *how)
    assert (code, "the ensemble old has bad, which the new one would lack: say --replace" in err) == (1, True)
    assert call_blend("old", files_2019[0], *files_2019[2:], *how, "--replace")[0] == 0


def test_files_of_2019_become_an_ensemble_and_that_solutions_description_of_it(
    call_blend, files_2019, tmp_path
):
    runs = tmp_path / "runs"
    code, out, err = call_blend("old", *files_2019, "--runs", runs, "--method", "line", "--json")
    assert (code, "Traceback" in err) == (0, False)
    found = json.loads(out)
    assert found["chosen"]["method"] == "line"
    assert any("optimistic" in remark for remark in found["remarks"])
    folder = runs / "2019" / "ensembles" / "old"
    theirs = yaml.safe_load((folder / f"old_val_{by_their_rule(files_2019, found):.4f}.yml").read_text())
    assert [model["weight"] for model in theirs] == found["chosen"]["weights"]
    assert theirs[1]["predicts"] == [f"level1_train_bad_f{fold}_e1_0.5000.npy" for fold in range(3)]
    assert theirs[0]["weight"] > theirs[1]["weight"]
    assert json.loads((folder / "ensemble.json").read_text())["decoder"]["threshold"] == 0
    assert (folder / "report.html").read_text().startswith("<!")


def test_of_an_earlier_ensemble_of_2019_nothing_is_left_and_that_is_said(call_blend, files_2019, tmp_path):
    runs = tmp_path / "runs"
    folder = runs / "2019" / "ensembles" / "old"
    said = []
    for method in ("uniform", "line"):
        code, _, err = call_blend("old", *files_2019, "--runs", runs, "--method", method)
        assert code == 0, err
        said.append("the earlier ensemble old was replaced" in err)
        (folder / "old_val_0.0001.yml").touch()
    assert said == [False, True]
    assert call_blend("old", *files_2019, "--runs", runs, "--method", "line")[0] == 0
    score = by_their_rule(files_2019, json.loads((folder / "ensemble.json").read_text())["report"])
    assert [path.name for path in folder.glob("*.yml")] == [f"old_val_{score:.4f}.yml"]


def test_a_blend_of_2019_is_refused_while_another_process_writes_there(call_blend, files_2019, tmp_path):
    lock = RunDirectory(tmp_path / "runs" / "2019").driver_lock
    lock.parent.mkdir(parents=True)
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-uc", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        code, _, err = call_blend("old", *files_2019, "--runs", tmp_path / "runs", "--method", "uniform")
        other.communicate(b"\n")
    assert code == 1
    assert "is being driven by process" in err


def test_an_ensemble_of_2019_is_no_run(call_blend, files_2019, tmp_path):
    assert call_blend("old", *files_2019, "--runs", tmp_path / "runs", "--method", "uniform")[0] == 0
    code, _, err = call_blend("--runs", tmp_path / "runs")
    assert code == 1
    assert "no run in" in err


def test_a_level1_file_that_is_not_there_is_one_line(call_blend, files_2019, tmp_path):
    Path(files_2019[1].replace("_f0_", "_f2_")).unlink()
    code, _, err = call_blend("old", *files_2019, "--runs", tmp_path / "runs")
    assert code == 1
    assert err.startswith("error: ")
    assert "bad" in err
    assert len(err.splitlines()) == 1
