"""What `benchmarks.asha` replays: searches over sets that were trained before."""

from itertools import permutations

import numpy as np
import pytest
from bare_spec import bare_spec

from benchmarks.asha import ORDERS, Trained, by_variant, drawn, interval, replay, searches, with_wide_lr
from imet_ray.reporting.run_status import TrialStatus
from imet_ray.search_space import Asha, SearchSpace
from imet_ray.space_file import read_space
from imet_ray.specs import TrialSpec, Variant
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 2
base: {epochs: 4, keep: last}
variants: [{name: a, architecture: resnet18}, {name: b, architecture: resnet34}]
search: {dropout: {low: 0.0, high: 0.5}}
"""


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    (tmp_path / "space.yml").write_text(SPACE)
    return read_space(tmp_path / "space.yml", check=check_recipe)


def spec(name: str = "a", fold: int = 0, keep: str = "last") -> TrialSpec:
    return bare_spec(Variant(name=name, architecture="resnet18", epochs=4, keep=keep), fold)


def trained(*f2: float, seconds: float = 1.0) -> Trained:
    return Trained(spec(), list(f2), [seconds] * len(f2), 0.5)


SETS = [
    trained(0.1, 0.2, 0.3, 0.4),
    trained(0.2, 0.3, 0.4, 0.5),
    trained(0.05, 0.1, 0.2, 0.9),  # late, and the best
]


def test_without_early_stopping_all_are_trained_and_the_best_at_the_end_is_picked(space):
    for order in permutations(SETS):
        pick = replay(order, space)
        assert order[pick.chosen].score[-1] == 0.9
        assert pick.epochs == 12


def test_what_the_last_epoch_loses_is_not_lost_to_a_set_that_keeps_its_best(space):
    early = [0.1, 0.9, 0.5, 0.4]
    for keep, chosen in (("last", 1), ("best", 0)):
        order = [Trained(spec(keep=keep), f2, [1.0] * 4, 0.5) for f2 in (early, [0.1, 0.2, 0.3, 0.5])]
        assert replay(order, space).chosen == chosen


def test_a_set_that_is_behind_at_its_first_epoch_is_stopped_and_not_picked(space):
    asha = space.model_copy(update={"asha": Asha(grace_epochs=1, factor=4)})
    pick = replay([SETS[1], SETS[0], SETS[2]], asha)
    assert pick.chosen == 0
    assert pick.epochs == 4 + 1 + 1


def test_of_sets_at_once_the_one_whose_epoch_ends_first_is_judged_by_nobody(space):
    asha = space.model_copy(update={"asha": Asha(grace_epochs=1, factor=4)})
    slow = trained(0.2, 0.3, 0.4, 0.5, seconds=1.5)
    assert replay([SETS[0], slow], asha).epochs == 8  # ahead of what came before
    fast = trained(0.2, 0.3, 0.4, 0.5, seconds=0.5)
    assert replay([SETS[0], fast], asha).epochs == 5


def test_sets_are_drawn_within_the_ranges_the_same_for_one_seed_and_differ(space):
    sets = drawn(space, 5)
    assert sets == drawn(space, 5)
    assert [variant.name for variant in sets.variants][:2] == ["a.0", "a.1"]
    dropouts = {variant.dropout for variant in sets.variants}
    assert len(dropouts) == 10  # of two variants
    assert all(0 <= dropout <= 0.5 for dropout in dropouts)
    assert SearchSpace.model_validate(sets.model_dump()) == sets


def test_sets_are_read_by_variant_with_the_mean_of_the_folds_that_were_not_searched():
    def trial(name: str, fold: int, last: float) -> TrialStatus:
        rows = [{"score": f2, "seconds": 2.0, "evaluate_s": 0.5} for f2 in (0.1, last)]
        return TrialStatus(spec(name, fold), "complete", rows, "", 0.0)

    found = by_variant(
        [
            trial("b.1", 2, 0.4),
            trial("b.1", 0, 0.2),
            trial("b.1", 1, 0.6),
            trial("a.0", 0, 0.9),
            trial("a.0", 1, 0.9),
            trial("c.0", 0, 0.9),
        ],
        {"a.0", "b.1"},
    )
    assert found.keys() == {"a", "b"}
    assert found["b"][0].score == [0.1, 0.2]
    assert found["b"][0].seconds == [2.5, 2.5]
    assert found["b"][0].elsewhere == pytest.approx(0.5)


@pytest.mark.parametrize(("n_sets", "expected"), [(5, 120), (30, ORDERS)])
def test_searches_are_of_different_sets_all_of_them_where_they_are_few(n_sets, expected):
    found = searches(n_sets)
    assert found.shape == (expected, 4)
    assert all(len(set(order)) == 4 for order in found.tolist())
    assert set(found.flat) == set(range(n_sets))
    assert len(set(map(tuple, found.tolist()))) > 0.99 * expected


def test_wide_rates_are_drawn_about_the_spaces_own(space):
    wide = space.model_copy(update={"ranges": with_wide_lr(space)})
    rates = [variant.lr for variant in drawn(wide, 40).variants if variant.name.startswith("a.")]
    own = space.variants[0].lr
    assert own / 10 <= min(rates) < own / 3
    assert own * 3 < max(rates) <= own * 10
    assert len({variant.dropout for variant in drawn(wide, 40).variants}) == 80


def test_the_interval_holds_the_mean_and_is_nothing_where_all_orders_gain_the_same():
    orders = np.array(list(permutations(range(5), 4)))
    assert interval(np.full((2, len(orders)), 0.25), orders, 5) == "+0.2500 [+0.2500, +0.2500]"
    gains = np.random.default_rng(0).normal(size=(2, len(orders))) + orders[:, 0]
    mean, low, high = (float(part.strip("[],")) for part in interval(gains, orders, 5).split())
    assert low < mean < high
