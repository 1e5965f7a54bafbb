"""Each method of fitting weights: against slow obvious versions, within its limits, the same for the same seed."""

import numpy as np
import pytest

from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.methods import GREEDY_STEPS, METHODS, _soft_loss, fit, uniform
from imet_ray.prediction.metrics import METRICS

F2 = METRICS["f2"]

pytestmark = pytest.mark.usefixtures("quick_lines")

METHOD = pytest.mark.parametrize("method", METHODS)


def tuned(members, labels, *, half_range=0.05, groups=None) -> DisputedCells:
    thresholds = [F2.best_threshold(member.probs, labels)[0] for member in members]
    return DisputedCells.build(
        [m.probs for m in members], thresholds, labels, half_range=half_range, groups=groups, metric="f2"
    )


@pytest.fixture(scope="module")
def four(make_members) -> DisputedCells:
    """Four members, two groups of labels."""
    members, labels, _ = make_members([0.5, 2.0, 2.0, 4.0], n=60)
    return tuned(members, labels, groups=np.arange(8) % 2)


@METHOD
@pytest.mark.parametrize("by_group", [False, True])
def test_every_method_ends_on_the_simplex_and_in_reach_with_the_score_it_claims(four, method, by_group):
    found = fit(four, method, seed=0, by_group=by_group)
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1)
    assert found.shifts.shape == (2 if by_group else 1,)
    assert np.abs(found.shifts).max() <= four.reach
    assert found.score == four.score(found.weights, found.shifts)


@METHOD
def test_the_same_seed_gives_the_same_fit(four, method):
    one, two = (fit(four, method, seed=3, by_group=True) for _ in range(2))
    assert (one.weights.tolist(), one.shifts.tolist()) == (two.weights.tolist(), two.shifts.tolist())
    assert (one.score, one.evaluations, one.curve) == (two.score, two.evaluations, two.curve)


@METHOD
@pytest.mark.parametrize("least", [0.2, 1.0])
def test_no_weight_is_below_the_least_allowed(four, method, least):
    weights = fit(four, method, seed=0, min_weight=least).weights
    assert weights[weights > 0].min() >= least
    assert weights.sum() == pytest.approx(1)


@METHOD
@pytest.mark.parametrize("most", [1, 2])
def test_no_more_members_than_allowed_have_weight(four, method, most):
    weights = fit(four, method, seed=0, max_members=most).weights
    assert 1 <= np.count_nonzero(weights) <= most
    assert weights[0] > 0  # the only good member


@pytest.mark.parametrize("method", ["nelder-mead", "powell", "line", "smooth"])
def test_a_search_is_never_worse_than_uniform_weights_where_it_starts(make_members, method):
    for seed in range(3):
        members, labels, _ = make_members([0.3, 3.0, 3.0, 6.0], n=80, seed=seed)
        cells = tuned(members, labels)
        assert fit(cells, method, seed=0).score >= cells.score(uniform(4))


def test_line_is_never_worse_than_settled_uniform_weights_or_any_member_alone(make_members):
    for seed in range(3):
        members, labels, _ = make_members([0.3, 3.0, 3.0, 6.0], n=80, seed=seed)
        cells = tuned(members, labels)
        best = fit(cells, "uniform", seed=0).score
        assert fit(cells, "line", seed=0).score >= max([best, *(cells.score(one) for one in np.eye(4))])


@pytest.mark.parametrize("noise", [[1.0, 1.0], [0.5, 4.0], [4.0, 1.0]])
def test_a_search_of_two_members_comes_near_the_best_of_a_fine_grid(make_members, noise, monkeypatch):
    monkeypatch.undo()  # the real number of starts and kicks
    members, labels, _ = make_members(noise)
    cells = tuned(members, labels)
    shifts = np.linspace(-cells.reach, cells.reach, 41)
    grid = max(
        cells.score(np.array([w, 1 - w]), np.array([s])) for w in np.linspace(0, 1, 51) for s in shifts
    )
    for method in ("line", "smooth"):
        assert fit(cells, method, seed=0).score >= grid - 5e-4


def test_uniform_weights_get_the_threshold_that_is_exactly_best_for_them(make_members):
    members, labels, _ = make_members([1.0, 2.0, 1.5])
    found = fit(tuned(members, labels, half_range=1.0), "uniform", seed=0)
    blended = np.mean([m.probs.astype(np.float32) for m in members], axis=0)
    assert found.weights.tolist() == uniform(3).tolist()
    assert found.score == pytest.approx(F2.best_threshold(blended, labels)[1], abs=1e-12)


def test_greedy_is_the_forward_selection_of_caruana(make_members):
    members, labels, _ = make_members([1.0, 1.5, 2.0, 1.2], n=80)
    thresholds = [F2.best_threshold(member.probs, labels)[0] for member in members]
    cells = DisputedCells.build(
        [m.probs for m in members], thresholds, labels, metric="f2"
    )  # without a shift
    margins = [m.probs.astype(np.float64) - t for m, t in zip(members, thresholds, strict=True)]
    bag: list[int] = []
    curve = []
    for _ in range(GREEDY_STEPS):
        scores = [F2.score(sum(margins[i] for i in [*bag, member]) > 0, labels) for member in range(4)]
        bag.append(int(np.argmax(scores)))
        curve.append(max(scores))
    size = int(np.argmax(curve)) + 1
    found = fit(cells, "greedy", seed=0)
    assert found.curve == pytest.approx(curve, abs=1e-12)
    assert found.weights == pytest.approx(np.bincount(bag[:size], minlength=4) / size)
    assert found.evaluations == 4 * GREEDY_STEPS


@pytest.mark.parametrize("n_shifts", [1, 2])
@pytest.mark.parametrize("softness", [0.05, 0.2])
def test_the_gradient_of_the_smooth_score_is_that_of_finite_differences(four, n_shifts, softness):
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(size=4), rng.uniform(-0.02, 0.02, n_shifts))
    _, gradient = _soft_loss(x, four, softness)
    for axis, slope in zip(np.eye(len(x)), gradient, strict=True):
        above, below = (_soft_loss(x + step * axis, four, softness)[0] for step in (1e-3, -1e-3))
        assert slope == pytest.approx((above - below) / 2e-3, rel=5e-3, abs=1e-5)


def test_a_hard_enough_smooth_score_is_the_score_itself(four):
    weights = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    loss, _ = _soft_loss(np.append(weights, 0.01), four, 1e-7)
    assert -loss == pytest.approx(four.score(np.exp(weights), np.array([0.01])), abs=1e-4)


@METHOD
def test_one_member_is_fitted_by_its_shift_alone(make_members, method):
    members, labels, _ = make_members([1.0])
    cells = DisputedCells.build([members[0].probs], [0.5], labels, half_range=1.0, metric="f2")
    found = fit(cells, method, seed=0)
    assert found.weights.tolist() == [1.0]
    assert found.score == pytest.approx(F2.best_threshold(members[0].probs, labels)[1], abs=1e-12)


@METHOD
def test_members_that_agree_everywhere_can_be_fitted(make_members, method):
    members, labels, _ = make_members([1.0], n=40)
    found = fit(tuned(members * 3, labels, half_range=0.0), method, seed=0)
    assert found.weights.sum() == pytest.approx(1)
    assert found.score == pytest.approx(F2.best_threshold(members[0].probs, labels)[1], abs=1e-12)
