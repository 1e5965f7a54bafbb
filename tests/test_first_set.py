"""The first set of hparams of each variant: its own values, where they lie in the ranges."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_variant import write
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from imet_ray.cluster.policy import Policy
from imet_ray.cluster.variant_study import distributions
from imet_ray.errors import ConfigError
from imet_ray.search_space import Range, SearchSpace
from imet_ray.space_file import read_space
from imet_ray.specs import TrialSpec, Variant
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

SHIPPED = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yml"))
SEARCH = "dropout: {low: 0.0, high: 0.5}, batch_size: [16, 32], lr: {low: 0.0001, high: 0.01, log: true}"


def space_of(folder: Path, search: str = SEARCH, variant: str = "dropout: 0.25, batch_size: 32, lr: 0.003"):
    (folder / "space.yml").write_text(
        f"n_folds: 2\ntrials_per_variant: 3\nvariants: [{{name: a, architecture: resnet18, {variant}}}]\n"
        f"search: {{{search}}}\n"
    )
    return read_space(folder / "space.yml", check=check_recipe)


def policy_of(space: SearchSpace, folder: Path) -> Policy:
    return Policy(space, RunDirectory(folder / "run"), "data", "folds")


def next_spec(policy: Policy) -> TrialSpec:
    found = policy.next()
    assert found is not None
    assert found != "finished"
    return found.spec


def test_the_first_set_is_the_variants_own_values_and_later_ones_are_drawn(tmp_path):
    policy = policy_of(space_of(tmp_path), tmp_path)
    first, second, third = (next_spec(policy) for _ in range(3))
    assert first.hparams == {"dropout": 0.25, "batch_size": 32, "lr": 0.003}
    assert first.recipe == first.variant
    assert len({first.trial_id, second.trial_id, third.trial_id}) == 3


def test_it_has_the_id_of_the_variant_that_is_trained_without_a_search(tmp_path):
    first = next_spec(policy_of(space_of(tmp_path), tmp_path))
    assert first.trial_id == first.model_copy(update={"hparams": {}}).trial_id


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_in_every_shipped_space_it_is_each_variants_own(path, tmp_path, caplog):
    policy = policy_of(read_space(path, check=check_recipe), tmp_path)
    for study in policy.studies.values():
        assert study.own_values().keys() == study.distributions.keys()
    assert not caplog.records


@pytest.mark.parametrize(("loss", "default"), [("bce", 1.0), ("asymmetric", 4.0)])
def test_where_a_variant_says_no_loss_weight_it_is_the_losses_own_default(tmp_path, loss, default):
    space = space_of(tmp_path, "loss_weight: {low: 1.0, high: 6.0}", f"loss: {loss}")
    assert next_spec(policy_of(space, tmp_path)).hparams == {"loss_weight": default}


@pytest.mark.parametrize(
    ("search", "variant", "default"),
    [
        ("beta1: {low: 0.8, high: 0.99}", "", {"beta1": 0.9}),
        ("beta2: {low: 0.9, high: 0.9999}", "optimizer: lion", {"beta2": 0.99}),
        ("eps: {low: 1.0e-9, high: 1.0e-6}", "", {"eps": 1e-8}),
        ("drop_factor: {low: 0.05, high: 0.95}", "schedule: exponential", {"drop_factor": 0.9}),
        ("drop_factor: {low: 0.05, high: 0.95}", "schedule: step, drop_every: 2", {"drop_factor": 0.1}),
    ],
)
def test_what_a_variant_leaves_to_its_optimizer_or_schedule_is_their_default(
    tmp_path, caplog, search, variant, default
):
    first = next_spec(policy_of(space_of(tmp_path, search, f"epochs: 3, {variant}"), tmp_path))
    assert first.hparams == default
    assert not caplog.messages


def test_what_lies_outside_its_range_is_drawn_and_said(tmp_path, caplog):
    space = space_of(tmp_path, variant="batch_size: 7, lr: 0.003")
    with caplog.at_level(logging.WARNING):
        first = next_spec(policy_of(space, tmp_path))
    assert first.hparams["batch_size"] in (16, 32)
    assert (first.hparams["lr"], first.hparams["dropout"]) == (0.003, 0.0)
    assert caplog.messages == ["a: its own batch_size=7 is not in [16, 32]: the first set draws one"]


def test_a_setting_that_is_off_is_drawn_or_chosen_as_off(tmp_path, caplog):
    (numbers := tmp_path / "numbers").mkdir()
    (choices := tmp_path / "choices").mkdir()
    drawn = next_spec(policy_of(space_of(numbers, "clip_norm: {low: 0.5, high: 2.0}"), numbers))
    assert 0.5 <= drawn.recipe.clip_norm <= 2.0
    assert caplog.messages == [
        "a: its own recipe, without clip_norm, is not in 0.5..2: the first set draws one"
    ]
    chosen = next_spec(policy_of(space_of(choices, "clip_norm: [1.0, null]"), choices))
    assert chosen.hparams == {"clip_norm": None}


def test_first_own_refuses_a_value_outside_its_range_by_file_and_line(tmp_path):
    assert space_of(tmp_path, SEARCH + ", first: own").first == {"a": "own"}
    with pytest.raises(ConfigError) as caught:
        space_of(tmp_path, SEARCH + ", first: own", "batch_size: 7, lr: 0.003")
    assert str(caught.value) == (
        f"{tmp_path}/space.yml line 3: first: own, and a's own batch_size=7 is not in [16, 32]: widen the range, or "
        "leave `first: own` out"
    )


def test_first_own_names_the_line_of_the_range_where_the_value_is_a_default(tmp_path):
    with pytest.raises(
        ConfigError, match=r"line 4: first: own, and a's own lr=0\.0001 is not in 0\.001\.\.0\.1"
    ):
        space_of(tmp_path, "first: own, lr: {low: 0.001, high: 0.1}", "dropout: 0.1")


def test_first_drawn_draws_it(tmp_path):
    space = space_of(tmp_path, SEARCH + ", first: drawn")
    assert next_spec(policy_of(space, tmp_path)).hparams["dropout"] != 0.25


def test_a_variant_may_say_it_for_itself(tmp_path):
    space = space_of(tmp_path, SEARCH + ", first: drawn", "search: {first: own}, lr: 0.003")
    assert space.first == {"a": "own"}


@pytest.mark.parametrize("value", ["mine", "[own]", "null"])
def test_an_unknown_first_is_refused_with_its_line(tmp_path, value):
    with pytest.raises(ConfigError, match=r"space\.yml line 4: .*first must be .*own.*drawn"):
        space_of(tmp_path, f"{SEARCH}, first: {value}")


@pytest.mark.parametrize("written", range(3))  # hparams, in the journal at the kill
def test_a_kill_while_it_is_asked_for_leaves_it_the_first(tmp_path, written, monkeypatch):
    space, left = space_of(tmp_path), iter(range(written))
    write_param = JournalStorage.set_trial_param

    def killed(*args):
        next(left)
        write_param(*args)

    with monkeypatch.context() as patch:
        patch.setattr(JournalStorage, "set_trial_param", killed)
        with pytest.raises(StopIteration):
            policy_of(space, tmp_path).next()
    again = policy_of(space, tmp_path)
    own = next_spec(again)
    assert own.recipe == own.variant
    assert next_spec(again).recipe != own.variant
    states = [trial.state for trial in again.studies["a"].study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]


def test_a_run_that_has_sets_goes_on_with_them(tmp_path):
    drawn = space_of(tmp_path, SEARCH + ", first: drawn")  # as earlier versions did
    earlier = policy_of(drawn, tmp_path)
    begun = next_spec(earlier)
    write(earlier.store, begun)
    again = policy_of(space_of(tmp_path), tmp_path)
    later = [next_spec(again) for _ in range(2)]
    assert not any(spec.recipe == spec.variant for spec in later)
    assert again.next() is None


@given(
    st.one_of(
        st.builds(Range, choices=st.just((1, 2.5, "x", None, True))),
        st.builds(
            lambda low, steps, step: Range(low=low, high=low + steps * (step or 1), step=step),
            st.sampled_from((0, 1, 0.5)),
            st.integers(1, 9),
            st.sampled_from((None, 0.25, 1, 2)),
        ),
    ),
    st.sampled_from((0, 1, 2, 3, 5, 13, 2.5, 3.25, 0.6)),
)
def test_a_range_holds_what_optuna_takes(wanted, value):
    (found,) = distributions(Variant(name="a", architecture="b"), {"lr": wanted}).values()
    if type(found).__name__ == "IntDistribution" and value != int(value):
        return  # of whole numbers settings have no others
    try:
        taken = found._contains(found.to_internal_repr(value))
    except ValueError:  # no choice
        taken = False
    assert wanted.holds(value) == taken


@pytest.mark.parametrize("value", ["auto", None, True])
def test_numbers_from_low_to_high_hold_numbers_only(value):
    assert not Range(low=0, high=2).holds(value)
