"""Building a kernel: the same bytes each time, the number format that the score allows, a verdict on its time."""

import json
import re

import pytest

from kernel_builder import build as build_module
from kernel_builder.__main__ import main
from kernel_builder.half import HalfLoss

pytestmark = pytest.mark.slow


def test_plain_kernels_are_the_same_bytes_when_built_twice(tmp_path, swept, built, trained):
    one, two = (built(tmp_path / name) for name in "12")
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) == 9
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_dry_run_says_whether_stage_2_fits(tmp_path, swept, built, trained, tiny_root, capfd):
    options = ("--dry-run", str(tiny_root), "--images", "38801")
    built(tmp_path / "k", *options)
    out = capfd.readouterr().out
    assert re.search(r"38,801 pictures would take \d+:\d\d(:\d\d)? on this machine, of 8:50:00: fits", out)
    assert (tmp_path / "k" / "dry-run" / "submission.csv").read_text() == swept.read_text()
    found = json.loads((tmp_path / "k" / "dry-run" / "timing.json").read_text())
    assert (found["pictures"], len(found["checkpoints"]), found["whole"]) == (20, 6, True)


@pytest.mark.parametrize(("moved", "dtype"), [(0.0001, "float16"), (-0.002, "float32")])
def test_float16_is_taken_where_the_score_does_not_feel_it(
    tmp_path, swept, built, trained, capfd, monkeypatch, moved, dtype
):
    monkeypatch.setattr(build_module, "measure_half", lambda *args: HalfLoss(moved, 1e-5, 90, "cpu"))
    place = built(tmp_path / "k", "--dtype", "auto")
    said = f"float16 moves F2 out of fold by {moved:+.5f} (standard error 0.00001; 90 pictures, on cpu)"
    assert f"weights as {dtype}: {said}" in capfd.readouterr().out
    text = (place / "kernel" / "kernel.py").read_text()
    assert f"weights as {dtype}, not in this file" in text
    assert f"Measured: {said}" in text
    size = sum(file.stat().st_size for file in (place / "datasets" / "0").glob("*.safetensors"))
    whole = sum(trial.best.stat().st_size for trial in trained.run.store.trials())
    assert (size < 0.6 * whole) == (dtype == "float16")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--images", "5"], "--images is for foretelling a run from a dry one: give --dry-run DATA, too"),
        (["--key", "env"], "--key says how the key reaches the kernel: it goes with --encrypt"),
        (
            ["--encrypt", "--key", "env"],
            "no key: put one of `python -m kernel_builder keygen` into IMET_RAY_KEY",
        ),
        (["--limit", "soon"], "--limit takes 2h, 90m or 1h30m, got 'soon'"),
        (["--dry-run", "/nowhere"], "--dry-run /nowhere has no sample_submission.csv"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, swept, trained, capfd, argv, expected):
    capfd.readouterr()
    options = ["k", "--out", str(tmp_path / "k"), "--user", "me", *trained.where, "--dtype", "float32"]
    assert main([*options, *argv]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"error: {expected}")
    assert len(err.splitlines()) == 1


def test_metadata_name_the_data_sets_and_keep_all_of_it_private(tmp_path, swept, built, trained):
    place = built(tmp_path / "k")
    kernel = json.loads((place / "kernel" / "kernel-metadata.json").read_text())
    dataset = json.loads((place / "datasets" / "0" / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert (str(kernel["is_private"]).lower(), str(kernel["enable_internet"]).lower()) == ("true", "false")
