"""An exported folder: what it holds, that it replaces only itself, that a stopped export goes on, its card."""

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import ModelCard

import imet_ray
import launch
from imet_ray.errors import ConfigError
from imet_ray.models.checkpoint import read_info
from imet_ray.prediction import exported
from imet_ray.prediction.ensemble import Ensemble, blend_oof, read_ensemble, write_ensemble
from imet_ray.prediction.exported import exporting, write_files
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.tagger_files import TaggerFiles, find_ensemble
from imet_ray.reporting import model_card
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.files import write_text
from imet_ray.storage.object_store import open_bucket
from imet_ray.storage.run_directory import ExportedDirectory
from imet_ray.storage.runs import Runs


@pytest.fixture
def call(trained, swept, capsys):
    """Runs launch.py --export k with a folder and options: exit code, stdout, stderr."""

    def _call(folder, *options, ensemble="k"):
        capsys.readouterr()
        try:
            code = launch.main(["--export", ensemble, str(folder), *trained.where, *map(str, options)])
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return _call


@pytest.fixture(scope="module")
def folder(trained, swept, tmp_path_factory) -> Path:
    """An export of the ensemble `k`; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("exports") / "k"
    assert launch.main(["--export", "k", str(folder), *trained.where]) == 0
    return folder


@pytest.fixture
def ensemble(trained, swept) -> Ensemble:
    return read_ensemble(trained.run.store.ensemble("k"))


def test_an_export_holds_the_ensemble_as_it_is(folder, trained):
    own = trained.run.store.ensemble("k").ensemble
    assert json.loads((folder / "ensemble.json").read_text()) == json.loads(own.read_text())


def test_an_export_holds_each_checkpoint_with_its_spec(folder, ensemble):
    place = ExportedDirectory(folder)
    wanted = {
        trial: digest for m in ensemble.members for trial, digest in zip(m.trials, m.checkpoints, strict=True)
    }
    assert {path.stem for path in place.weights.iterdir()} == wanted.keys()
    for trial, digest in wanted.items():
        assert file_digest(place.weights_of(trial)) == digest
        assert read_info(place.weights_of(trial)).spec.trial_id == trial


def test_an_export_names_its_labels(folder, trained):
    lines = (folder / "labels.csv").read_text().splitlines()
    catalog = trained.run.catalog
    assert lines[0] == "attribute_id,attribute_name"
    assert lines[1:] == [
        f"{i},{name}" for i, name in zip(catalog.label_ids, catalog.label_names, strict=True)
    ]


def test_an_export_leaves_nothing_beside_itself(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["k"]
    assert {path.name for path in folder.iterdir()} == {"ensemble.json", "labels.csv", "weights", "README.md"}


@pytest.fixture(scope="module")
def pictures(tiny_root) -> list[Path]:
    return sorted((tiny_root / "test").iterdir())[:5]


@pytest.fixture(scope="module")
def tagged(folder, trained, pictures) -> pd.DataFrame:
    """What the run's own ensemble makes of new pictures."""
    place = trained.run.store.ensemble("k").root
    return imet_ray.load(place, device="cpu").predict(pictures)


@contextlib.contextmanager
def gone(*paths: Path) -> Iterator[None]:
    for path in paths:
        path.rename(path.with_name("away"))
    yield
    for path in paths:
        path.with_name("away").rename(path)


def test_an_export_tags_as_the_run_does_with_the_run_and_its_data_gone(
    folder, trained, tiny_root, pictures, tagged, tmp_path, monkeypatch
):
    shutil.copytree(folder, tmp_path / "far" / "k")
    new = [Path(shutil.copy(path, tmp_path / "far")).name for path in pictures]
    monkeypatch.chdir(tmp_path / "far")
    with gone(trained.run.store.root, tiny_root):
        found = imet_ray.load("k", device="cpu").predict(new)
    columns = ["labels", "probabilities", "decided_by"]
    assert found["path"].tolist() == new
    assert found[columns].equals(tagged[columns])


def test_a_member_that_is_not_needed_is_left_out(trained, ensemble, call, tmp_path):
    first, *others = ensemble.members
    alone = ensemble.model_copy(
        update={
            "name": "one",
            "members": [first, *(other.model_copy(update={"weight": 0.0}) for other in others)],
        }
    )
    write_ensemble(trained.run.store.ensemble("one"), alone)
    assert call(tmp_path / "one", ensemble="one")[0] == 0
    assert {path.stem for path in (tmp_path / "one" / "weights").iterdir()} == set(first.trials)


def test_an_export_of_another_tools_member_is_refused(trained, ensemble, call, tmp_path):
    first, *others = ensemble.members
    external = first.model_copy(update={"trials": [], "checkpoints": []})
    mixed = ensemble.model_copy(update={"name": "mixed", "members": [external, *others]})
    write_ensemble(trained.run.store.ensemble("mixed"), mixed)
    code, _, err = call(tmp_path / "mixed", ensemble="mixed")
    assert code == 1
    assert err.count("\n") == 1
    assert f"the ensemble mixed has {first.variant} from another tool" in err
    assert not list(tmp_path.iterdir())


def test_an_ensemble_that_is_not_there_is_named(call, tmp_path):
    code, _, err = call(tmp_path / "x", ensemble="blnd")
    assert code == 1
    assert "no ensemble 'blnd'" in err
    assert "choose one of" in err


def test_an_ensemble_of_another_run_is_named_by_its_run(trained, folder, call, tmp_path):
    assert call(tmp_path / "k", ensemble="r/k")[0] == 0
    assert same_files(tmp_path / "k", folder)
    assert "no run 'q'" in call(tmp_path / "other", ensemble="q/k")[2]


def test_an_ensemble_is_named_by_its_folder_as_tag_takes_it(trained, folder, call, tmp_path):
    assert call(tmp_path / "k", ensemble=str(trained.run.store.ensemble("k").root))[0] == 0
    assert same_files(tmp_path / "k", folder)


def test_what_is_exported_already_is_not_exported_from(folder, call, tmp_path):
    code, _, err = call(tmp_path / "k", ensemble=str(folder))
    assert code == 1
    assert "is exported already: copy it" in err
    assert err.count("\n") == 1


def test_an_ensemble_of_two_runs_is_refused(call, tmp_path):
    code, _, err = call(tmp_path / "k", "--name", "r", ensemble="q/k")
    assert code == 1
    assert "q/k says itself where it lies: leave --name r out" in err


def test_other_weights_than_the_ensembles_are_refused(trained, ensemble, call, tmp_path):
    first, *others = ensemble.members
    wrong = first.model_copy(update={"checkpoints": ["0" * 64, *first.checkpoints[1:]]})
    write_ensemble(
        trained.run.store.ensemble("wrong"),
        ensemble.model_copy(update={"name": "wrong", "members": [wrong, *others]}),
    )
    code, _, err = call(tmp_path / "wrong", ensemble="wrong")
    assert code == 1
    assert "has other weights than the ensemble was fitted with: blend again" in err
    assert not list(tmp_path.iterdir())


# what may be there


def test_an_export_again_replaces_itself(call, folder, tmp_path):
    place = tmp_path / "k"
    shutil.copytree(folder, place)
    next((place / "weights").iterdir()).write_bytes(b"damaged")
    (place / "onnx").mkdir()
    assert call(place)[0] == 0
    assert same_files(place, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.txt", "mine", "is not empty, and no export: name another folder, or empty it"),
        ("ensemble.json", "{}", "is no export that can be replaced"),
        ("ensemble.json", None, "is an export of another k, of other data or folds"),
    ],
)
def test_what_is_no_export_of_the_same_ensemble_is_left_alone(call, ensemble, tmp_path, name, text, said):
    there = tmp_path / "there"
    there.mkdir()
    if text is None:
        text = ensemble.model_copy(update={"data_digest": "other"}).model_dump_json()
    (there / name).write_text(text)
    code, _, err = call(there)
    assert (code, err.count("\n")) == (1, 1)
    assert said in err
    assert (there / name).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_export_with_a_strangers_file_in_it_is_left_alone(call, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "k")
    (tmp_path / "k" / ".git").mkdir()
    code, _, err = call(tmp_path / "k")
    assert code == 1
    assert "holds .git, which no export writes: move it away" in err


def test_an_export_of_another_ensemble_is_left_alone(folder, ensemble):
    with pytest.raises(ConfigError, match="is an export of k, not of other: name another folder"):
        exported.refuse_place(folder, ensemble.model_copy(update={"name": "other"}))


def test_the_folder_that_one_is_in_is_no_place(trained, tmp_path, monkeypatch, capsys):
    root = trained.run.store.root.resolve().parent
    monkeypatch.chdir(tmp_path)
    for place in (".", "", str(tmp_path.parent)):
        assert launch.main(["--export", "r/k", place, "--runs", str(root)]) == 1
        assert "you are in " in capsys.readouterr().err
    assert Path.cwd().is_dir()


def test_a_file_is_no_place(call, tmp_path):
    (tmp_path / "k").write_text("")
    assert "is a file: name a folder" in call(tmp_path / "k")[2]


def test_a_bucket_is_no_place(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "--export writes a folder on this machine, got s3://b/k: export, then copy it there"
    assert said in call("s3://b/k")[2]
    assert not list(tmp_path.iterdir())


# stopped


@pytest.mark.parametrize("stops_at", range(1, 14))
def test_a_kill_at_any_moment_leaves_the_old_export_or_the_new_one(
    folder, trained, ensemble, tmp_path, monkeypatch, stops_at
):
    """`stops_at` counts the renames and removals: between them nothing else changes what is seen."""
    place = tmp_path / "k"
    shutil.copytree(folder, place)
    (place / "README.md").write_text("the old one")
    files = find_ensemble(trained.run.store.ensemble("k").root, Runs(tmp_path))
    with monkeypatch.context() as patched:
        kills_at(patched, stops_at)
        with contextlib.suppress(Killed):
            rewritten(place, files)
    if place.exists():
        assert (place / "README.md").read_text() in ("the old one", "the new one")
        assert {path.name for path in (place / "weights").iterdir()} == {
            path.name for path in (folder / "weights").iterdir()
        }
    rewritten(place, files)
    assert (place / "README.md").read_text() == "the new one"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_stopped_export_goes_on_with_the_weights_that_are_written(trained, ensemble, tmp_path, monkeypatch):
    files = find_ensemble(trained.run.store.ensemble("k").root, Runs(tmp_path))
    copied = []
    copy = shutil.copyfile
    monkeypatch.setattr(
        shutil, "copyfile", lambda source, target: (copied.append(source), copy(source, target))
    )
    with contextlib.suppress(KeyboardInterrupt), exporting(tmp_path / "k", ensemble) as place:
        write_files(place, files)
        raise KeyboardInterrupt
    assert not (tmp_path / "k").exists()
    assert len(copied) == 6
    rewritten(tmp_path / "k", files)
    assert len(copied) == 6


def test_two_exports_to_one_place_do_not_meet(ensemble, tmp_path):
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'a+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "file.write('process 7'); file.flush()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    lock = tmp_path / ".k.exporting" / "lock"
    lock.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        said = "is being written by process 7: wait for it"
        with pytest.raises(ConfigError, match=said), exporting(tmp_path / "k", ensemble):
            pass
        other.stdin.close()


def rewritten(place: Path, files: TaggerFiles) -> None:
    with exporting(place, files.ensemble) as new:
        write_files(new, files)
        write_text(new.card, "the new one")


class Killed(BaseException):
    pass


def kills_at(patched, stops_at: int) -> None:
    """The process ends before the n-th rename or removal."""
    count = itertools.count(1)

    def killed(function):
        def _killed(*args, **kwargs):
            if next(count) >= stops_at:
                raise Killed
            return function(*args, **kwargs)

        return _killed

    patched.setattr(os, "replace", killed(os.replace))
    patched.setattr(Path, "rename", killed(Path.rename))
    patched.setattr(shutil, "rmtree", killed(shutil.rmtree))


def same_files(one: Path, other: Path) -> bool:
    a, b = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other)
    )
    return a == b


# the card


@pytest.fixture(scope="module")
def card(folder) -> str:
    return (folder / "README.md").read_text()


def test_the_card_tells_the_honest_scores_with_their_interval(card, ensemble):
    report = ensemble.report
    assert re.search(rf"\| this ensemble \| {report['nested']:.4f} ± 0\.\d{{4}} \|", card)
    assert (
        f"| the best single variant, {report['single']['method']} | {report['single']['nested']:.4f} |"
        in card
    )
    assert "| the same variants with equal weights | 0." in card


def test_the_cards_interval_is_that_of_the_mean_over_pictures(trained, ensemble, card):
    run = trained.run
    probs = blend_oof(ensemble, run.store, run.catalog.train.ids)
    each = metric_named("f2").per_picture(ensemble.decoder.decode(probs), run.catalog.labels)
    assert f"± {1.96 * each.std(ddof=1) / len(each) ** 0.5:.4f} |" in card


def test_the_card_counts_the_commonest_labels(card, trained):
    catalog = trained.run.catalog
    commonest = catalog.labels.sum(axis=0).argmax()
    name, count = catalog.label_names[commonest], catalog.labels[:, commonest].sum()
    first = card.split("pictures that have it")[1].splitlines()[2]
    assert first.startswith(f"| {name} | {count} |")


def test_the_card_describes_the_data_the_members_and_the_decision(card, trained, ensemble):
    assert "90 training pictures, 40 labels, 3.1 labels per picture" in card
    assert ensemble.data_digest[:16] in card
    assert "3 folds, drawn with seed 0" in card
    for member in ensemble.members:
        assert (
            f"| {member.variant} | test\\_resnet | 32 | 1 | 3 | random weights | {member.weight:.3f} |"
            in card
        )
    assert f"is decided by: {ensemble.decoder}" in card
    assert "python launch.py --tag PICTURES --with k" in card


def test_the_card_names_no_path_of_this_machine(card, trained):
    assert str(trained.run.store.root.parents[3]) not in card


def test_the_hub_reads_the_cards_metadata(folder, ensemble):
    read = ModelCard.load(folder / "README.md")
    result = read.data.eval_results[0]
    assert (result.metric_name, result.metric_value) == ("F2, nested", round(ensemble.report["nested"], 4))
    assert read.data.pipeline_tag == "image-classification"
    assert read.text.lstrip().startswith("# k: 40 labels for pictures")


def test_without_the_data_the_card_says_less_and_says_so(trained, call, tmp_path):
    run = trained.run.store
    moved = tmp_path / "runs" / "r"
    shutil.copytree(run.root, moved)
    told = json.loads((moved / "experiment.json").read_text()) | {"data_root": "/gone", "data": "/gone"}
    (moved / "experiment.json").write_text(json.dumps(told))
    argv = ["--export", "k", str(tmp_path / "k"), "--runs", str(moved.parent)]
    assert launch.main(argv) == 0
    card = (tmp_path / "k" / "README.md").read_text()
    assert "The data were not there when this was written" in card
    assert "pictures that have it" not in card
    assert launch.main([*argv, "--data", "/gone"]) == 1  # named, it must be there


def test_names_that_markdown_would_read_are_shown_as_they_are():
    assert model_card._plain("a|b *c*\n<d>") == r"a\|b \*c\* \<d\>"


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_run_in_a_bucket_is_exported_by_a_machine_that_has_nothing_of_it(
    trained, folder, proxy, bucket, tmp_path
):
    store, root = open_bucket(proxy.scheme, bucket), trained.run.store.root
    for path in root.rglob("*"):
        if path.is_file() and path.name != "last.pt":
            store.put(path, f"runs/r/{path.relative_to(root).as_posix()}")
    where = ["--runs", f"{proxy.scheme}://{bucket}/runs", "--cache", str(tmp_path / "cache")]
    assert launch.main(["--export", "k", str(tmp_path / "k"), *where]) == 0
    assert same_files(tmp_path / "k", folder)
