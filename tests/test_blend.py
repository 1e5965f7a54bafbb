"""The blend's command line: one line for a mistake, and a run or the 2019 files become an ensemble."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import launch
from imet_ray.prediction.ensemble import blend_oof, read_ensemble
from imet_ray.prediction.metrics import METRICS
from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import EnsembleDirectory

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")


@pytest.fixture
def mine(trained, tmp_path) -> Path:
    """Another tool's predictions, rows in any order: nearly right."""
    ids, labels = trained.run.data.split.ids, trained.run.data.labels
    rows = np.random.default_rng(0).permutation(len(ids))
    noise = np.random.default_rng(1).uniform(0, 0.05, labels.shape)
    probs = np.abs(labels - noise).astype(np.float32)
    np.savez(tmp_path / "mine.npz", ids=np.array(ids)[rows], probs=probs[rows])
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(
    ("argv", "code", "expected"),
    [
        (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["--memb", "a"], 2, "unrecognized arguments"),
        (["--min-weight", "much"], 2, "invalid float value: 'much'"),
        (["--max-members", "1.5"], 2, "invalid int value: '1.5'"),
        (["--average", "logits"], 2, "invalid choice: 'logits'"),
        (["--seconds", "soon"], 1, "--seconds takes 2h, 90m or 1h30m, got 'soon'"),
        (["--bytes", "20 apples"], 1, "--bytes takes a size such as 20GB or 500MB, got '20 apples'"),
        (["--bytes", "0GB"], 1, "--bytes takes a size"),
        (["--images", "0", "--seconds", "1h"], 1, "--images must be in 1..1000000000000, got 0"),
        (["--members", "a,,b"], 1, "--members takes names separated by commas, each once, got 'a,,b'"),
        (["--members", "a,a"], 1, "--members takes names separated by commas, each once, got 'a,a'"),
        (["--images", "10"], 1, "--images counts the pictures that --seconds is for: give both"),
        (["--out", "../x"], 1, "an ensemble's name takes letters"),
        (["--out", ""], 1, "an ensemble's name takes letters"),
        (["--folds", "folds.npy"], 1, "--folds and --labels go with the 2019 solution's files"),
        (["--labels", "train.csv"], 1, "--folds and --labels go with the 2019 solution's files"),
        (["name"], 1, "the 2019 solution's files need a name first"),
        (["name", "level1.npy", "--folds", "f.npy"], 1, "and their folds and labels"),
        (["../x", "a.npy", "--folds", "f", "--labels", "l"], 1, "an ensemble's name takes letters"),
        (["x", "a.npy", "--folds", "f", "--labels", "l", "--bytes", "1"], 1, "--bytes goes with a run"),
        (["x", "a.npy", "--folds", "f", "--labels", "l", "--name", "r"], 1, "--name goes with a run"),
        (["x", "a.npy", "--folds", "f", "--labels", "l", "--out", "y"], 1, "--out goes with a run"),
        (
            ["--runs", "/nowhere"],
            1,
            "no run in /nowhere: start one with `python launch.py --sweep --runs /nowhere`",
        ),
        (["--address", "ray://x:1"], 1, "--address takes auto or HOST:PORT"),
        (["--address", "127.0.0.1:00001" + "0" * 5000], 1, "--address takes auto or HOST:PORT, got '127.0"),
        (["--runs", "/nowhere", "--decoder", ""], 1, "unknown decoder ''"),
        (
            ["x", "a.npy", "--folds", "f", "--labels", "l", "--level2", "logistic"],
            1,
            "--level2 logistic needs prob",
        ),
        (
            ["x", "a.npy", "--folds", "f", "--labels", "l", "--decoder", "expected-f2"],
            1,
            "needs probabilities",
        ),
        (["--address", "nowhere"], 1, "--address takes auto or HOST:PORT, got 'nowhere'"),
        (["--address", "127.0.0.1:1"], 1, "nobody answers at 127.0.0.1:1"),
        (["--address", "a.invalid:6379"], 1, "nobody answers at a.invalid:6379"),
        (["--runs", "/nowhere", "--method", "lines"], 1, "unknown method 'lines': did you mean 'line'?"),
        (["--runs", "/nowhere", "--decoder", "treshold"], 1, "unknown decoder 'treshold'"),
        (["--runs", "/nowhere", "--level2", "tree"], 1, "unknown level 2 'tree'"),
        (["--runs", "/nowhere", "--min-weight", "2"], 1, "--min-weight must be in 0..1, got 2.0"),
        (["--runs", "/nowhere", "--max-members", "0"], 1, "--max-members must be at least 1, got 0"),
        (["--images", "9" * 400, "--seconds", "1h"], 1, "--images must be in 1..1000000000000, got 999"),
        (["--seconds", "9" * 400 + "h"], 1, "--seconds takes at most 3653 days, got '999"),
        (["--bytes", "9" * 400 + "GB"], 1, "--bytes takes at most 1e+18 bytes, got '999"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(call_blend, argv, code, expected):
    found, out, err = call_blend(*argv)
    assert found == code
    assert expected in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert out == ""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--name", "s"], "no run 's' in"),
        (["--members", "a,c"], "unknown member 'c': Trained on all folds: a, b"),
        (["--member", "mine"], "--member takes NAME=FILE, got 'mine'"),
        (["--member", "mine=/nowhere.npz"], "member mine (/nowhere.npz) cannot be read"),
        (["--bytes", "1KB"], "no member fits the budget"),
    ],
)
def test_what_a_run_cannot_give_is_one_line_and_writes_nothing(call_blend, trained, argv, expected):
    code, out, err = call_blend(*trained.where, "--out", "none", *argv)
    assert code == 1
    assert expected in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not trained.run.store.ensemble("none").ensemble.exists()


def test_the_newest_run_becomes_an_ensemble_that_decodes_to_what_is_reported(call_blend, trained):
    code, out, err = call_blend(*trained.where)
    assert code == 0, err
    run = trained.run
    ensemble = read_ensemble(run.store.ensemble("blend"))
    assert [member.variant for member in ensemble.members] == ["a", "b"]
    for member in ensemble.members:
        assert [read_spec(run.store.trial(trial)).fold for trial in member.trials] == [0, 1, 2]
        assert member.seconds > 0
        assert member.size == sum(run.store.trial(trial).best.stat().st_size for trial in member.trials)
    assert (ensemble.data_digest, ensemble.folds_digest) == (run.data.split.digest, run.data.folds_digest)
    decoded = ensemble.decoder.decode(blend_oof(ensemble, run.store, run.data.split.ids))
    assert F2.score(decoded, run.data.labels) == pytest.approx(ensemble.report["chosen"]["own"], abs=2e-4)
    assert out.strip() == ensemble.report["text"].strip()
    assert "its nested F2: " in out
    assert "python launch.py --predict blend --name r" in err
    assert run.store.ensemble("blend").report.read_text().startswith("<!")


def test_a_method_and_a_decoder_that_are_asked_for_are_used_and_all_of_it_is_json(call_blend, trained):
    how = [
        "--method",
        "nelder-mead",
        "--decoder",
        "threshold",
        "--average",
        "log-odds",
        "--out",
        "j",
        "--json",
    ]
    code, out, err = call_blend(*trained.where, *how)
    found = json.loads(out)
    assert code == 0, err
    assert (found["chosen"]["method"], found["chosen"]["decoder"]) == ("nelder-mead", "threshold")
    assert (found["forced"], found["scale"]) == (True, "log-odds")
    assert found["nested"] == found["chosen"]["nested"]
    assert {row["method"] for row in found["rows"]} == {"uniform", "nelder-mead", "a", "b"}
    ensemble = read_ensemble(trained.run.store.ensemble("j"))
    assert ensemble.report.items() <= found.items()
    labels = trained.run.data.labels
    assert [row["true"] for row in found["labels"]] == labels.sum(axis=0).tolist()
    assert all(0 <= row["hits"] <= min(row["true"], row["predicted"]) for row in found["labels"])
    assert found["score_by_group"].keys() == {"culture", "tag"}
    for kind, has in (("probable_labels_that_are_missing", 0), ("improbable_labels_that_are_there", 1)):
        for mistake in found[kind]:
            row = trained.run.data.split.ids.index(mistake["id"])
            assert labels[row, trained.run.data.label_ids.index(mistake["label"])] == has
    assert [member.weight for member in ensemble.members] == found["chosen"]["weights"]


def test_another_tools_predictions_join_the_blend(call_blend, trained, mine):
    how = ["--member", f"mine={mine}", "--method", "greedy", "--decoder", "expected-f2", "--out", "m"]
    code, out, err = call_blend(*trained.where, *how)
    ensemble = read_ensemble(trained.run.store.ensemble("m"))
    assert code == 0, err
    assert [member.variant for member in ensemble.members] == ["a", "b", "mine"]
    assert ensemble.members[2].trials == []
    assert ensemble.members[2].weight > 0.8
    assert ensemble.members[2].score > 0.95
    assert "taken on trust: mine predicted each picture without having learnt from its fold" in out


def test_other_tools_predictions_are_blended_where_no_variant_is_trained_on_all_folds(
    call_blend, trained, mine, tmp_path
):
    runs = tmp_path / "runs"
    (runs / "r").mkdir(parents=True)
    for path in (trained.run.store.experiment, trained.run.store.folds):
        shutil.copy(path, runs / "r")
    where = ["--runs", runs, *trained.where[2:]]
    code, _, err = call_blend(*where)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "sweep first, or give --member NAME=FILE" in err
    code, _, err = call_blend(
        *where, "--member", f"one={mine}", "--member", f"two={mine}", "--method", "line"
    )
    assert code == 0, err
    members = read_ensemble(EnsembleDirectory(runs / "r" / "ensembles" / "blend")).members
    assert [(member.variant, member.trials) for member in members] == [("one", []), ("two", [])]


def test_another_tools_member_cannot_have_a_variants_name(call_blend, trained, mine):
    code, _, err = call_blend(*trained.where, "--member", f"a={mine}")
    assert code == 1
    assert "member a comes twice" in err


def test_a_replaced_ensemble_is_said_only_if_there_was_one(call_blend, trained):
    said = []
    for _ in range(2):
        code, _, err = call_blend(*trained.where, "--out", "twice", "--method", "uniform")
        assert code == 0, err
        said.append("the earlier ensemble twice was replaced" in err)
    code, _, err = call_blend(*trained.where, "--out", "twice", "--bytes", "1KB")
    assert code == 1
    assert "replaced" not in err
    assert said == [False, True]


@pytest.fixture
def lost(trained):
    """Lets the run be without one trial: variant b's of fold 1."""
    trials = trained.run.store.trials()
    (trial,) = [t for t in trials if (s := read_spec(t)).variant.name == "b" and s.fold == 1]
    kept = trained.run.store.root / "lost"

    @contextlib.contextmanager
    def _lost():
        trial.root.rename(kept)
        try:
            yield
        finally:
            kept.rename(trial.root)

    return _lost


def test_a_variant_that_lacks_a_fold_is_left_out_aloud(call_blend, trained, lost):
    with lost():
        code, out, err = call_blend(*trained.where, "--out", "without", "--method", "uniform")
    assert code == 0, err
    assert "left out: b (not trained on fold 1)" in out
    report = trained.run.store.ensemble("without").report.read_text()
    assert "left out: b (not trained on fold 1)" in report


def test_an_ensemble_is_replaced_by_one_that_lacks_a_member_only_if_told_to(call_blend, trained, lost):
    how = [*trained.where, "--out", "kept", "--method", "uniform"]
    assert call_blend(*how)[0] == 0
    place = trained.run.store.ensemble("kept")
    before = place.ensemble.read_bytes()
    with lost():
        code, out, err = call_blend(*how)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert (
            "the ensemble kept has b, which the new one would lack; left out: b (not trained on fold 1)"
            in err
        )
        assert "--replace" in err
        assert place.ensemble.read_bytes() == before
        assert place.report.exists()
        code, _, err = call_blend(*how, "--replace")
    assert code == 0, err
    assert [member.variant for member in read_ensemble(place).members] == ["a"]
    assert "the earlier ensemble kept was replaced" in err
    assert call_blend(*how)[0] == 0  # with b again: nothing is lost


def test_a_sweep_that_could_not_replace_its_ensemble_says_so_before_it_trains(
    call_blend, trained, tmp_path, tiny_root, capsys, monkeypatch
):
    assert call_blend(*trained.where, "--out", "blend", "--method", "uniform")[0] == 0
    (tmp_path / "less.yml").write_text(
        "n_folds: 3\n"
        "base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, lr: 0.003, keep: last}\n"
        "variants: [{name: b, augmentation: none}]\n"
    )
    monkeypatch.setattr("imet_ray.commands.sweep.start", lambda plan: pytest.fail("it begins"))
    argv = ["--sweep", "--space", str(tmp_path / "less.yml"), "--data", str(tiny_root), "--name", "r"]
    assert launch.main([*argv, *trained.where]) == 1
    assert "the ensemble blend has a, which the new one would lack: say --replace" in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception, match="it begins"):
        launch.main([*argv, *trained.where, "--replace"])


@pytest.mark.parametrize("fewer", [["--members", "a"], ["--bytes", "{}"], []])
def test_a_budget_or_a_choice_or_a_tool_that_is_not_named_again_is_no_leave_to_replace(
    call_blend, trained, mine, fewer
):
    how = [*trained.where, "--out", "large", "--method", "uniform"]
    assert call_blend(*how, "--replace", "--member", f"mine={mine}")[0] == 0
    size = max(trial.best.stat().st_size for trial in trained.run.store.trials())
    code, _, err = call_blend(*how, *(option.format(int(3.5 * size)) for option in fewer))
    assert code == 1
    assert "the ensemble large has " in err
    assert len(read_ensemble(trained.run.store.ensemble("large")).members) == 3


def test_a_named_variant_that_lacks_a_fold_is_not_called_unknown(call_blend, trained, lost):
    with lost():
        code, _, err = call_blend(*trained.where, "--members", "a,b", "--out", "none")
    assert code == 1
    assert "got b (not trained on fold 1)" in err


def test_a_damaged_ensemble_is_no_hindrance(call_blend, trained):
    place = trained.run.store.ensemble("damaged")
    place.root.mkdir(parents=True)
    place.ensemble.write_text("{")
    assert call_blend(*trained.where, "--out", "damaged", "--method", "uniform")[0] == 0
    read_ensemble(place)


def test_where_limits_leave_one_member_the_blend_says_so(call_blend, trained):
    code, out, err = call_blend(*trained.where, "--max-members", "1", "--method", "greedy", "--out", "one")
    assert code == 0, err
    assert "all the weight is on " in out
    assert "does NOT beat" not in out


def test_only_the_named_members_are_blended(call_blend, trained):
    code, out, err = call_blend(*trained.where, "--members", "b", "--decoder", "threshold", "--out", "b")
    assert code == 0, err
    assert "one variant, nothing to blend" in out
    assert [m.variant for m in read_ensemble(trained.run.store.ensemble("b")).members] == ["b"]


def test_the_budget_leaves_out_what_does_not_fit_and_stands_in_the_report(call_blend, trained):
    sizes = [trial.best.stat().st_size for trial in trained.run.store.trials()]
    how = [
        "--bytes",
        str(int(3.5 * max(sizes))),
        "--seconds",
        "10h",
        "--images",
        "1000",
        "--out",
        "c",
    ]
    code, out, err = call_blend(*trained.where, *how, "--method", "uniform", "--json")
    found = json.loads(out)
    assert code == 0, err
    assert len(found["names"]) == 1
    assert found["budget"]["names"] == found["names"]
    assert found["budget"]["size"] <= 3.5 * max(sizes)
    assert any("members chosen for the budget" in remark for remark in found["remarks"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--weights", "a"], "--weights takes each member once with its weight, a=0.3,b=0.7, got 'a'"),
        (["--weights", "a=1,a=2"], "got 'a=2'"),
        (["--weights", "a=much"], "got 'a=much'"),
        (["--weights", "a=1", "--method", "line"], "--method is for weights that are fitted"),
        (["--weights", "a=1", "--min-weight", "0.1"], "--min-weight is for weights that are fitted"),
        (["--runs", "/nowhere", "--weights", "a=-1"], "--weights takes numbers of at least 0"),
        (["--threshold", "0.2", "--decoder", "expected-f2"], "--threshold is of the decoder threshold"),
        (["--runs", "/nowhere", "--threshold", "1"], "--threshold must be above 0 and below 1, got 1.0"),
        (["x", "a.npy", "--folds", "f", "--labels", "l", "--threshold", "0.2"], "--threshold needs prob"),
        (["--limits", "many"], "--limits takes ranges such as 1..10"),
    ],
)
def test_what_cannot_be_given_by_hand_is_one_line(call_blend, argv, expected):
    code, out, err = call_blend(*argv)
    assert (code, out) == (1, "")
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--weights", "a=1"], "--weights must name every member, and lacks b"),
        (["--weights", "a=1,b=1,c=1"], "unknown member 'c'"),
        (["--start", "nobody"], "no ensemble 'nobody'"),
        (["--start", "runs/r/ensembles/first"], "got 'runs/r/ensembles/first': leave out the rest"),
        (["--start", "/nowhere.yml"], "/nowhere.yml cannot be read"),
        (["--limits", "culure=..3"], "unknown label group 'culure': did you mean 'culture'?"),
    ],
)
def test_what_the_members_or_labels_lack_is_one_line_and_writes_nothing(call_blend, trained, argv, expected):
    code, out, err = call_blend(*trained.where, "--out", "none", *argv)
    assert (code, out) == (1, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not trained.run.store.ensemble("none").ensemble.exists()


def test_weights_threshold_and_limits_by_hand_become_the_ensemble(call_blend, trained):
    by_hand = ["--weights", "a=3,b=1", "--threshold", "0.2", "--limits", "1..2"]
    code, out, err = call_blend(*trained.where, "--out", "by-hand", *by_hand)
    assert code == 0, err
    assert "by-hand was asked for" in out
    assert "limits on labels, given: 1..2, under threshold" in out
    run = trained.run
    ensemble = read_ensemble(run.store.ensemble("by-hand"))
    assert [member.weight for member in ensemble.members] == [0.75, 0.25]
    assert str(ensemble.decoder) == "threshold 0.2000, limits 1..2"
    probs = blend_oof(ensemble, run.store, run.data.split.ids)
    assert set(ensemble.decoder.decode(probs).sum(1)) <= {1, 2}
    score = F2.score(ensemble.decoder.decode(probs), run.data.labels)
    assert score == pytest.approx(ensemble.report["chosen"]["own"], abs=1e-6)
    page = run.store.ensemble("by-hand").report.read_text()
    assert "limits on labels, given: 1..2" in page


def test_an_earlier_ensemble_is_compared_and_its_own_oof_is_a_member(call_blend, trained):
    assert call_blend(*trained.where, "--out", "first", "--weights", "a=3,b=1")[0] == 0
    run = trained.run
    oof = run.store.ensemble("first").oof
    with np.load(oof) as file:
        assert file["ids"].tolist() == list(run.data.split.ids)
        expected = blend_oof(read_ensemble(run.store.ensemble("first")), run.store, run.data.split.ids)
        assert np.abs(file["probs"] - expected).max() < 1e-3
        assert file["probs"].dtype == np.float16
    code, out, err = call_blend(
        *trained.where, "--out", "second", "--start", "first", "--method", "greedy", "--member", f"old={oof}"
    )
    assert code == 0, err
    assert "as first" in out
    assert "the weights of first may have been fitted on the pictures that are scored" in out
    members = read_ensemble(run.store.ensemble("second")).members
    assert [member.variant for member in members] == ["a", "b", "old"]
