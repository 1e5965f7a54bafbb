"""The best ensemble that fits: equal to trying every set, within its limits, and greedy where sets are too many."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from imet_ray.blending import budget as budget_module
from imet_ray.blending.blend_run import within_budget
from imet_ray.blending.budget import Chosen, choose
from imet_ray.blending.cross_fit import silent
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.fit_jobs import solve_here
from imet_ray.blending.methods import uniform
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import METRICS

F2 = METRICS["f2"]

IMAGES = 1000


def within(seconds=None, size=None, members=None) -> BlendOptions:
    return BlendOptions(seconds=seconds, size=size, max_members=members, images=IMAGES)


def with_costs(members, seed=0):
    rng = np.random.default_rng(seed)
    costs = zip(members, rng.uniform(0.1, 1, len(members)), rng.integers(1, 10, len(members)), strict=True)
    return [replace(member, seconds=float(s), size=int(b) * 10**6) for member, s, b in costs]


@pytest.fixture(scope="module")
def five(make_members):
    members, labels, folds = make_members([1.0, 1.2, 1.5, 2.0, 3.0], n=150, c=6)
    return with_costs(members), labels, folds


def every_set(members, labels) -> dict[tuple[str, ...], tuple[float, float, int]]:
    """The score under uniform weights, seconds and bytes of each set of members, by name."""
    thresholds = {member.name: F2.best_threshold(member.probs, labels)[0] for member in members}
    found = {}
    for size in range(1, len(members) + 1):
        for kept in itertools.combinations(members, size):
            own = [thresholds[member.name] for member in kept]
            score = DisputedCells.build([m.probs for m in kept], own, labels, metric="f2").score(
                uniform(size)
            )
            seconds = IMAGES * sum(member.seconds for member in kept)
            found[tuple(m.name for m in kept)] = score, seconds, sum(member.size for member in kept)
    return found


def check_that_it_fits(found: Chosen, members, budget: BlendOptions):
    by_name = {member.name: member for member in members}
    kept = [by_name[name] for name in found.names]
    assert found.seconds == pytest.approx(IMAGES * sum(member.seconds for member in kept))
    assert found.size == sum(member.size for member in kept)
    assert budget.seconds is None or found.seconds <= budget.seconds
    assert budget.size is None or found.size <= budget.size
    assert budget.max_members is None or len(found.names) <= budget.max_members


BUDGETS = [
    within(900.0),
    within(1500.0),
    within(None, 12_000_000),
    within(1200.0, 15_000_000),
    within(2000.0, None, 2),
    within(1e9, 10**12),
]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_chosen_set_is_the_best_of_all_that_fit(five, budget):
    members, labels, folds = five
    found = choose(BlendProblem(members, labels, folds, "f2"), budget)
    fitting = {
        names: score
        for names, (score, took, bytes_) in every_set(members, labels).items()
        if (budget.seconds is None or took <= budget.seconds)
        and (budget.size is None or bytes_ <= budget.size)
        and (budget.max_members is None or len(names) <= budget.max_members)
    }
    best = max(fitting.values())
    assert fitting[found.names] == pytest.approx(best, abs=1e-12)
    assert found.exact
    check_that_it_fits(found, members, budget)


def test_of_equally_good_members_the_faster_one_is_chosen(five):
    members, labels, folds = five
    twins = [
        replace(members[0], name=name, seconds=seconds) for name, seconds in (("slow", 0.9), ("fast", 0.3))
    ]
    assert choose(BlendProblem(twins, labels, folds, "f2"), within(1e9)).names == ("fast",)


@pytest.mark.parametrize("whole", [True, False])
def test_the_curve_rises_and_each_point_is_the_best_that_is_as_fast(five, monkeypatch, whole):
    members, labels, folds = five
    monkeypatch.setattr(budget_module, "WHOLE", 5 if whole else 4)  # else only sets that fit are tried
    limit = 1200.0
    sets = every_set(members, labels)
    seen = {names: found for names, found in sets.items() if whole or found[1] <= limit}
    curve = choose(BlendProblem(members, labels, folds, "f2"), within(limit)).curve
    for before, after in itertools.pairwise(curve):
        assert before.seconds < after.seconds
        assert before.score < after.score
    for step in curve:
        score, took, _ = seen[step.members]
        assert (step.score, step.seconds) == (pytest.approx(score, abs=1e-12), pytest.approx(took))
        assert not any(rival > score + 1e-12 and seconds <= took for rival, seconds, _ in seen.values())
    assert curve[-1].score == pytest.approx(max(score for score, _, _ in seen.values()), abs=1e-12)


def test_more_than_15_members_are_chosen_greedily_and_fit(make_members):
    noise = np.random.default_rng(0).uniform(0.8, 3, 16)
    members, labels, folds = make_members(noise, n=120, c=6)
    members = with_costs(members)
    for budget in (
        within(2000.0),
        within(None, 20_000_000),
        within(3000.0, 20_000_000, 3),
    ):
        found = choose(BlendProblem(members, labels, folds, "f2"), budget)
        assert not found.exact
        check_that_it_fits(found, members, budget)
        scores = {names: step.score for step in found.curve for names in [step.members]}
        assert scores[found.names] == max(scores.values())
        alone = [
            choose(BlendProblem([member], labels, folds, "f2"), within()).curve[0].score
            for member in members
            if (budget.seconds is None or member.seconds * IMAGES <= budget.seconds)
        ]
        assert max(scores.values()) >= max(alone)
    assert "by forward selection" in found.remark


def test_greedy_choice_is_close_to_the_best_of_all_sets(five, monkeypatch):
    members, labels, folds = five
    budget = within(1500.0, 20_000_000)
    best = choose(BlendProblem(members, labels, folds, "f2"), budget)
    monkeypatch.setattr(budget_module, "EXACT", 1)
    greedy = choose(BlendProblem(members, labels, folds, "f2"), budget)
    check_that_it_fits(greedy, members, budget)
    assert not greedy.exact
    scores = {names: score for names, (score, _, _) in every_set(members, labels).items()}
    assert scores[best.names] - 0.01 <= scores[greedy.names] <= scores[best.names]


@pytest.mark.parametrize(("cost", "budget"), [("seconds", within(1000.0)), ("size", within(None, 10**9))])
def test_a_member_that_does_not_say_its_cost_is_refused_by_name_only_where_the_cost_is_limited(
    five, cost, budget
):
    members, labels, folds = five
    without = [*members[:2], replace(members[2], **{cost: None})]
    with pytest.raises(ConfigError, match=f"member noise2 does not say its {cost}"):
        choose(BlendProblem(without, labels, folds, "f2"), budget)
    other = within(size=10**9) if cost == "seconds" else within(seconds=1e9)
    assert choose(BlendProblem(without, labels, folds, "f2"), other).names


@pytest.mark.parametrize("budget", [within(1.0), within(None, 10)])
def test_a_budget_that_no_member_fits_says_what_the_least_is(five, budget):
    members, labels, folds = five
    least = IMAGES * min(member.seconds for member in members)
    with pytest.raises(
        ConfigError, match=rf"no member fits.*{least:,.0f} s for 1,000 pictures.*raise --seconds"
    ):
        choose(BlendProblem(members, labels, folds, "f2"), budget)


def test_what_is_blended_is_what_was_chosen_and_the_report_says_so(five):
    members, labels, folds = five
    options = BlendOptions(methods=(), decoders=("threshold",), seconds=1500.0, scale="probability")
    problem = BlendProblem(members, labels, folds, "f2", images=IMAGES)
    kept, bought = within_budget(problem, options, silent)
    report = evaluate(kept, options, runner=solve_here, progress=silent)
    assert bought == choose(BlendProblem(members, labels, folds, "f2"), within(1500.0))
    assert tuple(kept.names) == report.names == bought.names
    assert bought.remark in report.text()
    assert report.seconds == tuple(member.seconds for member in kept.members)


def test_the_pictures_that_are_given_count_not_those_of_the_data(five):
    members, labels, folds = five
    problem = BlendProblem(members, labels, folds, "f2", images=IMAGES)
    few, many = (
        within_budget(problem, BlendOptions(seconds=1e5, images=images), silent)[1]
        for images in (10, 100_000)
    )
    assert few.seconds < 100
    assert len(many.names) < 5


def test_seconds_without_test_pictures_are_refused(five):
    members, labels, folds = five
    with pytest.raises(ConfigError, match="--seconds needs the number of test pictures.*give --images"):
        within_budget(BlendProblem(members, labels, folds, "f2"), BlendOptions(seconds=10.0), silent)
