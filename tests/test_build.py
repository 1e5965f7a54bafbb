"""Building a kernel: the same bytes each time, the number format that the score allows, a verdict on its time."""

import errno
import json
import re
import shutil
import subprocess

import pytest
from packed import manifest_of

from imet_ray.storage.encryption import Secret
from kernel_builder import build as build_module
from kernel_builder import datasets, dry_run
from kernel_builder.__main__ import main
from kernel_builder.float16_check import Float16Loss

pytestmark = pytest.mark.slow


def test_plain_kernels_are_the_same_bytes_when_built_twice(tmp_path, swept, built, trained):
    one, two = (built(tmp_path / name, "--dtype", "float32") for name in "12")
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) == 9
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_package_that_is_not_installed_by_its_name_is_left_out_of_the_header(
    tmp_path, swept, built, trained, monkeypatch
):
    monkeypatch.setattr(build_module, "PACKAGES", ("numpy", "no-such-package"))
    place = built(tmp_path / "k", "--dtype", "float32")
    assert re.search(
        r"Built with python [\d.]+, numpy [\d.]+\.\n", (place / "kernel" / "kernel.py").read_text()
    )


def test_a_dry_run_says_whether_stage_2_fits(tmp_path, swept, built, trained, tiny_root, capfd, monkeypatch):
    out = built(tmp_path / "k", "--dry-run", str(tiny_root), "--images", "20000")
    said = capfd.readouterr().out
    assert "20 pictures are too few to predict the time of 20,000" in said
    assert f"next     kaggle datasets create -p {out / 'datasets' / '0'}\n" in said.partition("too few")[2]
    assert (out / "dry-run" / "submission.csv").read_text() == swept.read_text()
    timing = json.loads((out / "dry-run" / "timing.json").read_text())
    assert (timing["pictures"], len(timing["checkpoints"])) == (20, 6)
    assert (timing["whole"], timing["batches"], round(timing["left"])) == (True, 1, 9 * 3600 - 600)

    def again(**changed) -> tuple[int, str]:
        """The exit code and the output of a run with another timing."""

        def run(command, cwd, check):
            (cwd / "timing.json").write_text(json.dumps(timing | changed))
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(dry_run.subprocess, "run", run)
        shutil.rmtree(out / "dry-run")
        kernel, target = out / "kernel" / "kernel.py", out / "dry-run"
        return dry_run.dry_run(kernel, out / "datasets", tiny_root, target, 20_000), capfd.readouterr().out

    said = r"20,000 pictures would take \d+:\d\d(:\d\d)? on this machine, of "
    code, text = again(batches=11, left=1e6)
    assert code == 0
    assert re.search(said + "277:46:40: fits", text)
    code, text = again(batches=11, left=10.0)
    assert code == 64 + 1
    assert re.search(said + "0:10: does NOT fit; about 0 of 6 checkpoints", text)
    assert again(whole=False) == (0, "checkpoints were left out: how long all of them take is not known\n")


@pytest.mark.parametrize(("moved", "dtype"), [(0.0001, "float16"), (-0.002, "float32")])
def test_float16_is_taken_where_the_score_does_not_feel_it(
    tmp_path, swept, built, trained, capfd, monkeypatch, moved, dtype
):
    monkeypatch.setattr(build_module, "float16_loss", lambda *args: Float16Loss(moved, 1e-5, 90, "cpu"))
    place = built(tmp_path / "k", "--dtype", "auto")
    said = (
        f"float16 moves the score out of fold by {moved:+.5f} (standard error 0.00001; 90 pictures, on cpu)"
    )
    assert f"weights as {dtype}: {said}" in capfd.readouterr().out
    text = (place / "kernel" / "kernel.py").read_text()
    assert f"weights as {dtype}, not in this file" in text
    assert f"Measured: {said}" in text
    size = sum(file.stat().st_size for file in (place / "datasets" / "0").glob("*.safetensors"))
    whole = sum(trial.best.stat().st_size for trial in trained.run.store.trials())
    assert (size < 0.6 * whole) == (dtype == "float16")


def test_where_too_few_pictures_were_measured_it_is_said_how_to_measure_again(
    tmp_path, swept, built, trained, capfd, monkeypatch
):
    monkeypatch.setattr(build_module, "float16_loss", lambda *args: Float16Loss(0.0001, 0.001, 9, "cpu"))
    built(tmp_path / "k", "--dtype", "auto")
    half = trained.run.store.ensemble("k").half
    assert f"choose with --dtype, or delete {half}: the next build measures again" in capfd.readouterr().out


def test_after_an_interrupted_dry_run_the_kernel_is_said_to_be_whole(
    tmp_path, swept, trained, tiny_root, capfd, monkeypatch
):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(dry_run, "dry_run", interrupted)
    options = ["--out", str(tmp_path / "k"), "--user", "me", *trained.where, "--dtype", "float32"]
    assert main(["k", *options, "--dry-run", str(tiny_root)]) == 130
    assert (
        capfd.readouterr().err
        == f"interrupted: the kernel in {tmp_path / 'k'} is whole; only its dry run is not\n"
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--images", "5"], "--images predicts a run's time from a dry run: give --dry-run DATA, too"),
        (["--key", "env"], "--key says how the key reaches the kernel: give --encrypt, too"),
        (
            ["--encrypt", "--key", "env"],
            "no key: put one of `python -m kernel_builder keygen` into IMET_RAY_KEY",
        ),
        (["--limit", "soon"], "--limit takes 2h, 90m or 1h30m, got 'soon'"),
        (["--dry-run", "/nowhere"], "--dry-run /nowhere has no sample_submission.csv"),
        (["--competition", "not a slug"], "a competition is named by its slug, got 'not a slug'"),
        (["--title", "t" * 60], "a dataset's title must have 6 to 50 characters, got 63"),
        (["--accelerator", "T4 x2"], "an accelerator is named such as NvidiaTeslaT4, got 'T4 x2'"),
        (["--limit", "5m"], "--limit must be longer than --reserve"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured_or_written(
    tmp_path, swept, trained, capfd, monkeypatch, argv, expected
):
    monkeypatch.delenv("IMET_RAY_KEY", raising=False)
    monkeypatch.delenv("IMET_RAY_PASSPHRASE", raising=False)
    capfd.readouterr()
    options = ["k", "--out", str(tmp_path / "k"), "--user", "me", *trained.where, "--dtype", "float32"]
    assert main([*options, *argv]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"error: {expected}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "k").exists()


def test_a_build_that_was_killed_is_done_anew_by_the_same_command(tmp_path, swept, built, trained):
    left = tmp_path / "k" / ".building-abc" / "datasets" / "0"
    left.mkdir(parents=True)
    (left / "a-f0.safetensors").write_text("half")
    place = built(tmp_path / "k", "--dtype", "float32")
    assert sorted(path.name for path in place.iterdir()) == ["datasets", "kernel"]
    assert (place / "kernel" / "kernel.py").read_bytes() == (
        built(tmp_path / "2") / "kernel" / "kernel.py"
    ).read_bytes()


def test_a_build_that_fails_leaves_nothing_and_can_be_done_again(
    tmp_path, swept, built, trained, capfd, monkeypatch
):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "kernel.py"))

    with monkeypatch.context() as patched:
        patched.setattr(build_module, "write_text", full)
        options = ["--out", str(tmp_path / "k"), "--user", "me", *trained.where, "--dtype", "float32"]
        assert main(["k", *options]) == 1
    assert "disk full while writing" in capfd.readouterr().err
    assert list((tmp_path / "k").iterdir()) == []
    built(tmp_path / "k", "--dtype", "float32")


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path, swept, trained, capfd, monkeypatch
):
    def measure(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(build_module, "float16_loss", measure)
    assert main(["k", "--out", "/proc/k", "--user", "me", *trained.where]) == 1
    assert "error: cannot write /proc/k" in capfd.readouterr().err


def test_an_out_that_is_a_file_is_one_line(tmp_path, swept, trained, capfd):
    (tmp_path / "k").write_text("mine")
    assert main(["k", "--out", str(tmp_path / "k"), "--user", "me", *trained.where]) == 1
    assert f"error: --out {tmp_path / 'k'}: Not a directory" in capfd.readouterr().err
    assert (tmp_path / "k").read_text() == "mine"


def test_a_dry_run_without_pictures_is_refused_before_anything_is_built(
    tmp_path, swept, trained, tiny_root, capfd
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample_submission.csv").write_text(
        (tiny_root / "sample_submission.csv").read_text()
    )
    options = [
        "--out",
        str(tmp_path / "k"),
        "--user",
        "me",
        *trained.where,
        "--dry-run",
        str(tmp_path / "data"),
    ]
    assert main(["k", *options]) == 1
    assert "none of the 20 pictures" in capfd.readouterr().err
    assert not (tmp_path / "k").exists()


def test_on_the_way_to_encrypted_weights_no_plain_ones_lie_on_the_disk(
    tmp_path, swept, built, trained, monkeypatch
):
    seen = []
    original = datasets.encrypt

    def encrypt(source, target, secret, **how):
        seen.append([path.name for path in (tmp_path / "k").rglob("*.safetensors")])
        original(source, target, secret, **how)

    monkeypatch.setattr(datasets, "encrypt", encrypt)
    built(tmp_path / "k", "--encrypt")
    assert seen == [[]] * 6


def test_a_key_of_the_environment_is_the_one_that_is_used(tmp_path, swept, built, trained, monkeypatch):
    monkeypatch.setenv("IMET_RAY_KEY", key := Secret.new().text)
    place = built(tmp_path / "k", "--encrypt", "--key", "file")
    assert (place / "datasets" / "key" / "imet_ray.key").read_text().strip() == key


def test_a_checkpoint_above_the_limit_of_a_dataset_is_one_line(tmp_path, swept, trained, capfd):
    options = ["--out", str(tmp_path / "k"), "--user", "me", *trained.where, "--dtype", "float32"]
    assert main(["k", *options, "--max-dataset-bytes", "1MB"]) == 1
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 1
    assert "-f0.safetensors has 1," in err[0]
    assert "more than the 1,000,000 of a dataset" in err[0]


def test_a_checkpoint_that_is_too_large_even_as_float16_is_refused_before_anything_is_measured(
    tmp_path, swept, trained, capfd, monkeypatch
):
    def measure(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(build_module, "float16_loss", measure)
    options = ["--out", str(tmp_path / "k"), "--user", "me", *trained.where]
    assert main(["k", *options, "--max-dataset-bytes", "500kB"]) == 1
    assert "more than the 500,000 of a dataset" in capfd.readouterr().err
    assert not (tmp_path / "k").exists()


def test_weights_that_float16_cannot_hold_are_refused(tmp_path, swept, trained, capfd, monkeypatch):
    original = datasets.safetensors.torch.load_file

    def large(path):
        return {name: tensor.float() * 1e6 for name, tensor in original(path).items()}

    monkeypatch.setattr(datasets.safetensors.torch, "load_file", large)
    options = ["--out", str(tmp_path / "k"), "--user", "me", *trained.where, "--dtype", "float16"]
    assert main(["k", *options]) == 1
    assert "has weights above 65,504, which float16 cannot hold: --dtype float32" in capfd.readouterr().err


def test_metadata_name_the_datasets_and_keep_all_of_it_private(tmp_path, swept, built, trained):
    place = built(tmp_path / "k", "--competition", "imet")
    kernel = json.loads((place / "kernel" / "kernel-metadata.json").read_text())
    dataset = json.loads((place / "datasets" / "0" / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert (str(kernel["is_private"]).lower(), str(kernel["enable_internet"]).lower()) == ("true", "false")
    assert kernel["machine_shape"] == "NvidiaTeslaT4"
    assert (kernel["competition_sources"], manifest_of(place)["competition"]) == (["imet"], "imet")


def test_what_is_packed_names_no_path_of_this_machine_and_a_key_is_for_its_owner(
    tmp_path, swept, built, trained, monkeypatch
):
    original = build_module.read_spec

    def local(trial):
        spec = original(trial)
        return spec.model_copy(
            update={"variant": spec.variant.model_copy(update={"weights": "/home/me/secret.safetensors"})}
        )

    monkeypatch.setattr(build_module, "read_spec", local)
    place = built(tmp_path / "k", "--encrypt")
    assert {member["recipe"]["weights"] for member in manifest_of(place)["members"]} == {"none"}
    assert (place / "kernel").stat().st_mode & 0o077 == 0
    assert (place / "kernel" / "kernel.py").stat().st_mode & 0o077 == 0
