"""A kernel that trains: built, run as Kaggle runs it, stopped by its limit, continued, and taken into its run."""

import json
import shutil

import pytest
import torch
from packed import manifest_of
from safetensors.torch import load_file

import launch
from imet_ray.cluster.policy import Policy
from imet_ray.commands.setup import reopen
from imet_ray.storage.files import write_json
from imet_ray.storage.results import read_result
from imet_ray.storage.runs import Runs
from kernel_builder import __main__ as kernel_builder
from kernel_builder.build import ROOT
from kernel_builder.import_closure import import_closure

pytestmark = pytest.mark.slow

SPACE = """
n_folds: 3
base: {architecture: test_resnet, image_size: 32, epochs: 3, lr: 0.003, dropout: 0.1, weights: none}
variants: [{name: a}, {name: w, weights: WEIGHTS}, {name: s, labels: {add: {from: a}}}]
search: {dropout: {low: 0.0, high: 0.5}}
"""


@pytest.fixture(scope="module")
def begun(tiny_root, tiny_cache, tmp_path_factory):
    """A run of three variants, of which the first two are trained on fold 0, the second from a file of weights."""
    from imet_ray.models.models import build_model

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("begun")
    torch.manual_seed(5)
    made = build_model("test_resnet", n_labels=7, image_size=32, dropout=0.0, weights="none")
    torch.save(made.body.state_dict(), folder / "given.pth")
    (folder / "space.yml").write_text(SPACE.replace("WEIGHTS", str(folder / "given.pth")))
    where = ["--runs", str(folder / "runs"), "--cache", str(tiny_cache.root), "--name", "r"]
    for variant in "aw":
        argv = ["--train", "--variant", variant, "--fold", "0", "--data", str(tiny_root)]
        assert launch.main([*argv, "--space", str(folder / "space.yml"), *where]) == 0
    return folder


@pytest.fixture
def run(begun, tmp_path, tiny_cache):
    """That run without its trials; the trials are kept in `trained`."""
    runs = shutil.copytree(begun / "runs", tmp_path / "runs")
    (runs / "r" / "trials").rename(tmp_path / "trained")
    return reopen(Runs(runs), "r", tiny_cache)


@pytest.fixture
def build(run, tmp_path, tiny_cache):
    def _build(*options: str, variant: str = "a", fold: int = 0):
        where = ["--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root), "--name", "r"]
        argv = ["--train", variant, "--fold", str(fold), "--out", str(tmp_path / "k"), "--user", "me", *where]
        code = kernel_builder.main([*argv, *options])
        return code

    return _build


def take(tmp_path, tiny_cache, folder, capsys) -> tuple[int, str, str]:
    where = ["--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root), "--name", "r"]
    capsys.readouterr()
    code = kernel_builder.main(["--take", str(folder), *where])
    out = capsys.readouterr()
    return code, out.out, out.err


def trial_of(place):
    (found,) = (place / "working" / "trials").iterdir()
    return found


def same_weights(tmp_path, trial) -> bool:
    """True if they are those of `launch.py --train`, bit for bit."""
    theirs, ours = (load_file(one / "best.safetensors") for one in (trial, tmp_path / "trained" / trial.name))
    return theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


ENDS_AFTER = """
import sys, time
real, late = time.monotonic, 0.0
def clock():
    global late
    frame = sys._getframe(1)
    if frame.f_code.co_name == "_after_epoch" and frame.f_locals["metrics"]["epoch"] == EPOCHS:
        late = 31_900.0  # behind the limit, and not so far that the watchdog ends it
    return real() + late
time.monotonic = clock
"""


def stopping_after(epochs: int) -> str:
    """A clock that jumps to the limit while that epoch is reported; the watchdog's next line may come any time then."""
    return ENDS_AFTER.replace("EPOCHS", str(epochs))


def test_it_trains_the_weights_of_launch_train_and_the_run_takes_them_in(
    tmp_path, run, build, tiny_root, tiny_cache, machine, capsys
):
    assert build() == 0
    said = capsys.readouterr().out
    assert "hparams: the variant's own values" in said
    assert "then     kaggle kernels output me/imet-ray-r-a-f0 -p DIR && " in said
    assert not (tmp_path / "k" / "datasets").exists()  # it begins from none
    done = machine(
        tmp_path / "k", tiny_root, patch="import sys\nsys.modules['ray'] = sys.modules['optuna'] = None"
    )
    assert done.code == 0, done.stdout + done.stderr
    trial = trial_of(tmp_path / "k")
    assert "3 of 3 epochs; F2 " in done.stdout.splitlines()[-1]
    assert same_weights(tmp_path, trial)
    assert sorted(path.name for path in trial.iterdir() if path.name != "writer.token") == [
        "best.safetensors",
        "metrics.jsonl",
        "oof.npz",
        "result.json",
        "spec.json",
    ]
    code, out, err = take(tmp_path, tiny_cache, tmp_path / "k" / "working", capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"a-fold0-{trial.name}: complete, 0.")
    ours = run.store.trial(trial.name)
    assert ours.best.read_bytes() == (trial / "best.safetensors").read_bytes()
    assert ours.oof.exists()
    policy = Policy(run.experiment.space, run.store, run.data.split.digest, run.data.folds_digest)
    given = [policy.next() for _ in range(5)]
    assert trial.name not in [one.spec.trial_id for one in given if one not in (None, "finished")]
    assert policy.studies["a"].best is not None  # the own values were the first set, and are trained
    assert take(tmp_path, tiny_cache, tmp_path / "k" / "working", capsys)[1].endswith("as far or further\n")


def test_stopped_by_the_limit_it_goes_on_from_its_output_to_the_same_weights(
    tmp_path, run, build, tiny_root, machine
):
    assert build() == 0
    place = tmp_path / "k"
    done = machine(place, tiny_root, patch=stopping_after(1))
    assert done.code == 64 + 1, done.stdout + done.stderr
    assert "1 of 3 epochs; stopped by the limit: run the kernel again" in done.stdout
    assert not (trial_of(place) / "result.json").exists()
    (place / "working").rename(place / "input" / "earlier")  # as Kaggle mounts a kernel's output
    assert machine(place, tiny_root, patch=stopping_after(2)).code == 64 + 1
    (place / "working").rename(place / "input" / "later")
    done = machine(place, tiny_root)
    assert done.code == 0, done.stdout + done.stderr
    assert f"goes on from {place / 'input' / 'later'}" in done.stdout
    assert "epoch 3/3" in done.stdout
    assert "epoch 2/3" not in done.stdout
    assert same_weights(tmp_path, trial_of(place))


def test_on_kaggle_a_stop_by_the_limit_is_no_failure(tmp_path, run, build, tiny_root, machine):
    assert build() == 0
    done = machine(
        tmp_path / "k", tiny_root, patch=stopping_after(1), env={"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    )
    assert done.code == 0
    assert "stopped by the limit" in done.stdout


@pytest.mark.parametrize(
    ("epochs", "code", "said"), [(0, 1, "before an epoch had ended"), (1, 65, "1 of 3 epochs")]
)
def test_an_epoch_that_hangs_is_ended_and_what_was_trained_before_stays(
    tmp_path, run, build, tiny_root, machine, epochs, code, said
):
    assert build() == 0
    hang = f"""
import time
from torch.utils.data import DataLoader
real, begin, late, n = time.monotonic, DataLoader.__iter__, 0.0, 0
def hangs(self):
    global late, n
    n += hasattr(self.dataset, "epoch")  # of training
    if n > {epochs}:
        late = 32_400.0
        time.sleep(60)
    return begin(self)
time.monotonic, DataLoader.__iter__ = lambda: real() + late, hangs
"""
    done = machine(tmp_path / "k", tiny_root, patch=hang)
    assert done.code == code, done.stdout + done.stderr
    assert said in (done.stdout + done.stderr).splitlines()[-1]


def test_without_time_for_the_held_out_fold_the_sweep_predicts_it(tmp_path, run, build, tiny_root, machine):
    assert build() == 0
    done = machine(tmp_path / "k", tiny_root, patch=stopping_after(3))
    assert done.code == 64 + 4, done.stdout + done.stderr
    assert "3 of 3 epochs; F2 0." in done.stdout.splitlines()[-1]
    assert "the held-out fold is not predicted, which the sweep does" in done.stdout.splitlines()[-1]
    assert (trial_of(tmp_path / "k") / "result.json").exists()
    assert not (trial_of(tmp_path / "k") / "oof.npz").exists()


def test_what_was_begun_there_is_gone_on_with_here(
    tmp_path, run, begun, build, tiny_root, tiny_cache, machine, capsys
):
    assert build() == 0
    machine(tmp_path / "k", tiny_root, patch=stopping_after(2))
    trial = trial_of(tmp_path / "k")
    code, out, _ = take(tmp_path, tiny_cache, tmp_path / "k" / "working", capsys)
    assert (code, out) == (0, f"a-fold0-{trial.name}: goes on after epoch 2\n")
    where = ["--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root), "--name", "r"]
    argv = ["--train", "--variant", "a", "--fold", "0", "--data", str(tiny_root)]
    assert launch.main([*argv, "--space", str(begun / "space.yml"), *where]) == 0
    said = capsys.readouterr().out
    assert "epoch   3/3" in said
    assert "epoch   2/3" not in said
    assert same_weights(tmp_path, run.store.trial(trial.name).root)


@pytest.mark.parametrize("options", [(), ("--encrypt", "--key", "file")])
def test_weights_that_a_recipe_begins_from_come_in_a_dataset(
    tmp_path, run, build, tiny_root, machine, options
):
    assert build(*options, variant="w") == 0
    place = tmp_path / "k"
    (start,) = (place / "datasets" / "0").glob("*start*")
    assert (start.suffix == ".encrypted") == bool(options)
    done = machine(place, tiny_root)
    assert done.code == 0, done.stdout + done.stderr
    assert same_weights(tmp_path, trial_of(place))
    assert not (trial_of(place) / "start.safetensors").exists()
    shutil.rmtree(place / "working")
    start.unlink()
    done = machine(place, tiny_root)
    assert done.code == 1
    assert f"{start.name} is missing" in done.stderr


def test_other_pictures_are_refused_before_anything_is_trained(tmp_path, run, build, tiny_root, machine):
    assert build() == 0
    data = shutil.copytree(tiny_root, tmp_path / "data")
    first, second = sorted((data / "train").iterdir())[:2]
    shutil.copyfile(first, second)
    done = machine(tmp_path / "k", data)
    assert done.code == 1
    assert "are others than the run's: attach the same data" in done.stderr
    assert not (tmp_path / "k" / "working" / "trials").exists()


def test_it_needs_neither_ray_nor_optuna_and_the_prediction_kernel_no_training():
    ours = {name: ROOT / name for name in ("imet_ray", "kernel_builder")}
    assert "imet_ray.training.trainer" in import_closure("kernel_builder.runtime.train", ours).modules
    prediction = import_closure("kernel_builder.runtime.main", ours).modules
    assert not [name for name in prediction if "training" in name]


@pytest.mark.parametrize(
    ("options", "how", "expected"),
    [
        ((), {"variant": "b"}, "unknown variant 'b'"),
        (
            (),
            {"variant": "s"},
            "variant 's' learns from pseudo-labels, and a kernel has no models to take them from",
        ),
        ((), {"fold": 3}, "fold must be below n_folds=3, got 3: choose 0..2"),
        (("--set", "dropuot=1"), {}, "--set: unknown key 'dropuot': did you mean 'dropout'?"),
        (("--key", "env"), {}, "--key says how the key reaches the kernel: give --encrypt, too"),
        (("--limit", "5m"), {}, "--limit must be longer than --reserve"),
    ],
)
def test_mistakes_are_one_line(build, capsys, options, how, expected):
    assert build(*options, **how) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert expected in err


def test_hparams_are_given_or_those_of_the_best_set_and_a_trained_trial_is_refused(
    tmp_path, run, build, capsys
):
    assert build("--set", "dropout=0.2") == 0
    assert "own values, with dropout=0.2" in capsys.readouterr().out
    assert manifest_of(tmp_path / "k")["spec"]["hparams"] == {"dropout": 0.2}
    shutil.rmtree(tmp_path / "k")
    shutil.copytree(tmp_path / "trained", run.store.root / "trials")
    assert build() == 1
    assert "is trained already: choose another --fold" in capsys.readouterr().err
    assert build(fold=1) == 0
    assert "hparams: the best set that is trained so far" in capsys.readouterr().out


def test_what_is_not_of_the_run_is_refused_and_nothing_is_copied(tmp_path, run, tiny_cache, capsys):
    def refused(change, expected: str) -> None:
        shutil.rmtree(tmp_path / "given", ignore_errors=True)
        shutil.copytree(tmp_path / "trained", tmp_path / "given")
        change(sorted((tmp_path / "given").iterdir())[0])
        code, _, err = take(tmp_path, tiny_cache, tmp_path / "given", capsys)
        assert code == 1
        assert expected in err
        assert not (run.store.root / "trials").exists()

    def altered(trial) -> None:
        content = bytearray((trial / "best.safetensors").read_bytes())
        content[-1] ^= 1
        (trial / "best.safetensors").write_bytes(content)

    def of_other(field, value):
        def change(trial) -> None:
            spec = json.loads((trial / "spec.json").read_text())
            spec[field] = value
            write_json(trial / "spec.json", spec)

        return change

    refused(altered, "is not the file that")
    refused(of_other("data_digest", "x"), "was trained with other data than")
    refused(of_other("folds_digest", "x"), "was trained with other folds than")
    refused(of_other("fold", 1), "tells of another trial than")
    refused(lambda trial: (trial / "result.json").unlink(), "has neither a result nor a state")
    code, _, err = take(tmp_path, tiny_cache, tmp_path / "runs" / "r" / "_none", capsys)
    assert code == 1
    assert "no trial under" in err


def test_a_kill_while_it_is_taken_in_leaves_what_can_be_taken_again(
    tmp_path, run, tiny_cache, capsys, monkeypatch
):
    copy, left = shutil.copyfile, 0

    def killed(*args):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return copy(*args)

    for copied in range(4):  # files, before the kill
        left = copied
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", killed)
            assert take(tmp_path, tiny_cache, tmp_path / "trained", capsys)[0] == 130
        for trial in run.store.trials():
            assert read_result(trial) is None
    assert take(tmp_path, tiny_cache, tmp_path / "trained", capsys)[0] == 0
    assert [read_result(trial).status for trial in run.store.trials()] == ["complete"] * 2
