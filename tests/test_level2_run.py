"""Level 2 through a run: asked for, frozen, read back, predicted, and refused where it cannot be."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_ensemble import IDS, N_LABELS, TEST_IDS, ensemble_of

from imet_ray.blending.stacking import STACKERS
from imet_ray.commands import sweep as stages
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import (
    EnsembleMember,
    blend_oof,
    blend_test,
    read_ensemble,
    write_ensemble,
)
from imet_ray.prediction.level2 import Level2, Packed, PerLabel
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.predict import read_predictions
from imet_ray.space_file import read_space
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe
from kernel_builder import __main__ as kernel_builder
from kernel_builder.float16_check import measure_loss

F2 = METRICS["f2"]


def per_label(members, c=N_LABELS) -> Level2:
    weights = np.random.default_rng(0).normal(0.5, 0.5, (len(members) + 1, c)).astype(np.float32)
    return Level2(stacker="linear", members=members, model=PerLabel(weights=Packed.of(weights)))


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def stacked(store):
    """Two members, of which the weights need only the first."""
    return ensemble_of(store, (1.0, 0.0)).model_copy(update={"level2": per_label(["v0", "v1"])})


def test_an_ensemble_with_level_2_is_read_as_it_was_written(store, stacked):
    write_ensemble(store.ensemble("blend"), stacked)
    assert read_ensemble(store.ensemble("blend")) == stacked


def test_an_ensemble_without_level_2_is_written_as_earlier_versions_know_it(store):
    write_ensemble(store.ensemble("blend"), ensemble_of(store))
    assert "level2" not in json.loads(store.ensemble("blend").ensemble.read_text())


@pytest.mark.parametrize(
    ("members", "c", "expected"),
    [(["v1", "v0"], N_LABELS, "level 2 is of other members"), (["v0", "v1"], 2, "level 2 is of 2 labels")],
)
def test_a_level_2_that_does_not_fit_the_ensemble_is_refused(store, members, c, expected):
    broken = ensemble_of(store).model_copy(update={"level2": per_label(members, c)})
    write_ensemble(store.ensemble("blend"), broken)
    with pytest.raises(StoreError, match=expected):
        read_ensemble(store.ensemble("blend"))


def test_all_members_are_predicted_for_level_2_whatever_their_weights(store, stacked):
    assert [member.variant for member in stacked.needed] == ["v0", "v1"]
    assert [member.variant for member in ensemble_of(store, (1.0, 0.0)).needed] == ["v0"]


def test_level_2_predicts_from_the_mean_of_each_members_folds(store, stacked):
    means = []
    for member in stacked.members:
        folds = [read_predictions(store.trial(t).test).probs.astype(np.float32) for t in member.trials]
        means.append(np.mean(folds, axis=0).astype(np.float16))
    assert np.array_equal(blend_test(stacked, store, TEST_IDS), stacked.level2.model.predict(means))


def test_level_2_predicts_out_of_fold_pictures_too(store, stacked):
    alone = ensemble_of(store, (1.0, 0.0)), ensemble_of(store, (0.0, 1.0))
    probs = [blend_oof(one, store, IDS) for one in alone]
    assert np.array_equal(blend_oof(stacked, store, IDS), stacked.level2.model.predict(probs))


def test_another_tools_member_is_given_to_level_2_and_missed_by_name(store):
    ours = ensemble_of(store, (1.0,))
    theirs = EnsembleMember(variant="mine", weight=0.0, threshold=0.2, trials=[], checkpoints=[], score=0.5)
    update = {"members": [*ours.members, theirs], "level2": per_label(["v0", "mine"])}
    ensemble = ours.model_copy(update=update)
    given = np.random.default_rng(1).random((len(TEST_IDS), N_LABELS)).astype(np.float32)
    found = blend_test(ensemble, store, TEST_IDS, external={"mine": given})
    expected = ensemble.level2.model.predict([blend_test(ours, store, TEST_IDS), given])
    assert np.array_equal(found, expected)
    with pytest.raises(StoreError, match="member mine comes from another tool"):
        blend_test(ensemble, store, TEST_IDS)


@pytest.fixture(scope="module")
def asked(trained):
    """An ensemble of each stacker that blend.py is told to use, by name."""
    import blend

    pytest.importorskip("lightgbm")
    for stacker in STACKERS:
        how = ["--method", stacker, "--out", f"by-{stacker}"]
        assert blend.main([*trained.where, *how]) == 0
    return {stacker: read_ensemble(trained.run.store.ensemble(f"by-{stacker}")) for stacker in STACKERS}


@pytest.mark.slow
@pytest.mark.parametrize("stacker", STACKERS)
def test_a_stacker_that_is_asked_for_decodes_to_about_what_is_reported(asked, trained, stacker):
    ensemble, run = asked[stacker], trained.run
    assert ensemble.level2.stacker == stacker
    used = next(row for row in ensemble.report["level2"] if row["used"])
    assert used["decoder"] == ensemble.decoder.name
    assert ensemble.report["nested"] == used["nested"]
    # it is fitted on these pictures, so it flatters
    decoded = ensemble.decoder.decode(blend_oof(ensemble, run.store, run.data.split.ids))
    assert F2.score(decoded, run.data.labels) > used["nested"] - 0.03
    page = run.store.ensemble(f"by-{stacker}").report.read_text()
    assert f"level 2: {stacker} (used)" in page
    assert re.search(rf"level 2, {stacker} under .* was asked for", page)


@pytest.mark.slow
def test_all_stackers_are_judged_side_by_side_and_the_table_says_which_is_used(call_blend, trained, asked):
    code, out, err = call_blend(
        *trained.where, "--level2", "all", "--decoder", "threshold", "--out", "all", "--json"
    )
    found = json.loads(out)
    assert code == 0, err
    assert [row["kind"] for row in found["level2"]] == list(STACKERS)
    ensemble = read_ensemble(trained.run.store.ensemble("all"))
    used = [row["kind"] for row in found["level2"] if row["used"]]
    assert used == ([] if ensemble.level2 is None else [ensemble.level2.stacker])
    assert "model" not in found
    code, _, err = call_blend(*trained.where, "--level2", "linear,linear")
    assert (code, "--level2 takes names separated by commas, each once" in err) == (1, True)


@pytest.mark.slow
def test_a_new_ensemble_that_lacks_a_member_of_level_2_is_refused(call_blend, trained, asked):
    code, _, err = call_blend(*trained.where, "--members", "a", "--out", "by-linear")
    assert code == 1
    assert "the ensemble by-linear has b, which the new one would lack" in err


@pytest.mark.slow
def test_what_float16_loses_is_measured_through_level_2(asked, trained, monkeypatch):
    ensemble = asked["linear"]
    calls = []
    real = PerLabel.predict
    monkeypatch.setattr(
        PerLabel, "predict", lambda self, probs: (calls.append(len(probs)), real(self, probs))[1]
    )
    assert abs(measure_loss(trained.run, ensemble, ensemble.needed, seconds=60).moved) < 0.05
    assert set(calls) == {2}


@pytest.mark.slow
def test_a_kernel_of_level_2_over_another_tools_member_is_refused_by_name(
    call_blend, trained, tmp_path, capsys
):
    ids, labels = trained.run.data.split.ids, trained.run.data.labels
    np.savez(tmp_path / "mine.npz", ids=np.array(ids), probs=(0.1 + 0.5 * labels).astype(np.float32))
    how = ["--member", f"mine={tmp_path / 'mine.npz'}", "--method", "logistic", "--out", "mixed"]
    assert call_blend(*trained.where, *how)[0] == 0
    with pytest.raises(ConfigError, match="member mine comes from another tool: give its test predictions"):
        stages._external_predictions(trained.run, read_ensemble(trained.run.store.ensemble("mixed")), [])
    out = ["--out", str(tmp_path / "k"), "--user", "me", *trained.where]
    assert kernel_builder.main(["mixed", *out]) == 1
    assert "a kernel cannot predict mine, made by another tool" in capsys.readouterr().err


def test_a_space_names_the_stackers_that_the_sweeps_blend_judges(tmp_path: Path):
    space = tmp_path / "space.yml"
    space.write_text("level2: [linear, net]\nvariants: [{name: a, architecture: test_resnet}]\n")
    assert stages.blend_options(read_space(space, check=check_recipe), replace=False).level2 == (
        "linear",
        "net",
    )
    space.write_text("variants: [{name: a, architecture: test_resnet}]\n")
    assert stages.blend_options(read_space(space, check=check_recipe), replace=False).level2 == ()


def test_a_stacker_that_nobody_knows_is_refused_before_a_sweep_begins(tmp_path: Path, capsys):
    import launch

    space = tmp_path / "space.yml"
    space.write_text("level2: [linaer]\nvariants: [{name: a, architecture: test_resnet}]\n")
    assert launch.main(["--sweep", "--space", str(space), "--runs", str(tmp_path / "runs")]) == 1
    assert "unknown level 2 'linaer': did you mean 'linear'?" in capsys.readouterr().err
