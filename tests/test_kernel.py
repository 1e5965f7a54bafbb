"""A kernel, built and run as Kaggle runs it: alone, from its one file, on what lies under the input folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import blend
from imet_ray.data import test_split as pictures_of_test
from imet_ray.decode import decode
from imet_ray.ensemble import blend_test, read_ensemble
from imet_ray.errors import ConfigError
from imet_ray.predict import predict_checkpoint
from imet_ray.submission import write_submission
from kernel_builder.__main__ import main
from kernel_builder.runtime.inputs import find_secret

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(trained, tiny_cache) -> Path:
    """The submission of an ensemble `k`, as `launch.py --predict` makes it."""
    run, label_ids = trained.run, trained.run.data.label_ids
    test = pictures_of_test(run.catalog, tiny_cache)
    everything = np.arange(len(test.ids))
    for trial in run.store.trials():
        cpu = torch.device("cpu")
        predict_checkpoint(trial, test, everything, path=trial.test, label_ids=label_ids, device=cpu)
    assert blend.main([*trained.where, "--method", "uniform", "--out", "k"]) == 0
    place = run.store.ensemble("k")
    ensemble = read_ensemble(place)
    decoded = decode(blend_test(ensemble, run.store, test.ids), ensemble.decoder)
    write_submission(place.submission, test.ids, label_ids, decoded)
    return place.submission


def built(out: Path, trained, *options: str) -> Path:
    assert main(["k", "--out", str(out), "--user", "me", *trained.where, *options]) == 0
    return out


def run(place: Path, tiny_root: Path, *options: str, env=None, data: Path | None = None):
    """Run it in a folder of its own, with nothing of ours on the path."""
    given = place / "input"
    given.mkdir(exist_ok=True)
    for name, target in (("weights", place / "datasets"), ("data", data or tiny_root)):
        if not (given / name).exists():
            (given / name).symlink_to(target)
    work = place / "working"
    work.mkdir(exist_ok=True)
    command = [sys.executable, str(place / "kernel" / "kernel.py"), "--input", str(given), *options]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (env or {})
    return subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, check=False)


def submission(place: Path) -> str:
    return (place / "working" / "submission.csv").read_text()


def test_a_kernel_gives_each_picture_the_labels_that_launch_gives_it(tmp_path, swept, trained, tiny_root):
    place = built(tmp_path / "k", trained, "--encrypt", "--key", "file", "--max-dataset-bytes", "1MB")
    assert len(list((place / "datasets").iterdir())) > 2  # files are cut into pieces
    done = run(place, tiny_root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert submission(place) == swept.read_text()
    assert "6 of 6 checkpoints, 20 pictures" in done.stdout.splitlines()[-1]
    assert sorted(path.name for path in (place / "working").iterdir()) == ["submission.csv"]
    assert (place / "kernel" / "kernel.py").stat().st_size < 1_000_000


def test_plain_kernels_are_the_same_bytes_when_built_twice(tmp_path, swept, trained):
    one, two = (built(tmp_path / name, trained) for name in "12")
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) == 9
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_missing_cut_and_altered_files_are_named_before_anything_is_predicted(
    tmp_path, swept, trained, tiny_root
):
    place = built(tmp_path / "k", trained)
    first, second, third = sorted((place / "datasets" / "0").glob("*.safetensors"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    data = bytearray(third.read_bytes())
    data[-1] ^= 1
    third.write_bytes(data)
    done = run(place, tiny_root)
    assert done.returncode == 1
    assert f"{first.name} is missing" in done.stderr
    assert f"{second.name} is cut off or another file" in done.stderr
    assert f"{third.name} was altered" in done.stderr
    assert not (place / "working" / "submission.csv").exists()


def test_without_its_key_an_encrypted_kernel_says_so_at_once(monkeypatch, tmp_path):
    for name in ("IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="the weights are encrypted: set IMET_RAY_KEY"):
        find_secret(None, [tmp_path / "other.key"])


def test_pictures_that_cannot_be_read_are_counted_and_have_labels(tmp_path, swept, trained, tiny_root):
    place = built(tmp_path / "k", trained)
    data = tmp_path / "data"
    shutil.copytree(tiny_root, data)
    pictures = sorted((data / "test").iterdir())
    pictures[0].write_bytes(b"no picture")
    pictures[1].unlink()
    done = run(place, tiny_root, data=data)
    assert done.returncode == 64 + 4, done.stdout + done.stderr
    assert "2 pictures could not be read" in done.stdout.splitlines()[-1]
    before, now = swept.read_text().splitlines(), submission(place).splitlines()
    assert [line.partition(",")[0] for line in now] == [line.partition(",")[0] for line in before]
    assert sum(one != two for one, two in zip(before, now, strict=True)) <= 2
    assert all(line.partition(",")[2] for line in now)


def test_killed_at_any_moment_it_leaves_no_submission_or_a_whole_one(tmp_path, swept, trained, tiny_root):
    place = built(tmp_path / "k", trained)
    (place / "input").mkdir()
    (place / "working").mkdir()
    (place / "input" / "weights").symlink_to(place / "datasets")
    (place / "input" / "data").symlink_to(tiny_root)
    rows = len(swept.read_text().splitlines())
    command = [sys.executable, str(place / "kernel" / "kernel.py"), "--input", str(place / "input")]
    for delay in np.random.default_rng(0).uniform(4, 8, 2):
        target = place / "working" / "submission.csv"
        target.unlink(missing_ok=True)
        process = subprocess.Popen(
            command, cwd=place / "working", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():
            assert len(target.read_text().splitlines()) == rows


def test_metadata_name_the_data_sets_and_keep_all_of_it_private(tmp_path, swept, trained):
    place = built(tmp_path / "k", trained)
    kernel = json.loads((place / "kernel" / "kernel-metadata.json").read_text())
    dataset = json.loads((place / "datasets" / "0" / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert (str(kernel["is_private"]).lower(), str(kernel["enable_internet"]).lower()) == ("true", "false")
