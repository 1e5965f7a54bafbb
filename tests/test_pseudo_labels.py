"""Pseudo-labels: which are added, what reaches the training of a fold, and what a person is told."""

from dataclasses import replace

import numpy as np
import pytest
import serial_sweep
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from interrupted_trial import train_until
from safetensors.torch import load_file

import launch
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.prediction.ensemble import read_ensemble
from imet_ray.space_file import read_space
from imet_ray.specs import AddedLabels, Labels, Variant
from imet_ray.storage.added_labels import read_added
from imet_ray.storage.checked_read import read_arrays
from imet_ray.storage.files import write_arrays
from imet_ray.storage.results import read_spec, standings
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.pseudo_labels import choose, keep_source, predicted
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial

CPU = torch.device("cpu")
EASY = 0.02  # a probability that a model of three epochs passes
SPACE = """
n_folds: 2
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, keep: last, augmentation: none, lr: 0.01}
variants:
"""


def adding(**how) -> Labels:
    return Labels(add=AddedLabels.model_validate({"source": "tiny", "above": EASY} | how))


def weights_of(spec, data, folder) -> dict[str, torch.Tensor]:
    """Of a trial that is trained after its teacher of the same fold, if it has one."""
    run = RunDirectory(folder)
    trial = run.trial(spec.trial_id)
    assert train_trial(spec, data, trial, device=CPU).status == "complete"
    return load_file(trial.best)


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def pair(make_spec):
    """A teacher on fold 1, and how to make its student of the same fold."""
    teacher = make_spec(fold=1, epochs=2, keep="last")

    def student(**how):
        spec = make_spec(fold=1, name="student", epochs=2, keep="last", labels=adding(**how))
        return spec.model_copy(update={"after": {"tiny": teacher.trial_id} if spec.variant.after else {}})

    return teacher, student


def planted(data, fold: int):
    """The same data, but for the labels of one fold: each picture of it has others."""
    labels = data.labels.copy()
    rows = data.rows(fold, held_out=True)
    labels[rows] = np.roll(labels[rows], 3, axis=1)
    return replace(data, labels=labels)


def test_no_strict_student_of_a_fold_can_know_a_label_of_that_fold(pair, tiny_data, tmp_path):
    teacher, student = pair
    found = []
    for name, data in (("as it is", tiny_data), ("planted", planted(tiny_data, 1))):
        weights_of(teacher, data, tmp_path / name)
        found.append(weights_of(student(), data, tmp_path / name))
    assert len(read_added(RunDirectory(tmp_path / "planted").trial(student().trial_id)).rows) > 0
    assert same(*found)
    elsewhere = tmp_path / "another fold"
    data = planted(tiny_data, 2)  # which fold 1's student is trained on
    weights_of(teacher, data, elsewhere)
    assert not same(found[0], weights_of(student(), data, elsewhere))


def test_a_student_that_is_not_strict_may_know_them(make_spec, tiny_data, tmp_path):
    """Its labels come from out-of-fold predictions: those of fold 0 were made by a model that was trained on fold 1."""
    found = []
    for name, data in (("as it is", tiny_data), ("planted", planted(tiny_data, 1))):
        run = RunDirectory(tmp_path / name)
        probs = np.zeros(data.labels.shape, np.float16)
        for fold in range(3):
            others = data.labels[data.rows(fold, held_out=False)]
            probs[data.rows(fold, held_out=True)] = others.mean(0)  # the simplest model of all
        write_arrays(tmp_path / "oof.npz", ids=np.array(data.split.ids), probs=probs)
        how = AddedLabels(source=str(tmp_path / "oof.npz"), above=0.2, strict=False)
        keep_source(run, how, data)
        spec = make_spec(fold=1, epochs=1, keep="last", labels=Labels(add=how))
        found.append(weights_of(spec, data, run.root))
    assert not same(*found)


def test_added_labels_are_learnt_and_held_out_ones_stay(pair, tiny_data, tmp_path):
    teacher, student = pair
    weights_of(teacher, tiny_data, tmp_path)
    plain = weights_of(student(above=0.999), tiny_data, tmp_path)
    hard, soft = (weights_of(student(soft=soft), tiny_data, tmp_path) for soft in (1.0, 0.3))
    assert not same(plain, hard)
    assert not same(hard, soft)
    added = read_added(RunDirectory(tmp_path).trial(student().trial_id))
    assert set(added.rows) <= set(tiny_data.rows(1, held_out=False))
    assert not tiny_data.labels[added.rows, added.labels].any()


def test_a_student_that_was_killed_goes_on_bit_for_bit_without_its_teacher(pair, tiny_data, tmp_path):
    teacher, student = pair
    weights_of(teacher, tiny_data, tmp_path)
    run, spec = RunDirectory(tmp_path), student(soft=0.5)
    whole = weights_of(spec, tiny_data, tmp_path)
    trial = run.trial(spec.trial_id)
    for path in trial.root.iterdir():
        path.unlink()

    train_until(1, spec, tiny_data, trial)
    run.trial(teacher.trial_id).best.unlink()
    assert same(whole, weights_of(spec, tiny_data, tmp_path))


def test_a_teacher_that_is_gone_is_one_line(pair, tiny_data, tmp_path):
    teacher, student = pair
    weights_of(teacher, tiny_data, tmp_path)
    run = RunDirectory(tmp_path)
    run.trial(teacher.trial_id).best.unlink()
    with pytest.raises(StoreError, match="is gone, from which labels are to come: put it back"):
        train_trial(student(), tiny_data, run.trial(student().trial_id), device=CPU)


@given(
    arrays(np.float16, (6, 4), elements=st.floats(0, 1, width=16)),
    arrays(np.uint8, (8, 4), elements=st.integers(0, 1)),
    st.floats(0, 0.99),
    st.none() | st.floats(0.01, 5),
)
def test_the_surest_labels_that_pictures_lack_are_added_and_no_more_than_asked_for(
    probs, labels, above, at_most
):
    rows = np.array([0, 2, 3, 5, 6, 7])
    added = choose(probs, labels, rows, AddedLabels(source="a", above=above, at_most=at_most))
    wanted = sorted(
        (-float(probs[i, c]), i, c)
        for i in range(6)
        for c in range(4)
        if probs[i, c] > np.float16(above) and not labels[rows[i], c]
    )
    if at_most is not None:
        wanted = wanted[: int(at_most * 6)]
    assert added.rows.tolist() == [rows[i] for _, i, _ in wanted]
    assert added.labels.tolist() == [c for _, _, c in wanted]
    targets = added.onto(labels, 0.5)
    assert (targets == 0.5).sum() == len(wanted)
    assert np.array_equal(targets > 0.9, labels == 1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("{from: a, abov: 1}", "line 6: unknown key 'abov': did you mean 'above'?"),
        ("{from: aa}", "line 6: unknown variant 'aa': did you mean 'a'?"),
        ("{from: b}", "line 6: variant 'b' would wait for itself: b after b"),
        (
            "{from: x.npz}",
            "line 6: labels.add: nobody can tell which folds the models of .*x.npz saw: write strict: fal",
        ),
        (
            "{from: a, strict: false}",
            "line 6: labels.add: strict: false takes predictions of all folds, from RUN/ENS",
        ),
        (
            "{from: r/e/f}",
            "line 6: labels.add: from is a variant of the space, RUN/ENSEMBLE or a .npz file, got 'r/e/f'",
        ),
        ("{from: a, above: 1.0}", "line 6: labels.add.above must be less than 1"),
        ("{from: a, soft: 0}", "line 6: labels.add.soft must be greater than 0"),
        ("{above: 0.5}", "line 6: labels.add.from is missing"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_line(tmp_path, said, expected):
    (tmp_path / "s.yml").write_text(f"{SPACE}- {{name: a}}\n- {{name: b, labels: {{add: {said}}}}}\n")
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(").replace("?", r"\?")):
        read_space(tmp_path / "s.yml", check=check_recipe)


@pytest.mark.parametrize("field", ["labels.add.strict: [true, false]", "labels.add.source: [a, c]"])
def test_where_labels_come_from_is_not_searched_but_how_sure_is(tmp_path, field):
    text = f"{SPACE}- {{name: a}}\n- {{name: c}}\n- {{name: b, labels: {{add: {{from: a}}}}, search: {{"
    (tmp_path / "s.yml").write_text(
        text + "labels.add.above: {low: 0.3, high: 0.7}, labels.add.at_most: [1, 2]}}"
    )
    space = read_space(tmp_path / "s.yml", check=check_recipe)
    assert space.ranges["b"]["labels.add.above"].high == 0.7
    (tmp_path / "s.yml").write_text(text + field + "}}")
    with pytest.raises(ConfigError, match="line|labels"):
        read_space(tmp_path / "s.yml", check=check_recipe)


def test_no_labels_leave_the_id_of_a_trial_as_it_was(make_spec):
    spec = make_spec()
    assert make_spec(labels=None).trial_id == spec.trial_id
    assert make_spec(labels=adding()).trial_id != spec.trial_id
    assert (
        Variant.model_validate_json(make_spec(labels=adding()).variant.model_dump_json()).added
        == adding().add
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda ids, probs: {"ids": ids}, "must have ids .n,. and probs .n, C."),
        (
            lambda ids, probs: {"ids": ids[1:], "probs": probs[1:]},
            "has no predictions of 1 training pictures, such as ",
        ),
        (lambda ids, probs: {"ids": ids, "probs": probs[:, 1:]}, "a column per label, got"),
        (lambda ids, probs: {"ids": ids, "probs": probs + np.float16(2)}, "numbers outside 0..1"),
        (lambda ids, probs: {"ids": ids, "probs": probs * np.float16("nan")}, "has NaN"),
    ],
)
def test_predictions_that_do_not_fit_the_data_are_refused(tiny_data, tmp_path, change, expected):
    ids, probs = np.array(tiny_data.split.ids), np.zeros(tiny_data.labels.shape, np.float16)
    write_arrays(tmp_path / "p.npz", **change(ids, probs))
    with pytest.raises(DataError, match=expected):
        predicted(tmp_path / "p.npz", tiny_data.split.ids, len(tiny_data.label_ids))


def test_predictions_may_have_more_pictures_in_any_order(tiny_data, tmp_path):
    ids = np.array([*tiny_data.split.ids[::-1], "another"])
    probs = np.linspace(0, 1, len(ids) * len(tiny_data.label_ids)).reshape(len(ids), -1).astype(np.float16)
    write_arrays(tmp_path / "p.npz", ids=ids, probs=probs)
    assert np.array_equal(predicted(tmp_path / "p.npz", tiny_data.split.ids, probs.shape[1]), probs[-2::-1])


@pytest.fixture(scope="module")
def swept(tiny_root, tiny_cache, tmp_path_factory):
    """A run with a teacher, and a later one with students of each kind: from a variant, an ensemble, predictions."""
    folder = tmp_path_factory.mktemp("swept")
    argv = ["--data", str(tiny_root), "--runs", str(folder), "--cache", str(tiny_cache.root)]
    (folder / "first.yml").write_text(f"{SPACE}- {{name: a}}\n")
    assert serial_sweep.sweep([*argv, "--space", str(folder / "first.yml"), "--name", "first"]) == 0
    (folder / "second.yml").write_text(
        f"{SPACE}- {{name: a}}\n- {{name: b, labels: {{add: {{from: a, above: {EASY}}}}}}}\n"
        f"- {{name: c, labels: {{add: {{from: first/blend, above: {EASY}}}}}}}\n"
        f"- {{name: d, labels: {{add: {{from: first/blend, above: {EASY}, strict: false, at_most: 1.5}}}}}}\n"
    )
    argv += ["--space", str(folder / "second.yml")]
    assert serial_sweep.sweep([*argv, "--name", "second"]) == 0
    return folder, argv


@pytest.mark.slow
def test_a_sweep_trains_teachers_before_students_and_each_kind_gets_its_labels(swept):
    run = RunDirectory(swept[0] / "second")
    found = {one.variant: one for one in standings(run, "abcd")}
    assert all(one.whole for one in found.values())
    for fold in range(2):
        trials = {name: found[name].trials[fold] for name in "abcd"}
        assert read_spec(trials["b"]).after == {"a": trials["a"].trial_id}
        of_variant, of_models, of_oof = (read_added(trials[name]) for name in "bcd")
        # one model is the ensemble, and was trained alike: its labels are the variant's
        assert np.array_equal(of_variant.rows, of_models.rows)
        assert np.array_equal(of_variant.labels, of_models.labels)
        assert 0 < len(of_oof.rows) <= 1.5 * (90 - len(read_arrays(trials["d"].oof)["ids"]))
        oof = read_arrays(RunDirectory(swept[0] / "first").ensemble("blend").oof)["probs"]
        assert np.array_equal(of_oof.probs, oof[of_oof.rows, of_oof.labels].astype(np.float32))


@pytest.mark.slow
def test_the_report_says_how_many_were_added_which_and_what_they_did(swept):
    place = RunDirectory(swept[0] / "second").ensemble("blend")
    page = place.report.read_text()
    assert "Pseudo-labels" in page
    assert "not strict: flatters" in page
    assert " over a</td>" in page
    remarks = read_ensemble(place).report["remarks"]
    assert [
        line for line in remarks if line.startswith("optimistic: d learnt labels from models that had seen")
    ]
    assert not [line for line in remarks if line.startswith(("optimistic: b", "optimistic: c"))]


@pytest.mark.slow
def test_a_run_goes_on_with_the_labels_that_it_began_with_though_their_source_is_gone(swept, capsys):
    folder, argv = swept
    (folder / "first").rename(folder / "gone")
    before = {trial.trial_id for trial in RunDirectory(folder / "second").trials()}
    assert serial_sweep.sweep([*argv, "--name", "second"]) == 0
    assert {trial.trial_id for trial in RunDirectory(folder / "second").trials()} == before
    assert serial_sweep.sweep([*argv, "--name", "third"]) == 1
    assert "no ensemble 'blend' in" in capsys.readouterr().err
    (folder / "gone").rename(folder / "first")


@pytest.mark.slow
def test_the_check_of_the_data_counts_them(swept, tiny_root, capsys):
    folder, _ = swept
    where = ["--runs", str(folder), "--space", str(folder / "second.yml")]
    assert launch.main(["--check-data", str(tiny_root), *where]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("labels        ")]
    assert lines[1].endswith(f"b: pseudo-labels from a above {EASY:g}; each fold's own models choose them")
    assert "d: pseudo-labels from first/blend above" in lines[3]
    assert "labels on " in lines[3]
    assert "not strict" in lines[3]


@pytest.mark.slow
def test_models_of_other_folds_are_refused_as_strict_teachers(swept, tiny_data, capsys):
    folder, argv = swept
    name = [*argv, "--name", "other-folds", "--set", "epochs=1"]
    text = (folder / "second.yml").read_text()
    (folder / "other.yml").write_text(text.replace("n_folds: 2", "n_folds: 2\nseed: 7"))
    assert serial_sweep.sweep([*name, "--space", str(folder / "other.yml")]) == 1
    assert "first/blend was made of other folds" in capsys.readouterr().err
