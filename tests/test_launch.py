"""The command line: the user's own mistakes get one clear line, and nothing is ignored."""

import json
import shutil

import pytest
from PIL import Image

from imet_ray.cli import blend, launch
from imet_ray.commands.setup import reopen
from imet_ray.data.formats import read_catalog
from imet_ray.errors import StoreError
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs

SWEEP_FEW = (
    "--sweep",
    "--data",
    "demo:n_images=10,n_test=0",
)  # for what is found out when the data are there


def run(capsys, *argv, program=launch):
    try:
        code = program.main([str(arg) for arg in argv])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "one of the arguments --sweep"),
        (["--sweep", "--train"], "not allowed with"),
        (["--sweep", "--epoch", "3"], "unrecognized arguments"),
        (["--sweep", "--epochs", "0"], "must be 1 or more"),
        (["--train", "--variant", "a"], "--train needs --variant NAME and --fold K"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_one_line(capsys, argv, expected):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--sweep", "--fold", "0"], "--fold has no meaning for --sweep: it is for --train"),
        ([*SWEEP_FEW, "--address", "ray://127.0.0.1:10001"], "--address takes auto or HOST:PORT"),
        (["--sweep", "--fold", "1"], "--fold has no meaning for --sweep: it is for --train"),
        (["--oof", "--epochs", "2"], "--epochs has no meaning for --oof: it is for --sweep or --train"),
        (["--sweep", "--time-budget", "soon"], "--time-budget takes 2h"),
        (["--sweep", "--space", "search_spaces/dmeo.yml"], "choose one of search_spaces/ablation_batch.yml"),
        (
            ["--sweep", "--set", "image_sise=64"],
            "--set: unknown key 'image_sise': did you mean 'image_size'?",
        ),
        (["--sweep", "--set", "name=x"], "--set: name tells variants apart, and is no setting"),
        (["--sweep", "--set", "epochs=0"], "command line: epochs must be greater than or equal to 1, got 0"),
        (["--sweep", "--set", "epochs=2", "--epochs", "3"], "--epochs and --set epochs name one setting"),
        (
            ["--sweep", "--set", "augmentation.blurr=1"],
            "augmentation.blurr is a part of augmentation, and augmentation is 'light'",
        ),
        (["--sweep", "--data", "/nowhere"], "no data at /nowhere"),
        (["--sweep", "--data", ""], "--data is empty: give demo, openclipart, or a directory"),
        (["--show-augmentations", "a", "--data", ""], "--data is empty"),
        (["--sweep", "--data", "demo:mising=0.3"], "did you mean 'missing'?"),
        (["--sweep", "--data", "demo:missing=x"], "missing takes a number"),
        (["--sweep", "--folds", "five"], "--folds takes a number, a folds.csv or a folds.npy"),
        (["--sweep", "--from", "/tmp"], "--from is for --data openclipart"),
        (["--sweep", "--fresh", "--extend"], "--fresh makes new folds and --extend keeps the old ones"),
        (["--oof"], "no run in"),
        (["--predict", "blend", "--name", "x"], "no run 'x' in"),
        (["--check-data", "/nowhere"], None),
    ],
)
def test_a_mistake_exits_with_1_and_says_what_to_do(capsys, tmp_path, argv, expected):
    extra = [] if "--check-data" in argv else ["--runs", tmp_path / "runs", "--cache", tmp_path / "cache"]
    code, out, err = run(capsys, *argv, *extra)
    assert code == 1
    if expected is not None:
        assert expected in err
        assert err.startswith("error: ")
    else:
        assert "must not be trained on" in out


def test_an_unknown_metric_is_refused(capsys, tmp_path):
    (tmp_path / "space.yml").write_text("metric: f3\nvariants: [{name: a, architecture: test_resnet}]\n")
    code, _, err = run(capsys, "--sweep", "--space", str(tmp_path / "space.yml"))
    assert (code, err) == (1, "error: unknown metric 'f3': did you mean 'f2'? Known: f2\n")


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (
            "variants: [{name: a, architecture: test_vit, image_size: 90}]",
            "test_vit does not take image_size 90",
        ),
        (
            "search: {image_size: [64, 90]}\nvariants: [{name: a, architecture: test_vit, image_size: 64}]",
            "test_vit does not take image_size 90",
        ),
        ("variants: [{name: a, architecture: gemma4_vit_167m_enc}]", "gives features and no labels"),
    ],
)
@pytest.mark.parametrize("stage", [["--sweep"], ["--train", "--variant", "a", "--fold", "0"]])
def test_a_model_that_could_not_run_is_refused_before_anything_begins(
    capsys, tmp_path, stage, space, expected
):
    (tmp_path / "space.yml").write_text(space + "\n")
    where = ["--runs", tmp_path / "runs", "--cache", tmp_path / "cache"]
    code, out, err = run(capsys, *stage, "--space", tmp_path / "space.yml", *where)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert expected in err
    assert not (tmp_path / "runs").exists()


def test_too_few_pictures_are_one_line_and_leave_nothing_behind(capsys, tmp_path):
    space = tmp_path / "space.yml"
    space.write_text(
        "variants: [{name: a, architecture: test_resnet, weights: none, image_size: 32, epochs: 1}]\n"
    )
    for pictures, expected in (
        (1, "2 folds need as many pictures, got 1: add pictures, or take fewer --folds"),
        (2, "2 pictures in 2 folds leave 1 to train on, it takes 2: add pictures\n"),
        (4, ""),
    ):
        data = tmp_path / f"data{pictures}"
        (data / "train").mkdir(parents=True)
        for i in range(pictures):
            Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(data / "train" / f"{i}.png")
        (data / "train.csv").write_text(
            "id,attribute_ids\n" + "".join(f"{i},{i % 2}\n" for i in range(pictures))
        )
        code, _, err = run(
            capsys,
            *("--train", "--variant", "a", "--fold", "0", "--folds", "2", "--space", space),
            *("--data", data, "--name", f"r{pictures}"),
            *("--runs", tmp_path / "runs", "--cache", tmp_path / "cache"),
        )
        assert code == bool(expected), err
        assert expected in err
        assert len(err.splitlines()) == bool(expected)
        assert (tmp_path / "runs" / f"r{pictures}").exists() == (not expected)


def test_every_option_is_read_by_some_stage():
    parser_options = {
        "space", "data", "from", "negatives", "name", "address", "concurrency", "trials_per_variant", "folds", "epochs",
        "time_budget", "fresh", "extend", "studies", "variant", "fold", "set", "out", "member", "serve", "replace",
        "limit", "report", "views", "pool_views", "with", "top", "min_probability", "prefix", "onnx", "hub",
        "port", "host", "token", "replicas",
    }  # fmt: skip
    assert set().union(*launch.OPTIONS.values()) == parser_options


def test_check_data_reports_on_a_good_directory(capsys, tiny_root):
    code, out, _ = run(capsys, "--check-data", tiny_root)
    assert code == 0
    for words in ("90 pictures", "labels", "head", "tail", "may be trained on"):
        assert words in out


@pytest.fixture
def trained(capsys, tiny_root, tiny_cache, tmp_path):
    """The command line that trains one tiny trial, and where."""
    space = tmp_path / "tiny.yml"
    space.write_text(
        "n_folds: 3\nbase: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1}\n"
        "variants: [{name: a}]\n"
    )
    return [
        *("--train", "--variant", "a", "--fold", 0, "--space", space, "--data", tiny_root),
        *("--runs", tmp_path / "runs", "--cache", tiny_cache.root, "--name", "r"),
    ]


def test_train_trains_one_trial_without_a_sweep(capsys, trained, tmp_path):
    code, out, _ = run(capsys, *trained, "--set", "dropout=0.3")
    assert code == 0
    assert "epoch   1/1" in out
    assert len(list(tmp_path.glob("runs/r/trials/*/best.safetensors"))) == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("dropuot=0.3", "did you mean 'dropout'?"),
        ("dropout=2", "less than 1"),
        ("dropout", "--set takes KEY=VALUE"),
        ("dropout=[", "--set takes KEY=VALUE"),
        ("views=[centre]", "write it into a search space"),
        ("loss=bcee", "'bce'"),
    ],
)
def test_a_wrong_setting_of_train_is_refused(capsys, trained, setting, expected):
    code, _, err = run(capsys, *trained, "--set", setting)
    assert code == 1
    assert expected in err


def test_train_refuses_gpus_that_are_not_there(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with (tmp_path / "tiny.yml").open("a") as space:
        space.write("resources: {gpus_per_trial: 0.5}\n")
    code, _, err = run(capsys, *trained)
    assert code == 1
    assert "gpus_per_trial is 0.5 and torch sees none" in err


def test_a_rate_in_scientific_notation_is_a_number(capsys, trained, tmp_path):
    assert run(capsys, *trained, "--set", "lr=1e-4")[0] == 0
    spec = next(tmp_path.glob("runs/r/trials/*/spec.json"))
    assert json.loads(spec.read_text())["hparams"] == {"lr": 1e-4}


@pytest.mark.parametrize("harm", ["missing", "other"])
def test_a_run_whose_folds_were_lost_is_not_blended(capsys, trained, tmp_path, tiny_cache, harm):
    run(capsys, *trained)
    folds = tmp_path / "runs" / "r" / "folds.csv"
    rows = folds.read_text().splitlines()
    folds.unlink()
    if harm == "other":
        swapped = [row[:-1] + str((int(row[-1]) + 1) % 3) for row in rows[1:]]
        folds.write_text("\n".join([rows[0], *swapped]) + "\n")
    where = ["--runs", tmp_path / "runs", "--cache", tiny_cache.root]
    code, _, err = run(capsys, *where, program=blend)
    assert code == 1
    assert "is not the file that the run was begun with" in err


def test_the_name_of_an_ensemble_is_no_path(capsys, trained, tmp_path):
    code, _, err = run(capsys, "--out", "../x", program=blend)
    assert code == 1
    assert "an ensemble's name takes letters" in err


def test_a_run_directory_that_cannot_be_made_is_one_line(capsys, trained, tmp_path):
    (tmp_path / "file").write_text("")
    argv = [tmp_path / "file" if arg == tmp_path / "runs" else arg for arg in trained]
    code, _, err = run(capsys, *argv)
    assert code == 1
    assert err.startswith("error: cannot write")


def test_a_run_never_mixes_folds_data_or_recipes(capsys, trained, tmp_path):
    assert run(capsys, *trained)[0] == 0
    code, _, err = run(capsys, *trained, "--folds", 4)
    assert code == 1
    assert "was begun with 3 folds" in err
    code, _, err = run(capsys, *trained, "--epochs", 2)
    assert code == 1
    assert "knows variant 'a' with epochs=1, now it is 2" in err
    assert "--fresh" in err


def test_weights_that_were_replaced_in_their_file_are_not_mixed_with_the_old(capsys, trained, tmp_path):
    import timm
    import torch

    def train():
        return run(capsys, *trained, "--set", f"weights={tmp_path / 'w.pth'}")

    weights = timm.create_model("test_resnet").state_dict()
    torch.save(weights, tmp_path / "w.pth")
    assert train()[0] == train()[0] == 0
    torch.save({name: 0.5 * tensor for name, tensor in weights.items()}, tmp_path / "w.pth")
    code, _, err = train()
    assert code == 1
    assert f"was begun with other weights in {tmp_path / 'w.pth'}" in err


def test_fresh_keeps_the_old_run(capsys, trained, tmp_path):
    run(capsys, *trained)
    assert run(capsys, *trained, "--epochs", 2, "--fresh")[0] == 0
    assert len([path for path in (tmp_path / "runs").iterdir() if path.name.startswith("r")]) == 2


def test_folds_of_ones_own_are_used(capsys, trained, tiny_catalog, tmp_path):
    from imet_ray.storage.run_directory import RunDirectory

    folds = tmp_path / "mine.csv"
    rows = "\n".join(f"{picture},{i % 2}" for i, picture in enumerate(tiny_catalog.train.ids))
    folds.write_text(f"id,fold\n{rows}\n")
    assert run(capsys, *trained, "--folds", folds)[0] == 0
    assert RunDirectory(tmp_path / "runs" / "r").folds.read_text() == folds.read_text()


def test_a_run_says_what_is_warned_of_in_its_data(capsys, trained, tiny_root, tmp_path):
    root = shutil.copytree(tiny_root, tmp_path / "data")
    (root / "train.csv").write_text("a title\n" + (root / "train.csv").read_text())
    code, out, _ = run(capsys, *[root if arg == tiny_root else arg for arg in trained])
    assert code == 0
    assert "warning: title above the header: train.csv row 1: the header is row 2" in out


def test_pictures_without_labels_are_negatives_where_that_is_asked_for(capsys, trained, tiny_root, tmp_path):
    root = shutil.copytree(tiny_root, tmp_path / "data")
    head, *rows = (root / "train.csv").read_text().splitlines()
    rows[::9] = [row.partition(",")[0] + "," for row in rows[::9]]
    (root / "train.csv").write_text("\n".join([head, *rows]) + "\n")
    argv = [root if arg == tiny_root else arg for arg in trained]
    code, _, err = run(capsys, *argv)
    assert code == 1
    assert "train.csv row 2: " in err
    assert "--negatives" in err
    code, out, _ = run(capsys, *argv, "--negatives")
    assert code == 0
    assert f"{len(rows[::9])} pictures have none" in out
    again = reopen(Runs(tmp_path / "runs"), "r", Cache(argv[argv.index("--cache") + 1]))
    assert again.data.negatives
    assert again.experiment.data_digest == read_catalog(root, negatives=True).digest
    (root / "train.csv").write_text("\n".join([head, *rows[1:], rows[0] + "0"]) + "\n")
    with pytest.raises(StoreError, match="holds other data"):
        reopen(Runs(tmp_path / "runs"), "r", Cache(argv[argv.index("--cache") + 1]))


def test_blend_without_a_whole_variant_says_what_to_do(capsys, trained, tmp_path, tiny_cache):
    run(capsys, *trained)
    where = ["--runs", tmp_path / "runs", "--cache", tiny_cache.root]
    code, _, err = run(capsys, *where, program=blend)
    assert code == 1
    assert "sweep first" in err
    code, _, err = run(capsys, *where, "--members", "b", program=blend)
    assert code == 1
    assert "unknown member 'b'" in err
