"""The leaderboard that a run's results make, and the list of what failed."""

import pytest
from bare_spec import bare_spec

from imet_ray.errors import StoreError
from imet_ray.specs import TrialSpec, Variant
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, failures, read_result, read_spec, standings, write_result
from imet_ray.storage.run_directory import RunDirectory

N_FOLDS = 3


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def ended(store, name, fold, f2, status="complete", reason="", **hparams) -> TrialSpec:
    """A trial that came to this."""
    spec = bare_spec(Variant(name=name, architecture="resnet18"), fold, N_FOLDS, **hparams)
    trial = store.trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))
    expected = None if f2 is None else f2 + 0.01
    result = TrialResult(
        trial_id=spec.trial_id, status=status, reason=reason, score=f2, expected_score=expected, epochs=4
    )
    write_result(trial, result)
    return spec


def whole(store, name, *scores, **hparams) -> list[TrialSpec]:
    """A set of hparams trained on all folds."""
    assert len(scores) == N_FOLDS
    return [ended(store, name, fold, f2, **hparams) for fold, f2 in enumerate(scores)]


def test_a_result_is_read_as_it_was_written(store):
    trial = store.trial("t")
    assert read_result(trial) is None
    result = TrialResult(
        trial_id="t", status="complete", score=0.5, threshold=0.25, epoch=3, epochs=4, seconds=1.5
    )
    write_result(trial, result)
    assert read_result(trial) == result


def test_a_damaged_result_is_named(store):
    store.trial("t").root.mkdir(parents=True)
    store.trial("t").result.write_text('{"trial_id": "t", ')
    with pytest.raises(StoreError, match=r"t/result\.json is damaged"):
        read_result(store.trial("t"))


def test_the_best_variant_stands_first_and_whole_ones_before_partial_ones(store):
    whole(store, "low", 0.3, 0.4, 0.5)
    whole(store, "high", 0.6, 0.7, 0.5)
    ended(store, "partial", 0, 0.9)
    ended(store, "better-partial", 0, 0.95)
    found = standings(store, ["low", "better-partial", "partial", "high"])
    assert [s.variant for s in found] == ["high", "low", "better-partial", "partial"]
    assert [s.whole for s in found] == [True, True, False, False]


def test_a_standing_knows_its_trials_and_scores_by_fold(store):
    specs = whole(store, "a", 0.4, 0.5, 0.9, dropout=0.25)
    (standing,) = standings(store, ["a"])
    assert standing.hparams == {"dropout": 0.25}
    assert {fold: trial.trial_id for fold, trial in standing.trials.items()} == {
        spec.fold: spec.trial_id for spec in specs
    }
    assert standing.score == {0: 0.4, 1: 0.5, 2: 0.9}
    assert standing.expected_score == pytest.approx({0: 0.41, 1: 0.51, 2: 0.91})
    assert standing.mean == pytest.approx(0.6)
    assert standing.spread == pytest.approx((0.14 / 3) ** 0.5)


def test_of_two_whole_sets_the_better_mean_stands_for_the_variant(store):
    whole(store, "a", 0.9, 0.1, 0.1, dropout=0.1)  # the best single fold
    whole(store, "a", 0.5, 0.5, 0.5, dropout=0.2)
    (standing,) = standings(store, ["a"])
    assert standing.hparams == {"dropout": 0.2}
    assert set(standing.score.values()) == {0.5}


@pytest.mark.parametrize("dropouts", [(0.1, 0.2), (0.2, 0.1)])
def test_a_whole_set_stands_before_a_partial_one_with_a_better_mean(store, dropouts):
    partial, complete = dropouts
    ended(store, "a", 0, 0.9, dropout=partial)
    whole(store, "a", 0.5, 0.5, 0.5, dropout=complete)
    (standing,) = standings(store, ["a"])
    assert standing.hparams == {"dropout": complete}


def test_equal_recipes_are_one_set_however_they_were_asked_for(store):
    ended(store, "a", 0, 0.5)
    ended(store, "a", 1, 0.6, dropout=0.0)  # the variant's own
    ended(store, "a", 2, 0.7, dropout=0.0, batch_size=16)
    (standing,) = standings(store, ["a"])
    assert standing.whole


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_trial_that_is_not_complete_is_no_part_of_a_standing(store, status):
    ended(store, "a", 0, 0.5)
    ended(store, "a", 1, 0.9, status=status, reason="NaN")
    (standing,) = standings(store, ["a"])
    assert standing.score == {0: 0.5}


def test_only_variants_that_were_asked_for_and_have_a_complete_trial_stand(store):
    ended(store, "a", 0, 0.5)
    ended(store, "left-out", 0, 0.9)
    ended(store, "failed", 0, None, status="failed")
    assert [s.variant for s in standings(store, ["a", "failed", "never-begun"])] == ["a"]


def test_an_empty_run_has_no_standings_and_no_failures(store):
    assert standings(store, ["a"]) == []
    assert failures(store) == []


def test_a_trial_that_is_not_done_neither_stands_nor_failed(store):
    spec = ended(store, "a", 0, 0.5)
    store.trial(spec.trial_id).result.unlink()
    assert standings(store, ["a"]) == []
    assert failures(store) == []


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_an_altered_trial_is_named_and_no_result(store, status):
    specs = whole(store, "a", 0.1, 0.2, 0.3)
    altered = store.trial(ended(store, "a", 1, 0.9, status=status, dropout=0.1).trial_id)
    write_json(altered.spec, specs[0].model_dump(mode="json"))
    for read in (lambda: standings(store, ["a"]), lambda: failures(store)):
        with pytest.raises(StoreError, match=f"tells of another trial than {altered.trial_id}"):
            read()


def test_in_a_run_of_an_earlier_version_all_trials_have_other_ids_and_count(store):
    for spec in whole(store, "a", 0.1, 0.2, 0.3):
        store.trial(spec.trial_id).root.rename(store.root / "trials" / spec.trial_id[::-1])
    (standing,) = standings(store, ["a"])
    assert standing.score == {0: 0.1, 1: 0.2, 2: 0.3}


def test_failed_trials_are_listed_with_their_reasons(store):
    whole(store, "a", 0.1, 0.2, 0.3)
    ended(store, "a", 0, 0.2, status="stopped", reason="early", dropout=0.1)
    nan = ended(store, "a", 1, None, status="failed", reason="the loss became NaN", dropout=0.2)
    memory = ended(store, "b", 2, None, status="failed", reason="out of GPU memory")
    found = {spec.trial_id: reason for spec, reason in failures(store)}
    assert found == {nan.trial_id: "the loss became NaN", memory.trial_id: "out of GPU memory"}
    assert read_spec(store.trial(nan.trial_id)) == nan
