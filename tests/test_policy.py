"""The sweep's policy, without Ray: what is trained, in which order, and after which accidents."""

import time

import pytest

from benchmarks.simulation import simulate
from imet_ray.cluster.policy import Policy
from imet_ray.cluster.tune_searcher import stopped_result
from imet_ray.errors import ConfigError
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, failures, read_spec, standings, write_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 3
grid: {architecture: [resnet18, resnet34]}
base: {epochs: 4}
search: {dropout: {low: 0.0, high: 0.5}, batch_size: [16, 32]}
"""


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    path = tmp_path / "space.yml"
    path.write_text(SPACE)
    return read_space(path, check=check_recipe)


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def policy_of(space, store, **more) -> Policy:
    return Policy(space, store, "data", "folds", **more)


def finish(policy, assignment, score=None, status="complete", reason="", seconds=0.0):
    """What a worker and the searcher do when a trial ends."""
    spec = assignment.spec
    trial = policy.store.trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))
    score = 0.5 + spec.recipe.dropout / 10 if score is None else score
    result = TrialResult(
        trial_id=spec.trial_id,
        status=status,
        score=score,
        expected_score=score,
        reason=reason,
        epochs=4,
        seconds=seconds,
    )
    write_result(trial, result)
    policy.done(spec.trial_id)


def run_out(policy, slots=3, **how):
    """Run everything with a number of slots, first in first out; the assignments in order."""
    running, done = [], []
    while True:
        while len(running) < slots:
            following = policy.next()
            if following == "finished":
                assert not running or len(running) < slots
                break
            if following is None:
                break
            running.append(following)
        if not running:
            return done
        first = running.pop(0)
        finish(policy, first, **how)
        done.append(first)


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_every_variant_is_searched_and_its_best_set_trained_on_all_folds(space, store, slots):
    done = run_out(policy_of(space, store), slots)
    for variant in space.variants:
        own = [a for a in done if a.spec.variant == variant]
        searched = [a for a in own if a.phase == "search"]
        promoted = [a for a in own if a.phase == "promote"]
        assert len(searched) == 3
        best = max(searched, key=lambda a: a.spec.recipe.dropout)
        assert {a.spec.fold for a in promoted} == {1, 2}  # fold 0 counts already
        assert {a.spec.recipe for a in promoted} == {best.spec.recipe}
    assert all(standing.whole for standing in standings(store, [v.name for v in space.variants]))


def test_nothing_is_trained_twice(space, store):
    ids = [assignment.spec.trial_id for assignment in run_out(policy_of(space, store))]
    assert len(ids) == len(set(ids))


def test_a_free_slot_never_waits_for_another_variants_study(space, store):
    policy = policy_of(space, store)
    slow = policy.next()  # never ends
    rest = []
    while (following := policy.next()) not in (None, "finished"):
        finish(policy, following)
        rest.append(following)
    other = [a for a in rest if a.spec.variant != slow.spec.variant]
    assert {a.phase for a in other} == {"search", "promote"}
    assert policy.next() is None  # not finished: the slow one's promotion is still to come


def two_variants(tmp_path, second: str) -> SearchSpace:
    (tmp_path / "two.yml").write_text(
        "n_folds: 3\ntrials_per_variant: 4\nsearch: {dropout: {low: 0.0, high: 0.5}}\n"
        f"variants: [{{name: a, architecture: resnet18}}, {{name: b, architecture: resnet18{second}}}]"
    )
    return read_space(tmp_path / "two.yml", check=check_recipe)


@pytest.mark.parametrize("second", [", epochs: 40", ", image_size: 448"])
def test_what_takes_longest_begins_first(store, tmp_path, second):
    policy = policy_of(two_variants(tmp_path, second), store)
    assert [policy.next().spec.variant.name for _ in range(5)] == ["b", "b", "b", "b", "a"]


def test_measured_seconds_count_more_than_epochs_and_pixels(store, tmp_path):
    policy = policy_of(two_variants(tmp_path, ", epochs: 40"), store)
    first, second = policy.next(), policy.next()
    assert {first.spec.variant.name, second.spec.variant.name} == {"b"}
    finish(policy, first, seconds=1.0)
    finish(policy, second, seconds=1.0)
    other = policy.next()  # by its epochs it would take a quarter of that
    while other.spec.variant.name == "b":
        finish(policy, other, seconds=1.0)
        other = policy.next()
    finish(policy, other, seconds=100.0)
    assert policy.next().spec.variant.name == "a"


def test_variants_of_one_length_advance_together(store, tmp_path):
    policy = policy_of(two_variants(tmp_path, ""), store)
    names = [policy.next().spec.variant.name for _ in range(8)]
    assert all(abs(names[:n].count("a") - names[:n].count("b")) <= 1 for n in range(9))


@pytest.mark.parametrize(("slots", "variants", "sets", "limit"), [(8, 7, 8, 1.05), (32, 40, 8, 1.05)])
def test_a_simulated_sweep_ends_soon_after_the_lower_bound(slots, variants, sets, limit):
    ratios = [
        simulate(slots=slots, variants=variants, sets=sets, seed=seed).ratio(slots) for seed in range(5)
    ]
    assert min(ratios) >= 1.0
    assert sum(ratios) / len(ratios) < limit


def test_a_new_policy_issues_an_interrupted_trial_again_with_the_same_hparams(space, store):
    first = policy_of(space, store)
    lost = [first.next(), first.next()]
    again = policy_of(space, store)
    reissued = [again.next(), again.next()]
    assert {a.spec.trial_id for a in reissued} == {a.spec.trial_id for a in lost}


def test_after_a_restart_the_same_sweep_is_finished_and_no_more(space, store):
    policy = policy_of(space, store)
    before = []
    for _ in range(4):
        assignment = policy.next()
        finish(policy, assignment)
        before.append(assignment.spec.trial_id)
    lost = policy.next()
    after = [a.spec.trial_id for a in run_out(policy_of(space, store))]
    assert lost.spec.trial_id in after
    assert not set(before) & set(after)
    assert len(before) + len(after) == 2 * (3 + 2)


def test_a_finished_sweep_has_nothing_left(space, store):
    run_out(policy_of(space, store))
    policy = policy_of(space, store)
    assert policy.next_is_last()
    assert policy.next() == "finished"


def test_more_trials_a_variant_continue_a_finished_sweep(space, store):
    run_out(policy_of(space, store))
    more = space.model_copy(update={"trials_per_variant": 4})
    done = run_out(policy_of(more, store))
    assert sum(a.phase == "search" for a in done) == 2


def test_a_stopped_trial_is_promoted_only_when_no_finished_one_is_there(space, store):
    policy = policy_of(space, store)
    count = 0
    while (assignment := policy.next()) != "finished":
        if assignment.phase == "search":
            count += 1
            stopped = count % 3 != 0
            finish(
                policy, assignment, score=0.9 if stopped else 0.4, status="stopped" if stopped else "complete"
            )
        else:
            assert policy.studies[assignment.spec.variant.name].study.best_trial.value == 0.4
            finish(policy, assignment)


def test_a_stopped_champion_goes_on_to_its_end(space, store):
    policy = policy_of(space, store)
    stopped = {}
    while (assignment := policy.next()) != "finished":
        if assignment.phase == "search":
            finish(policy, assignment, status="stopped")
            stopped[assignment.spec.trial_id] = assignment
        else:
            finish(policy, assignment)
            stopped.pop(assignment.spec.trial_id, None)
    assert len(stopped) == 2 * 3 - 2  # of each variant one was trained on
    assert all(s.whole for s in standings(store, [v.name for v in space.variants]))


def test_a_failed_trial_is_no_failed_sweep(space, store):
    policy = policy_of(space, store)
    bad = policy.next()
    finish(policy, bad, status="failed", reason="NaN")
    run_out(policy)
    assert all(s.whole for s in standings(store, [v.name for v in space.variants]))
    assert [reason for _, reason in failures(store)] == ["NaN"]


def test_when_a_fold_of_the_best_set_fails_the_next_best_is_promoted(space, store):
    policy = policy_of(space, store)
    failed = set()
    while (assignment := policy.next()) != "finished":
        name = assignment.spec.variant.name
        if assignment.phase == "promote" and name not in failed:
            failed.add(name)
            finish(policy, assignment, status="failed", reason="NaN")
        else:
            finish(policy, assignment)
    assert failed == {v.name for v in space.variants}
    assert all(s.whole for s in standings(store, [v.name for v in space.variants]))


def test_a_variant_that_only_fails_ends_the_sweep_all_the_same(space, store):
    policy = policy_of(space, store)
    done = run_out(policy, status="failed", reason="NaN")
    assert len(done) == 6
    assert all(policy.studies[variant.name].failed for variant in space.variants)


def test_after_the_deadline_no_new_trial_starts(space, store):
    policy = policy_of(space, store, deadline=time.time() - 1)
    assert policy.next() == "finished"
    assert not policy.next_is_last()


def test_two_equal_sets_of_hparams_are_trained_once(store, tmp_path):
    path = tmp_path / "space.yml"
    path.write_text(
        "n_folds: 2\ntrials_per_variant: 5\nvariants: [{name: a, architecture: resnet18}]\n"
        "search: {batch_size: [16, 32]}"
    )
    done = run_out(policy_of(read_space(path, check=check_recipe), store), slots=2)
    assert len({a.spec.trial_id for a in done}) == len(done) <= 3


def test_a_set_whose_settings_do_not_go_together_fails_and_the_search_goes_on(store, tmp_path):
    path = tmp_path / "space.yml"
    path.write_text(
        "n_folds: 2\ntrials_per_variant: 6\nvariants: [{name: a, architecture: resnet18}]\n"
        "search: {keep: [best, soup], schedule: [cosine, plateau]}"
    )
    policy = policy_of(read_space(path, check=check_recipe), store)
    done = run_out(policy, slots=1)
    drawn = [trial.params for trial in policy.studies["a"].study.get_trials()]
    wrong = {"keep": "soup", "schedule": "plateau"}
    assert len(drawn) == 6
    assert wrong in drawn
    assert done
    assert wrong not in [a.spec.hparams for a in done]


@pytest.fixture
def mixing(space) -> SearchSpace:
    """The best two sets of three are mixed."""
    return SearchSpace.model_validate(space.model_dump() | {"soup_of": {"sets": 2}})


def test_the_best_sets_are_trained_on_all_folds_and_mixed_fold_by_fold(mixing, store):
    done = [a for a in run_out(policy_of(mixing, store)) if a.spec.variant == mixing.variants[0]]
    assert len(done) == 3 + mixing.after_search == 3 + 2 * 2 + 3
    sets = sorted((a for a in done if a.phase == "search"), key=lambda a: -a.spec.recipe.dropout)[:2]
    for fold in range(3):
        of_fold = {a.spec.trial_id: a.spec for a in done if a.spec.fold == fold}
        (soup,) = (spec for spec in of_fold.values() if spec.soup_of is not None)
        mixed = [of_fold[trial_id].hparams for trial_id in soup.soup_of.trials]
        assert mixed == [a.spec.hparams for a in sets]
        assert list(of_fold)[-1] == soup.trial_id  # when they are there


def test_a_driver_that_is_killed_again_and_again_mixes_the_same_sets_once(mixing, store, tmp_path):
    whole = {a.spec.trial_id for a in run_out(policy_of(mixing, RunDirectory(tmp_path / "whole")))}
    done = []
    while (assignment := policy_of(mixing, store).next()) != "finished":
        finish(policy_of(mixing, store), assignment)
        done.append(assignment.spec.trial_id)
    assert sorted(done) == sorted(whole)


def test_a_soup_that_is_better_than_its_best_set_stands_for_the_variant(mixing, store):
    name = mixing.variants[0].name
    policy, done = policy_of(mixing, store), 0
    while (assignment := policy.next()) != "finished":
        finish(policy, assignment, score=0.9 if assignment.spec.soup_of else None)
        done += assignment.spec.variant.name == name
        assert done + policy.studies[name].left == 3 + mixing.after_search
    found = standings(store, [name])[0]
    assert found.whole
    assert found.mean == pytest.approx(0.9)
    assert found.hparams["soup_of"] == 2
    assert policy.studies[name].complete == 3
    assert policy.studies[name].left == 0


def test_a_soup_that_fails_leaves_the_best_set(mixing, store):
    policy = policy_of(mixing, store)
    while (assignment := policy.next()) != "finished":
        finish(policy, assignment, status="failed" if assignment.spec.soup_of else "complete")
    found = standings(store, [mixing.variants[0].name])[0]
    assert found.whole
    assert all(read_spec(trial).soup_of is None for trial in found.trials.values())


def test_equal_sets_are_not_mixed(store, tmp_path):
    path = tmp_path / "space.yml"
    path.write_text(
        "n_folds: 2\ntrials_per_variant: 4\nvariants: [{name: a, architecture: resnet18}]\n"
        "soup_of: {sets: 2}\nsearch: {batch_size: [16, 32]}"
    )
    done = run_out(policy_of(read_space(path, check=check_recipe), store), slots=2)
    for soup in (a.spec.soup_of for a in done if a.spec.soup_of is not None):
        assert len(set(soup.trials)) == 2
    assert len({a.spec.trial_id for a in done}) == len(done)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trials_per_variant: 2\nsoup_of: {}", "soup_of mixes 3 sets of hparams of a variant: raise"),
        ("trials_per_variant: 3\nsoup_of: {}\nsearch: {image_size: [64, 96]}", "searches its image_size"),
        (
            "trials_per_variant: 3\nsoup_of: {}\nbase: {keep: cycles, cycles: 2}",
            "set another keep than 'cycles'",
        ),
        ("trials_per_variant: 3\nsoup_of: {sets: 1}", "greater than or equal to 2"),
    ],
)
def test_sets_that_cannot_be_mixed_are_refused(tmp_path, text, expected):
    path = tmp_path / "space.yml"
    path.write_text(text + "\nvariants: [{name: a, architecture: resnet18}]\n")
    with pytest.raises(ConfigError, match=expected):
        read_space(path, check=check_recipe)


def test_the_same_seed_asks_for_the_same_hparams(space, tmp_path):
    one = run_out(policy_of(space, RunDirectory(tmp_path / "one")), slots=1)
    two = run_out(policy_of(space, RunDirectory(tmp_path / "two")), slots=1)
    assert [a.spec.trial_id for a in one] == [a.spec.trial_id for a in two]


def test_a_stopped_result_keeps_the_best_epoch():
    rows = [
        {"epoch": e, "score": f2, "threshold": 0.2, "expected_score": f2, "seconds": 1.0, "images_per_s": 9.0}
        for e, f2 in ((1, 0.3), (2, 0.5), (3, 0.4))
    ]
    result = stopped_result("t", rows)
    assert (result.status, result.score, result.epoch, result.epochs) == ("stopped", 0.5, 2, 3)
