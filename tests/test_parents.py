"""Variants that begin from another one's checkpoint of the same fold: what is refused, what is trained when."""

import random

import numpy as np
import pytest
import serial_sweep
import torch
from interrupted_trial import train_until
from one_variant import write
from safetensors.torch import load_file

import launch
from imet_ray.cluster.policy import Policy
from imet_ray.commands.learning_rates import with_found_rates
from imet_ray.commands.space_needs import digests_of_weights
from imet_ray.errors import ConfigError, StoreError
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.specs import Parent, TrialSpec
from imet_ray.storage.checked_read import file_digest
from imet_ray.storage.results import read_spec, standings
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial

CHAIN = """
n_folds: 3
trials_per_variant: 2
base: {architecture: resnet18, epochs: 4}
variants:
  - {name: c, weights: {variant: b}, image_size: 64}
  - {name: a}
  - {name: b, weights: {variant: a}, search: {dropout: [0.1, 0.2]}}
  - {name: alone}
search: {lr: {low: 0.001, high: 0.1, log: true}}
"""
CPU = torch.device("cpu")


@pytest.fixture
def space_of(tmp_path):
    def _space_of(text: str) -> SearchSpace:
        (tmp_path / "space.yml").write_text(text)
        return read_space(tmp_path / "space.yml", check=check_recipe)

    return _space_of


@pytest.fixture
def store(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.mark.parametrize(
    ("variants", "line", "expected"),
    [
        ("- {name: a, weights: {variant: a}}", 4, "variant 'a' would wait for itself: a after a"),
        ("- {name: a, weights: {variant: bb}}\n- {name: b}", 4, "unknown variant 'bb': did you mean 'b'?"),
        (
            "- {name: a}\n- {name: b, weights: {varient: a}}",
            5,
            "unknown key 'varient': did you mean 'variant'?",
        ),
        (
            "- {name: a, weights: {variant: b}}\n- {name: b, weights: {variant: a}}",
            4,
            "variant 'a' would wait for itself: a after b after a",
        ),
        (
            "- {name: a}\n- {name: b, weights: {variant: a}, architecture: resnet34}",
            5,
            "begins from 'a', which is resnet18, not resnet34",
        ),
        (
            "- {name: a, search: {architecture: [resnet18, resnet34]}}\n- {name: b, weights: {variant: a}}",
            5,
            "variant 'a' searches its architecture",
        ),
    ],
)
def test_a_parent_that_cannot_be_is_refused_with_its_line(space_of, variants, line, expected):
    with pytest.raises(ConfigError, match=f"line {line}: ") as caught:
        space_of(f"n_folds: 3\nbase: {{architecture: resnet18}}\nvariants:\n{variants}\n")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def run_out(policy, *, seed=0, kills=False, fails=(), **how) -> list[TrialSpec]:
    """Train everything that comes, on three slots, which end in any order; at a kill another policy goes on."""
    rng, running, done = random.Random(seed), [], []
    while True:
        while len(running) < 3 and not isinstance(given := policy.next(), str) and given is not None:
            refuse_early(policy, given.spec)
            running.append(given.spec)
        if not running:
            assert policy.next() == "finished"
            return done
        if kills and rng.random() < 0.2:
            policy, running = Policy(policy.space, policy.store, "data", "folds"), []
            continue
        spec = running.pop(rng.randrange(len(running)))
        failed = spec.variant.name in fails
        write(policy.store, spec, "failed" if failed else "complete", score=spec.recipe.lr)
        policy.done(spec.trial_id)
        done.append(spec)


def refuse_early(policy, spec) -> None:
    """A trial is given only when its parent of the same fold is complete, and it names that one."""
    assert set(spec.after) == set(spec.variant.after)
    for name, trial_id in spec.after.items():
        parent = policy.store.trial(trial_id)
        assert parent.result.exists()
        assert (read_spec(parent).variant.name, read_spec(parent).fold) == (name, spec.fold)


@pytest.mark.parametrize("seed", range(8))
def test_each_trial_begins_after_its_parent_of_the_same_fold_whatever_is_killed(space_of, store, seed):
    space = space_of(CHAIN)
    done = run_out(Policy(space, store, "data", "folds"), seed=seed, kills=seed > 3)
    found = {one.variant: one for one in standings(store, ["a", "b", "c", "alone"])}
    assert all(one.whole for one in found.values())
    assert len(found) == 4
    for child, parent in (("b", "a"), ("c", "b")):
        for fold, trial in found[child].trials.items():
            assert read_spec(trial).after == {parent: found[parent].trials[fold].trial_id}
    assert len({spec.trial_id for spec in done}) == len(done) == 4 * (2 + 2)


def test_no_fold_waits_for_another(space_of, store):
    """The child's fold 1 begins while the parent's fold 2 is still to come."""
    space = space_of(
        "n_folds: 3\nbase: {architecture: resnet18}\nvariants: [{name: a}, {name: b, weights: {variant: a}}]"
    )
    policy, order = Policy(space, store, "data", "folds"), []
    held = None
    while (given := policy.next()) is not None and given != "finished":
        if (given.spec.variant.name, given.spec.fold) == ("a", 2):
            held = given
            continue
        write(store, given.spec)
        policy.done(given.spec.trial_id)
        order.append((given.spec.variant.name, given.spec.fold))
    assert given is None
    assert set(order) == {("a", 0), ("a", 1), ("b", 0), ("b", 1)}
    assert policy.studies["b"].left == 1
    write(store, held.spec)
    policy.done(held.spec.trial_id)
    assert (policy.next().spec.variant.name, policy.next()) == ("b", None)


def test_where_a_parent_fails_the_rest_is_trained_and_the_child_says_why_not(space_of, store):
    policy = Policy(space_of(CHAIN), store, "data", "folds")
    done = run_out(policy, fails=("a",))
    assert {spec.variant.name for spec in done} == {"a", "alone"}
    assert [one.variant for one in standings(store, ["a", "b", "c", "alone"]) if one.whole] == ["alone"]
    assert set(policy.in_vain) == {
        "cannot begin: b, because a failed",
        "cannot begin: c, because b failed",
    }
    assert policy.studies["c"].left == 0


def test_another_best_set_of_the_parent_makes_the_child_another_trial(space_of, store):
    space = space_of(CHAIN)
    run_out(Policy(space, store, "data", "folds"))
    more = space.model_copy(update={"trials_per_variant": 6})
    run_out(Policy(more, store, "data", "folds"), seed=1)
    policy = Policy(more, store, "data", "folds")
    assert policy.next_is_last()
    parent, child = policy.studies["a"], policy.studies["b"]
    for fold in range(3):
        assert read_spec(store.trial(child.trained[fold])).after == {"a": parent.trained[fold]}


def test_a_child_under_a_deadline_is_still_promoted_first(space_of, store):
    policy = Policy(space_of(CHAIN), store, "data", "folds", deadline=4e9)
    run_out(policy)
    assert all(one.whole for one in standings(store, ["a", "b", "c", "alone"]))


def test_a_parents_long_chain_begins_before_a_variant_as_long_as_itself(space_of, store):
    policy = Policy(space_of(CHAIN), store, "data", "folds")
    assert policy.next().spec.variant.name == "a"


@pytest.fixture
def family(make_spec, tiny_data, tmp_path):
    """A parent that is trained on fold 1, and a child of it at another size."""
    run = RunDirectory(tmp_path / "run")
    parent = make_spec(fold=1, epochs=1)
    assert train_trial(parent, tiny_data, run.trial(parent.trial_id), device=CPU).status == "complete"
    spec = make_spec(fold=1, name="child", epochs=2, image_size=64, weights=Parent(variant="tiny"), lr=1e-9)
    return run, parent, spec.model_copy(update={"after": {"tiny": parent.trial_id}})


def test_a_child_begins_at_its_parents_weights_head_included(family, tiny_data):
    run, parent, child = family
    assert train_trial(child, tiny_data, run.trial(child.trial_id), device=CPU).status == "complete"
    before, after = (load_file(run.trial(spec.trial_id).best) for spec in (parent, child))
    learnt = [name for name, value in before.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learnt)


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_child_on_another_node_begins_at_its_parents_weights_from_the_bucket(make_spec, tiny_data, on_node):
    here, there = on_node("a"), on_node("b")
    parent = make_spec(fold=1, epochs=1)
    train_trial(parent, tiny_data, here.trial(parent.trial_id), device=CPU)
    spec = make_spec(fold=1, name="child", epochs=1, weights=Parent(variant="tiny"), lr=1e-9)
    child = spec.model_copy(update={"after": {"tiny": parent.trial_id}})
    assert train_trial(child, tiny_data, there.trial(child.trial_id), device=CPU).status == "complete"
    before, after = (load_file(there.trial(spec.trial_id).best) for spec in (parent, child))
    assert file_digest(here.trial(parent.trial_id).best) == file_digest(there.trial(parent.trial_id).best)
    learnt = [name for name in before if name.endswith("weight")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learnt)


def test_an_interrupted_child_goes_on_bit_for_bit_without_its_parent(family, tiny_data):
    run, parent, child = family
    trial = run.trial(child.trial_id)
    train_trial(child, tiny_data, trial, device=CPU)
    whole = load_file(trial.best)
    for path in trial.root.iterdir():
        path.unlink()

    train_until(1, child, tiny_data, trial)
    run.trial(parent.trial_id).best.unlink()
    train_trial(child, tiny_data, trial, device=CPU)
    again = load_file(trial.best)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_parents_checkpoint_that_is_gone_is_one_line(family, tiny_data):
    run, parent, child = family
    run.trial(parent.trial_id).best.unlink()
    with pytest.raises(StoreError, match="is gone, from which child-fold1-"):
        train_trial(child, tiny_data, run.trial(child.trial_id), device=CPU)


def test_another_parents_trial_makes_another_trial_and_no_parent_leaves_the_id(make_spec):
    spec = make_spec()
    assert spec.model_copy(update={"after": {}}).trial_id == spec.trial_id
    ids = {spec.model_copy(update={"after": {"a": one}}).trial_id for one in ("x", "y")}
    assert len(ids | {spec.trial_id}) == 3


def test_one_trial_of_a_child_says_what_to_train_first(tiny_root, tiny_cache, tmp_path, capsys):
    (tmp_path / "space.yml").write_text(
        "n_folds: 3\nbase: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1}\n"
        "variants: [{name: a}, {name: b, weights: {variant: a}}]"
    )
    argv = ["--train", "--fold", "2", "--data", str(tiny_root), "--space", str(tmp_path / "space.yml")]
    argv += ["--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root)]
    assert launch.main([*argv, "--variant", "b"]) == 1
    assert "first --train --variant a --fold 2, or --sweep" in capsys.readouterr().err
    assert launch.main([*argv, "--variant", "a"]) == 0
    assert launch.main([*argv, "--variant", "b"]) == 0


def test_a_file_for_each_fold_is_told_by_content_and_none_may_be_missing(tmp_path):
    for fold in range(2):
        (tmp_path / f"{fold}.pth").write_bytes(bytes([fold]))
    name = f"{tmp_path}/{{fold}}.pth"
    found = digests_of_weights({name, "hub", Parent(variant="a")}, 2)
    assert found == {str(tmp_path / f"{k}.pth"): file_digest(tmp_path / f"{k}.pth") for k in range(2)}
    with pytest.raises(ConfigError, match=r"a file for each of 3 folds, and there is no .*/2\.pth"):
        digests_of_weights({name}, 3)


def test_a_trial_of_a_fold_begins_from_that_folds_file(make_spec, tiny_data, tmp_path):
    run = RunDirectory(tmp_path / "run")
    parent = make_spec(fold=1, epochs=1)
    train_trial(parent, tiny_data, run.trial(parent.trial_id), device=CPU)
    run.trial(parent.trial_id).best.rename(tmp_path / "1.safetensors")
    spec = make_spec(fold=1, epochs=1, lr=1e-9, weights=f"{tmp_path}/{{fold}}.safetensors")
    train_trial(spec, tiny_data, run.trial(spec.trial_id), device=CPU)
    before, after = load_file(tmp_path / "1.safetensors"), load_file(run.trial(spec.trial_id).best)
    assert all(
        np.allclose(before[name], after[name], atol=1e-6) for name in before if name.endswith("weight")
    )


def test_the_rate_of_a_child_is_not_found_from_other_weights_than_its_parents(space_of, store, tiny_data):
    space = space_of(
        "n_folds: 3\nbase: {architecture: resnet18}\nvariants: [{name: a}, {name: b, weights: {variant: a}, lr: auto}]"
    )
    with pytest.raises(ConfigError, match="'b' begins from 'a', for which .* set lr to a number"):
        with_found_rates(space, tiny_data, store)


def test_a_child_begins_from_the_soup_of_its_parents_sets(space_of, store):
    space = space_of(
        "n_folds: 3\ntrials_per_variant: 2\nsoup_of: {sets: 2}\nbase: {architecture: resnet18}\n"
        "variants: [{name: b, weights: {variant: a}}, {name: a}]\nsearch: {lr: {low: 0.001, high: 0.1}}"
    )
    run_out(Policy(space, store, "data", "folds"), seed=2)
    children = [spec for trial in store.trials() if (spec := read_spec(trial)).variant.name == "b"]
    assert len(children) == 3 * 3
    assert all(read_spec(store.trial(spec.after["a"])).soup_of is not None for spec in children)


@pytest.mark.slow
def test_a_real_sweep_trains_parent_and_child_to_a_blend(tiny_root, tiny_cache, tmp_path):
    (tmp_path / "space.yml").write_text(
        "n_folds: 2\ntrials_per_variant: 2\n"
        "base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, augmentation: none}\n"
        "variants: [{name: b, weights: {variant: a}, image_size: 64}, {name: a}]\n"
        "search: {lr: {low: 0.001, high: 0.01}}"
    )
    argv = ["--data", str(tiny_root), "--space", str(tmp_path / "space.yml"), "--name", "r"]
    argv += ["--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root)]
    assert serial_sweep.sweep(argv) == 0
    run = RunDirectory(tmp_path / "runs" / "r")
    found = {one.variant: one for one in standings(run, "ab")}
    assert all(one.whole for one in found.values())
    for fold, trial in found["b"].trials.items():
        assert read_spec(trial).after == {"a": found["a"].trials[fold].trial_id}
    before = {trial.trial_id: file_digest(trial.best) for trial in run.trials()}
    assert serial_sweep.sweep(argv) == 0
    assert {trial.trial_id: file_digest(trial.best) for trial in run.trials()} == before
