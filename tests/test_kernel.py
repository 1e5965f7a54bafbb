"""A kernel, built and run as Kaggle runs it: alone, from its one file, on what lies under the input folder."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_machine import submission
from packed import manifest_of

from imet_ray.commands import sweep as stages
from imet_ray.data.training_data import test_split as pictures_of_test
from imet_ray.prediction.predict import predict_checkpoint
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.storage.encryption import Secret
from imet_ray.storage.results import read_spec
from kernel_builder import __main__ as kernel_builder
from kernel_builder.runtime import process

pytestmark = pytest.mark.slow


def test_a_kernel_gives_each_picture_the_labels_that_launch_gives_it(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k", "--encrypt", "--key", "file", "--max-dataset-bytes", "5MB")
    assert len(list((place / "datasets").iterdir())) > 2  # weights in several, and the key
    done = machine(place, tiny_root)
    assert done.code == 0, done.stdout + done.stderr
    assert submission(place) == swept.read_text()
    assert "6 of 6 checkpoints, 20 pictures" in done.stdout.splitlines()[-1]
    assert sorted(path.name for path in (place / "working").iterdir()) == ["submission.csv"]
    assert (place / "kernel" / "kernel.py").stat().st_size < 1_000_000


def test_kernel_and_launch_write_the_header_of_the_sample(
    tmp_path, swept, built, trained, tiny_root, machine, monkeypatch
):
    data = shutil.copytree(tiny_root, tmp_path / "data")
    sample = data / "sample_submission.csv"
    text = sample.read_text().replace("id,attribute_ids", "image_id,labels", 1)
    sample.unlink()
    (data / "sampleSubmission.csv").write_text(text)
    (data / "test").rename(data / "test_images")
    place = built(tmp_path / "k")
    done = machine(place, data)
    assert done.code == 0, done.stdout + done.stderr
    expected = swept.read_text().replace("id,attribute_ids", "image_id,labels", 1)
    assert submission(place) == expected
    monkeypatch.setattr(stages, "predict_test", lambda *args: 0)  # they are there already
    run = replace(trained.run, catalog=replace(trained.run.catalog, root=data))
    stages._predict_test(run, "k", None, out=tmp_path / "ours.csv")
    assert (tmp_path / "ours.csv").read_text() == expected
    swept.write_text(expected.replace("image_id,labels", "id,attribute_ids", 1))  # as other tests know it


def test_missing_cut_and_altered_files_are_named_before_anything_is_predicted(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    first, second, third = sorted((place / "datasets" / "0").glob("*.safetensors"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    data = bytearray(third.read_bytes())
    data[-1] ^= 1
    third.write_bytes(data)
    done = machine(place, tiny_root)
    assert done.code == 1
    assert f"{first.name} is missing" in done.stderr
    assert f"{second.name} is cut off or another file" in done.stderr
    assert f"{third.name} was altered" in done.stderr
    assert not (place / "working" / "submission.csv").exists()


def test_pictures_that_cannot_be_read_are_counted_and_have_labels(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    data = tmp_path / "data"
    shutil.copytree(tiny_root, data)
    pictures = sorted((data / "test").iterdir())
    pictures[0].write_bytes(b"no picture")
    pictures[1].unlink()
    done = machine(place, data)
    assert done.code == 64 + 4, done.stdout + done.stderr
    assert "2 pictures could not be read" in done.stdout.splitlines()[-1]
    before, now = swept.read_text().splitlines(), submission(place).splitlines()
    assert [line.partition(",")[0] for line in now] == [line.partition(",")[0] for line in before]
    assert sum(one != two for one, two in zip(before, now, strict=True)) <= 2
    assert all(line.partition(",")[2] for line in now)


REPORTS_CHANGES = """
import os
import pathlib
import sys
def hook(event, args):
    if event == "open" and str(args[0]).endswith("submission.csv") and args[2] & (os.O_WRONLY | os.O_RDWR):
        print("<written in place>", flush=True)
    if event == "os.rename" and str(args[1]).endswith("submission.csv"):
        text = pathlib.Path(args[0]).read_text()
        print("<replaced by>", len(text.splitlines()), text[-1] == chr(10), flush=True)
sys.addaudithook(hook)
"""


def test_a_submission_is_only_ever_replaced_by_a_whole_one_whenever_the_kernel_is_killed(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    began = time.monotonic()
    out = machine(place, tiny_root, patch=REPORTS_CHANGES).stdout
    seconds = time.monotonic() - began
    assert "<written in place>" not in out
    assert [line for line in out.splitlines() if "<replaced" in line] == ["<replaced by> 21 True"] * 7
    target = place / "working" / "submission.csv"
    for delay in (0.4 * seconds, 0.8 * seconds):
        target.unlink(missing_ok=True)
        assert machine(place, tiny_root, kill_after=delay).code in (0, -signal.SIGKILL)
        if target.exists():
            lines = target.read_text().splitlines()
            assert [line.partition(",")[0] for line in lines] == [
                line.partition(",")[0] for line in swept.read_text().splitlines()
            ]
            assert all(line.partition(",")[2] for line in lines)


@pytest.mark.parametrize("key", ["embed", "env", "file"])
def test_the_key_reaches_the_kernel_in_each_way_and_stands_nowhere_else(
    tmp_path, swept, built, trained, tiny_root, machine, monkeypatch, capfd, key
):
    if key == "env":
        monkeypatch.setenv("IMET_RAY_KEY", secret := Secret.new().text)
    place = built(tmp_path / "k", "--encrypt", "--key", key)
    embedded = manifest_of(place)["key"]
    assert (embedded is not None) == (key == "embed")
    if key == "embed":
        secret = Secret.parse(embedded).text
    if key == "file":
        secret = (place / "datasets" / "key" / "imet_ray.key").read_text().strip()
        assert (place / "datasets" / "key" / "imet_ray.key").stat().st_mode & 0o077 == 0
    if key == "env":
        assert machine(place, tiny_root).code == 1
        assert "the weights are encrypted: set IMET_RAY_KEY" in (place / "err").read_text()
    done = machine(place, tiny_root, env={"IMET_RAY_KEY": secret} if key == "env" else {})
    assert done.code == 0, done.stderr
    assert submission(place) == swept.read_text()
    said = done.stdout + done.stderr + "".join(capfd.readouterr())
    written = [path for path in place.rglob("*") if path.is_file() and path.name != "imet_ray.key"]
    assert secret not in said
    assert len(written) > 8
    assert not any(secret.encode() in path.read_bytes() for path in written)


def test_a_passphrase_opens_the_weights_and_a_wrong_one_is_refused_by_the_files_name(
    tmp_path, swept, built, trained, tiny_root, machine, monkeypatch
):
    monkeypatch.setenv("IMET_RAY_PASSPHRASE", "correct horse")
    place = built(tmp_path / "k", "--encrypt", "--key", "env")
    done = machine(place, tiny_root, env={"IMET_RAY_PASSPHRASE": "correct horse"})
    assert done.code == 0, done.stderr
    assert submission(place) == swept.read_text()
    (place / "working" / "submission.csv").unlink()
    done = machine(place, tiny_root, env={"IMET_RAY_PASSPHRASE": "wrong horse"})
    assert done.code == 1
    assert re.search(r"[ab]-f0.safetensors.encrypted cannot be decrypted: a wrong passphrase", done.stderr)
    assert not (place / "working" / "submission.csv").exists()


def test_what_took_time_before_the_kernel_counts(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, "--timing", "timing.json", patch="import time\ntime.sleep(3)")
    assert done.code == 0, done.stdout + done.stderr
    started = re.search(r"started in ([\d.]+) s, ([\d,]+) s left", done.stdout)
    assert started is not None
    assert float(started[1]) >= 2.9
    assert int(started[2].replace(",", "")) <= 9 * 3600 - 600 - 2
    assert json.loads((place / "working" / "timing.json").read_text())["elapsed"] >= 2.9


def test_a_start_by_another_clock_than_the_systems_does_not_count(monkeypatch):
    monkeypatch.setattr(process, "LONGEST_START", 1e6)  # these tests may have run for hours
    assert process.process_seconds() > 0
    monkeypatch.setattr(time, "clock_gettime", lambda clock: 1e9)
    assert process.process_seconds() == 0


def test_pictures_are_decoded_once_for_all_checkpoints_of_one_size(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    count = """
import PIL.ImageFile
real = PIL.ImageFile.ImageFile.load
def load(self):
    if self.tile:
        print("<decoded>", flush=True)
    return real(self)
PIL.ImageFile.ImageFile.load = load
"""
    done = machine(place, tiny_root, patch=count)
    assert done.code == 0, done.stderr
    assert done.stdout.count("<decoded>") == 20  # six checkpoints; threads may share a line


def test_all_of_our_modules_come_from_the_one_file(tmp_path, swept, built, trained, tiny_root, machine):
    places = """
import os
import sys
end = os._exit
def tell(code):
    ours = [m for n, m in sys.modules.items() if n.partition(".")[0] in ("imet_ray", "kernel_builder")]
    elsewhere = [m.__file__ for m in ours if not m.__file__.startswith("<kernel>/")]
    print(len(ours) > 20, elsewhere, [name for name in ("ray", "optuna") if name in sys.modules], flush=True)
    end(code)
os._exit = tell
"""
    done = machine(built(tmp_path / "k"), tiny_root, patch=places)
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True [] []"


def test_a_kernel_sees_the_ensembles_views_and_keeps_to_its_limits(
    tmp_path, trained, tiny_root, tiny_cache, call_blend, machine, monkeypatch
):
    run, views = trained.run, ViewSet.of(["random:2", "squash"], "geometric")
    cpu, label_ids, test = torch.device("cpu"), run.data.label_ids, pictures_of_test(run.catalog, tiny_cache)
    for trial in run.store.trials():
        rows = run.data.rows(read_spec(trial).fold, held_out=True)
        how = {"label_ids": label_ids, "device": cpu, "views": views}
        predict_checkpoint(trial, run.data.split, rows, path=trial.oof_of(views.tag), **how)
        predict_checkpoint(trial, test, np.arange(20), path=trial.test_of(views.tag), **how)
    asked = [*views.options, "--weights", "a=3,b=1", "--limits", "1..2", "--out", "seen"]
    assert call_blend(*trained.where, *asked)[0] == 0
    monkeypatch.setattr(stages, "predict_test", lambda *args: 0)
    stages._predict_test(run, "seen", None)
    expected = run.store.ensemble("seen").submission.read_text()
    assert {len(row.split(",")[1].split()) for row in expected.splitlines()[1:]} <= {1, 2}
    out = tmp_path / "k"
    options = ["--user", "me", "--dtype", "float32", *trained.where]
    assert kernel_builder.main(["seen", "--out", str(out), *options]) == 0
    done = machine(out, tiny_root)
    assert done.code == 0, done.stdout + done.stderr
    assert submission(out) == expected
