"""Predictions and what is made of them: nothing that does not belong together is combined."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imet_ray.errors import DataError, StoreError
from imet_ray.prediction.decode import Threshold
from imet_ray.prediction.ensemble import (
    Ensemble,
    EnsembleMember,
    blend_oof,
    blend_test,
    cost_of,
    gather_oof,
    read_ensemble,
    write_ensemble,
)
from imet_ray.prediction.pooling import SCALES, averaged
from imet_ray.prediction.predict import Predictions, fits, read_predictions, write_predictions
from imet_ray.storage.files import write_arrays
from imet_ray.storage.run_directory import RunDirectory

IDS = [f"p{i}" for i in range(7)]  # the order of train.csv
N_LABELS = 3
TEST_IDS = ["t2", "t0", "t1"]


def predicted(ids, checkpoint="weights", views=("centre",), seed=0) -> Predictions:
    probs = np.random.default_rng((seed, len(ids))).random((len(ids), N_LABELS)).astype(np.float16)
    return Predictions(np.array(ids), probs, checkpoint, views, "pictures", 1.5)


def held_out(store, *folds):
    """The trials of these folds, with an out-of-fold file of the given pictures each."""
    trials = [store.trial(f"fold{i}") for i in range(len(folds))]
    for i, (trial, ids) in enumerate(zip(trials, folds, strict=True)):
        write_predictions(trial.oof, predicted(ids, f"weights of fold{i}", seed=i))
    return trials


def ensemble_of(store, weights=(0.75, 0.25), n_folds=2, scale="probability") -> Ensemble:
    """Members with predictions of all pictures, train and test."""
    members = []
    for m, weight in enumerate(weights):
        trials = [store.trial(f"m{m}f{fold}") for fold in range(n_folds)]
        for fold, trial in enumerate(trials):
            write_predictions(trial.oof, predicted(IDS[fold::n_folds], trial.trial_id, seed=10 * m + fold))
            write_predictions(trial.test, predicted(TEST_IDS, trial.trial_id, seed=100 + 10 * m + fold))
        ids = [trial.trial_id for trial in trials]
        settings = {"variant": f"v{m}", "weight": weight, "threshold": 0.2, "score": 0.5}
        members.append(EnsembleMember(**settings, trials=ids, checkpoints=ids))
    return Ensemble(
        name="blend",
        data_digest="data",
        folds_digest="folds",
        label_ids=["a", "b", "c"],
        members=members,
        scale=scale,
        decoder=Threshold(threshold=0.2),
        report={"nested": 0.5},
    )


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_rows_of_all_folds_come_into_the_order_of_train_csv(store):
    folds = [["p5", "p0"], ["p3", "p6", "p1"], ["p4", "p2"]]
    trials = held_out(store, *folds)
    probs, digests = gather_oof(trials, IDS, "a")
    for trial, ids in zip(trials, folds, strict=True):
        found = read_predictions(trial.oof)
        for picture, row in zip(ids, found.probs, strict=True):
            assert np.array_equal(probs[IDS.index(picture)], row)
    assert probs.dtype == np.float16
    assert digests == ["weights of fold0", "weights of fold1", "weights of fold2"]


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        ([IDS[:4], IDS[3:]], r"variant a: picture 'p3' is predicted 2 times out of fold"),
        ([[*IDS, "p2"]], r"variant a: picture 'p2' is predicted 2 times"),
        ([IDS[:4], IDS[5:]], r"variant a: picture 'p4' is predicted 0 times.*launch.py --oof"),
        ([], r"variant a: picture 'p0' is predicted 0 times"),
        ([IDS[:4], [*IDS[4:], "stranger"]], r"fold1.*predicts picture 'stranger', which train.csv lacks"),
    ],
)
def test_a_picture_that_is_not_covered_just_once_is_named(store, folds, expected):
    trials = held_out(store, *folds)
    with pytest.raises(DataError, match=expected):
        gather_oof(trials, IDS, "a")


def test_an_ensemble_is_read_as_it_was_written(store):
    ensemble = ensemble_of(store)
    write_ensemble(store.ensemble("blend"), ensemble)
    assert read_ensemble(store.ensemble("blend")) == ensemble


def test_what_an_older_ensemble_of_that_name_predicted_goes(store):
    place = store.ensemble("blend")
    place.root.mkdir(parents=True)
    for path in (place.test, place.submission, place.report):
        path.write_text("old")
    write_ensemble(place, ensemble_of(store))
    assert [path.name for path in place.root.iterdir()] == ["ensemble.json"]


def test_on_a_full_disk_an_older_ensemble_keeps_what_it_predicted(store, monkeypatch):
    place = store.ensemble("blend")
    write_ensemble(place, ensemble_of(store))
    before = place.ensemble.read_text()
    place.test.write_text("old")

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match="disk full while writing"):
            write_ensemble(place, ensemble_of(store, weights=(0.5, 0.5)))
    assert place.test.read_text() == "old"
    assert place.ensemble.read_text() == before


def test_a_member_without_its_weights_is_one_line(store):
    trials = held_out(store, IDS)
    with pytest.raises(StoreError, match=r"best.safetensors is missing: the ensemble could not predict"):
        cost_of(trials)


def test_damaged_predictions_say_how_to_have_them_again(store):
    trials = held_out(store, IDS)
    for state in ("damaged", "missing"):
        trials[0].oof.write_text("half") if state == "damaged" else trials[0].oof.unlink()
        for read in (lambda: gather_oof(trials, IDS, "a"), lambda: cost_of(trials)):
            with pytest.raises(
                StoreError, match=rf"oof.npz is {state}: run `python launch.py --oof --name .*`, which"
            ):
                read()


def test_an_unknown_ensemble_names_those_that_exist(store):
    with pytest.raises(StoreError, match=r"no ensemble 'best'.*make one with `python blend.py --name .*`"):
        read_ensemble(store.ensemble("best"))
    for name in ("blend", "all"):
        write_ensemble(store.ensemble(name), ensemble_of(store))
    with pytest.raises(StoreError, match=r"no ensemble 'best'.*choose one of: all, blend"):
        read_ensemble(store.ensemble("best"))


def test_a_fold_of_other_labels_than_another_is_refused_with_the_way_out(store):
    trials = held_out(store, IDS[:4], IDS[4:])
    found = read_predictions(trials[1].oof)
    write_predictions(trials[1].oof, replace(found, probs=found.probs[:, 1:]))
    with pytest.raises(
        StoreError, match=r"variant a are of 3 labels.*fold1.*of 2: run `python launch.py --oof --name"
    ):
        gather_oof(trials, IDS, "a")


@pytest.mark.parametrize(("weights", "n_folds"), [((1.0,), 1), ((0.75, 0.25), 2), ((0.2, 0.3, 0.5), 3)])
def test_test_predictions_are_averaged_over_folds_then_variants(store, weights, n_folds):
    ensemble = ensemble_of(store, weights, n_folds)
    blended = blend_test(ensemble, store, TEST_IDS)
    assert blended.shape == (len(TEST_IDS), N_LABELS)
    for i, c in np.ndindex(blended.shape):
        cell = 0.0
        for member in ensemble.members:
            of_folds = [float(read_predictions(store.trial(t).test).probs[i, c]) for t in member.trials]
            cell += member.weight * sum(of_folds) / len(of_folds)
        assert blended[i, c] == pytest.approx(cell, abs=1e-6)


def test_out_of_fold_predictions_are_averaged_over_variants(store):
    ensemble = ensemble_of(store)
    blended = blend_oof(ensemble, store, IDS)
    for i, picture in enumerate(IDS):
        row = np.zeros(N_LABELS)
        for member in ensemble.members:
            for trial in member.trials:
                found = read_predictions(store.trial(trial).oof)
                row += member.weight * found.probs[found.ids == picture].astype(float).sum(0)
        assert blended[i] == pytest.approx(row, abs=1e-6)


def test_folds_are_averaged_as_probabilities_and_variants_as_log_odds_where_the_ensemble_does(store):
    ensemble = ensemble_of(store, scale="log-odds")
    of_variants = []
    for member in ensemble.members:
        folds = [read_predictions(store.trial(t).test).probs.astype(np.float32) for t in member.trials]
        of_variants.append(np.mean(folds, axis=0))
    mean = averaged(of_variants, np.array([0.75, 0.25]), "log-odds")
    assert blend_test(ensemble, store, TEST_IDS) == pytest.approx(mean, abs=1e-6)
    oof = [gather_oof([store.trial(t) for t in m.trials], IDS, m.variant)[0] for m in ensemble.members]
    mean = averaged(oof, np.array([0.75, 0.25]), "log-odds")
    assert blend_oof(ensemble, store, IDS) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_a_member_of_another_tool_joins_with_the_predictions_that_are_given(store, scale):
    ours = ensemble_of(store, (1.0,), scale=scale)
    theirs = EnsembleMember(variant="mine", weight=0.4, threshold=0.2, trials=[], checkpoints=[], score=0.5)
    members = [ours.members[0].model_copy(update={"weight": 0.6}), theirs]
    ensemble = ours.model_copy(update={"members": members})
    for blend, ids in ((blend_test, TEST_IDS), (blend_oof, IDS)):
        given = np.random.default_rng(1).random((len(ids), N_LABELS)).astype(np.float32)
        own = blend(ours, store, ids)
        mixed = blend(ensemble, store, ids, external={"mine": given})
        assert mixed == pytest.approx(averaged([own, given], np.array([0.6, 0.4]), scale), abs=1e-5)
        for external in (None, {"other": given}):
            with pytest.raises(StoreError, match="member mine comes from another tool"):
                blend(ensemble, store, ids, external=external)


def test_a_member_of_another_tool_without_weight_is_not_needed(store):
    ours = ensemble_of(store, (1.0,))
    idle = EnsembleMember(variant="mine", weight=0, threshold=0.2, trials=[], checkpoints=[], score=0.5)
    ensemble = ours.model_copy(update={"members": [*ours.members, idle]})
    assert np.array_equal(blend_test(ensemble, store, TEST_IDS), blend_test(ours, store, TEST_IDS))
    assert np.array_equal(blend_oof(ensemble, store, IDS), blend_oof(ours, store, IDS))


def test_an_ensemble_of_before_there_were_scales_averages_probabilities(store):
    plain = ensemble_of(store).model_dump(exclude={"scale"})
    assert Ensemble.model_validate(plain).scale == "probability"


def test_rows_are_gathered_into_a_nameless_file(store):
    trials = held_out(store, IDS[:4], IDS[4:])
    before = set(store.root.rglob("*"))
    probs, _ = gather_oof(trials, IDS, "a")
    assert isinstance(probs, np.memmap)
    assert set(store.root.rglob("*")) == before


def test_a_members_cost_is_a_pictures_seconds_and_the_bytes_of_all_its_checkpoints(store):
    trials = held_out(store, IDS[:3], IDS[3:])
    for trial, size in zip(trials, (10, 20), strict=True):
        trial.best.write_bytes(bytes(size))
    assert cost_of(trials) == (pytest.approx(1.5 / 3 + 1.5 / 4), 30)


def test_a_member_of_weight_0_needs_no_test_predictions(store):
    ensemble = ensemble_of(store, (1.0, 0.0))
    for trial in ensemble.members[1].trials:
        store.trial(trial).test.unlink()  # the test pass leaves such members out
    alone = ensemble.model_copy(update={"members": ensemble.members[:1]})
    assert np.array_equal(blend_test(ensemble, store, TEST_IDS), blend_test(alone, store, TEST_IDS))


def test_test_predictions_of_other_weights_are_refused(store):
    ensemble = ensemble_of(store)
    path = store.trial("m1f1").test
    write_predictions(path, predicted(TEST_IDS, "trained again"))
    with pytest.raises(StoreError, match=r"m1f1.*other weights than the ensemble was fitted with"):
        blend_test(ensemble, store, TEST_IDS)


def test_out_of_fold_predictions_of_other_weights_are_refused(store):
    ensemble = ensemble_of(store)
    write_predictions(store.trial("m1f0").oof, predicted(IDS[0::2], "trained again"))
    with pytest.raises(StoreError, match=r"variant v1 was predicted by other weights.*blend again"):
        blend_oof(ensemble, store, IDS)


@pytest.mark.parametrize("ids", [["t0", "t1", "t2"], ["t2", "t0", "t9"], ["t2", "t0"]])
def test_test_predictions_of_other_pictures_or_in_another_order_are_refused(store, ids):
    ensemble = ensemble_of(store)
    write_predictions(store.trial("m0f1").test, predicted(ids, "m0f1"))
    with pytest.raises(StoreError, match=r"m0f1.*other pictures than the test split"):
        blend_test(ensemble, store, TEST_IDS)


def test_a_file_fits_its_own_checkpoint_views_and_pictures(store):
    path = store.trial("t").test
    ids = np.array(["a", "b"])
    assert not fits(path, "digest", ("centre", "flip"), "pictures", ids, 3)  # not there yet
    write_predictions(path, predicted(["a", "b"], "digest", ("centre", "flip")))
    assert fits(path, "digest", ("centre", "flip"), "pictures", ids, 3)
    assert not fits(path, "digest", ("flip", "centre"), "pictures", ids, 3)
    assert not fits(path, "digest", ("centre",), "pictures", ids, 3)
    assert not fits(path, "other", ("centre", "flip"), "pictures", ids, 3)
    assert not fits(path, "digest", ("centre", "flip"), "others", ids, 3)
    assert not fits(path, "digest", ("centre", "flip"), "pictures", ids[::-1], 3)
    assert not fits(path, "digest", ("centre", "flip"), "pictures", ids[:1], 3)
    assert not fits(path, "digest", ("centre", "flip"), "pictures", ids, 4)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def hold_something_else(path):
    write_arrays(path, ids=np.array(["a", "b"]))


def become_nan(path):
    found = predicted(["a", "b"], "digest")
    found.probs[1, 2] = np.nan
    write_predictions(path, found)


def become_logits(path):
    found = predicted(["a", "b"], "digest")
    write_predictions(path, replace(found, probs=-found.probs))


def lose_a_row(path):
    found = predicted(["a", "b"], "digest")
    write_predictions(path, replace(found, probs=found.probs[:1]))


@pytest.mark.parametrize("harm", [cut, hold_something_else, become_nan, become_logits, lose_a_row])
def test_a_damaged_file_does_not_fit_and_is_refused_when_read(store, harm):
    path = store.trial("t").oof
    write_predictions(path, predicted(["a", "b"], "digest"))
    harm(path)
    assert not fits(path, "digest", ("centre",), "pictures", np.array(["a", "b"]), 3)
    with pytest.raises(StoreError, match=r"oof\.npz"):
        read_predictions(path)
