"""Level 2: what the stacked models learn, where they stay at the uniform blend, and that no label leaks."""

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit

from imet_ray.blending import stacked_cells, stacked_labels
from imet_ray.blending.out_of_fold import OutOfFold
from imet_ray.blending.stacked_cells import label_odds, stack_lightgbm, stack_net
from imet_ray.blending.stacked_labels import fit_logistic, stack_linear, stack_logistic
from imet_ray.blending.stacking import STACKERS
from imet_ray.errors import ConfigError
from imet_ray.prediction.metrics import METRICS


def make_probs(scales, *, n=900, c=8, mean=-2.0, seed=0):
    """Members that see the truth's log-odds through noise and then scale them; labels and three folds."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(mean, 2, (n, c))
    labels = (rng.random((n, c)) < expit(odds)).astype(np.uint8)
    probs = [expit(scale * (odds + rng.normal(0, 1, (n, c)))).astype(np.float16) for scale in scales]
    return probs, labels, rng.permutation(n) % 3


def nested(stacker, probs, labels, folds, seed=0):
    """What a stacker predicts of each picture without its fold."""
    data = OutOfFold(probs, labels, folds, seed=seed)
    return data.nested(stacker(data))


def uniform_blend(probs):
    return expit(np.mean([logit(np.clip(p.astype(np.float64), 1e-5, 1 - 2**-12)) for p in probs], axis=0))


def log_loss(probs, labels) -> float:
    p = np.clip(probs.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-np.where(labels, np.log(p), np.log(1 - p)).mean())


def by_scipy(x, y, weights, l2):
    """The same penalised likelihood in float64, by another method."""
    uniform = np.array([0] + [1 / (len(x) - 1)] * (len(x) - 1))

    def loss(beta):
        eta = beta @ x
        pull = beta - uniform
        gradient = x @ (weights * (expit(eta) - y)) + l2 * pull
        return weights @ (np.logaddexp(0, eta) - y * eta) + l2 / 2 * pull @ pull, gradient

    return minimize(loss, uniform, jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": 0}).x


def one_label(probs, labels, column=0):
    x = torch.from_numpy(
        np.vstack([np.ones(len(labels)), *(logit(p[:, column].clip(1e-5, 0.9997)) for p in probs)])
    )
    return x.float(), torch.from_numpy(labels[:, column]).float()


@pytest.fixture
def few_trees(monkeypatch):
    pytest.importorskip("lightgbm")
    monkeypatch.setattr(stacked_cells, "ROUNDS", 60)


@pytest.fixture(params=STACKERS)
def stacker(request, monkeypatch):
    """Each of the registry."""
    if request.param == "lightgbm":
        pytest.importorskip("lightgbm")
        monkeypatch.setattr(stacked_cells, "ROUNDS", 60)
    return STACKERS[request.param]


@pytest.mark.parametrize("l2", [0.1, 30.0])
@pytest.mark.parametrize("n_members", [1, 3, 50])
def test_a_fit_is_the_minimum_that_scipy_finds(n_members, l2):
    probs, labels, folds = make_probs([1.0, 0.5, 2.0] * 17, n=300, c=1)
    x, y = one_label(probs[:n_members], labels)
    outside = torch.from_numpy(folds != np.arange(3)[:, None]).float()
    found = fit_logistic(x, y, outside, l2=l2).numpy()
    for fitted, weights in zip(found, outside.double().numpy(), strict=True):
        assert fitted == pytest.approx(by_scipy(x.double().numpy(), y.numpy(), weights, l2), abs=2e-3)


@pytest.mark.parametrize("value", [1e-5, 0.9997])
def test_a_fit_converges_where_a_full_newton_step_overshoots(value):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.vstack([np.ones(4000), np.full((2, 4000), logit(value))])).float()
    y = torch.from_numpy(rng.random(4000) < 0.5).float()  # members are sure, and wrong half of the time
    found = fit_logistic(x, y, torch.ones(1, 4000), l2=1e-3)[0].numpy()
    assert expit(found @ x.double().numpy()) == pytest.approx(float(y.mean()), abs=1e-3)


def test_a_label_with_few_positives_stays_at_the_uniform_blend():
    probs, labels, _ = make_probs([1.0, 1.0, 1.0], mean=-9.0, n=3000)
    rare = int(np.argmin(np.abs(labels.sum(axis=0) - 5)))
    assert 2 <= labels[:, rare].sum() <= 10
    x, y = one_label(probs, labels, rare)
    weak, usual = (
        fit_logistic(x, y, torch.ones(1, 3000), l2=l2)[0].numpy() for l2 in (1e-3, stacked_labels.L2)
    )
    uniform = [0, 1 / 3, 1 / 3, 1 / 3]
    assert np.abs(usual - uniform).max() < 0.15
    assert np.abs(weak - uniform).max() > 0.5


def test_stacking_corrects_a_member_whose_logits_are_scaled():
    probs, labels, folds = make_probs([1.0, 3.0, 0.3])
    assert (
        log_loss(nested(stack_logistic, probs, labels, folds), labels)
        < log_loss(uniform_blend(probs), labels) - 0.01
    )


def test_a_strong_ridge_gives_the_uniform_blend(monkeypatch):
    monkeypatch.setattr(stacked_labels, "L2", 1e9)
    probs, labels, folds = make_probs([1.0, 3.0])
    stacked = nested(stack_logistic, probs, labels, folds)
    assert stacked.astype(np.float64) == pytest.approx(uniform_blend(probs), abs=1e-3)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_that_is_always_or_never_true_has_finite_probabilities(value, monkeypatch):
    monkeypatch.setattr(stacked_labels, "L2", 1e-3)
    probs, labels, folds = make_probs([1.0, 3.0])
    probs[1][:100], probs[1][100:200] = 0, 1
    stacked = nested(stack_logistic, probs, np.full_like(labels, value), folds)
    assert ((stacked >= 0) & (stacked <= 1)).all()
    assert np.abs(stacked.astype(np.float64) - value).mean() < 0.01


def test_the_predictions_of_a_fold_are_blind_to_its_labels(stacker):
    probs, labels, folds = make_probs([1.0, 2.0])
    shuffled = labels.copy()
    shuffled[folds == 1] = labels[folds == 1][::-1]
    one, two = (nested(stacker, probs, truth, folds) for truth in (labels, shuffled))
    assert np.array_equal(one[folds == 1], two[folds == 1])
    assert not np.array_equal(one[folds == 0], two[folds == 0])


def test_a_stacker_gives_a_model_without_each_fold_and_at_last_one_of_all(stacker):
    probs, labels, folds = make_probs([1.0, 2.0])
    models = stacker(OutOfFold(probs, labels, folds))
    assert len(models) == 4
    assert {model.shape() for model in models} == {(2, 8)}
    changed = labels.copy()
    changed[folds == 1] = labels[folds == 1][::-1]
    assert stacker(OutOfFold(probs, changed, folds))[1] == models[1]
    assert stacker(OutOfFold(probs, changed, folds))[3] != models[3]


def test_the_same_seed_gives_the_same_model(stacker):
    case = make_probs([1.0, 2.0])
    one, two = (stacker(OutOfFold(*case, seed=3)) for _ in range(2))
    assert one == two


def test_each_stacker_is_better_than_uniform_weights_where_a_member_knows_nothing(stacker):
    probs, labels, folds = make_probs([1.0, 1.0], n=1500)
    probs[1] = np.random.default_rng(1).permutation(probs[1])
    f2, uniform = METRICS["f2"], uniform_blend(probs).astype(np.float16)
    before, after = (
        f2.best_threshold(p, labels)[1] for p in (uniform, nested(stacker, probs, labels, folds))
    )
    assert after > before + 0.03


def test_a_linear_fit_finds_the_thresholds_that_labels_need():
    rng = np.random.default_rng(0)
    truth = rng.random((3000, 2)) < 0.4
    odds = np.where(truth, 1.0, -1.0) + rng.normal(0, 0.3, truth.shape)
    labels = np.hstack([truth, ~truth.any(axis=1)[:, None]]).astype(np.uint8)
    odds = np.hstack(
        [odds + np.array([1.5, -1.5]), np.where(labels[:, 2:], 1.0, -1.0)]
    )  # one is too sure, one not enough
    probs, folds = [expit(odds).astype(np.float16)] * 2, np.arange(3000) % 3
    f2 = METRICS["f2"]
    assert f2.best_threshold(probs[0], labels)[1] < 0.93
    assert f2.best_threshold(nested(stack_linear, probs, labels, folds), labels)[1] > 0.98


def test_a_linear_fits_gradient_is_that_of_its_score():
    probs, labels, folds = make_probs([1.0, 2.0], n=60, c=3)
    cells = stacked_labels._Cells.of(OutOfFold(probs, labels, folds))
    weights = np.random.default_rng(0).normal(0.5, 0.3, (3, 3)).astype(np.float32).astype(np.float64)
    _, gradient = stacked_labels._soft_score(cells, weights, -1.0, "f2")
    step = 2.0**-7
    for place in np.ndindex(weights.shape):
        ends = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[place] += sign * step
            ends.append(stacked_labels._soft_score(cells, moved, -1.0, "f2")[0])
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-5)


def test_a_strong_pull_keeps_the_linear_fit_at_the_uniform_blend(monkeypatch):
    monkeypatch.setattr(stacked_labels, "PULL", 1e9)
    probs, labels, folds = make_probs([1.0, 3.0])
    stacked = nested(stack_linear, probs, labels, folds)
    assert stacked.astype(np.float64) == pytest.approx(uniform_blend(probs), abs=1e-3)


def test_a_net_corrects_a_member_whose_logits_are_scaled():
    probs, labels, folds = make_probs([1.0, 3.0, 0.3])
    assert (
        log_loss(nested(stack_net, probs, labels, folds), labels)
        < log_loss(uniform_blend(probs), labels) - 0.01
    )


def test_torchs_number_of_threads_is_as_it_was(stacker):
    before = torch.get_num_threads()
    nested(stacker, *make_probs([1.0], n=90))
    assert torch.get_num_threads() == before


def test_nothing_above_the_floor_leaves_the_uniform_blend(stacker):
    probs, labels, folds = make_probs([1.0, 2.0], n=200)
    low = [np.minimum(p, np.float16(0.009)) for p in probs]
    found = nested(stacker, low, labels, folds)
    assert np.isfinite(found).all()
    if stacker is not stack_logistic:  # which looks at all cells
        assert found == pytest.approx(uniform_blend(low), abs=1e-3)


def test_blocks_and_memory_maps_change_nothing(tmp_path, monkeypatch):
    probs, labels, folds = make_probs([1.0, 2.0])
    whole = nested(stack_logistic, probs, labels, folds)
    mapped = []
    for i, p in enumerate(probs):
        np.save(tmp_path / f"{i}.npy", p)
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    monkeypatch.setattr(stacked_labels, "BLOCK", 3 * 3 * len(labels))
    monkeypatch.setattr(stacked_labels, "ROWS", 100)
    assert np.array_equal(nested(stack_logistic, mapped, labels, folds), whole)


def test_log_odds_for_trees_leave_out_the_folds_of_the_cell_and_of_the_estimate():
    _, labels, folds = make_probs([])
    table = label_odds(labels, folds)
    seen = labels[folds == 0]
    assert expit(table[1, 2]) == pytest.approx((seen.sum(axis=0) + 0.5) / (len(seen) + 1))
    assert expit(table[1, 1]) == pytest.approx(
        (labels[folds != 1].sum(axis=0) + 0.5) / (1 + (folds != 1).sum())
    )


def test_trees_without_lightgbm_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match="uv sync --extra lightgbm"):
        nested(stack_lightgbm, *make_probs([1.0]))


def test_trees_correct_a_member_whose_logits_are_scaled(few_trees):
    probs, labels, folds = make_probs([1.0, 3.0, 0.3])
    stacked = nested(stack_lightgbm, probs, labels, folds)
    assert log_loss(stacked, labels) < log_loss(uniform_blend(probs), labels) - 0.01


def test_thinned_cells_give_the_same_trees_for_the_same_seed(monkeypatch, few_trees):
    monkeypatch.setattr(stacked_cells, "CELLS", 3000)
    case = make_probs([1.0, 2.0])
    one, two, other = (nested(stack_lightgbm, *case, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("floor", [0.2, 1.0])
def test_cells_below_the_floor_keep_the_uniform_blend(floor, few_trees, monkeypatch):
    monkeypatch.setattr(stacked_cells, "FLOOR", floor)
    probs, labels, folds = make_probs([1.0, 2.0])
    stacked = nested(stack_lightgbm, probs, labels, folds)
    below = np.maximum(*probs) <= np.float16(floor)
    assert stacked[below] == pytest.approx(uniform_blend(probs)[below], abs=1e-3)
    assert floor == 1 or np.abs(stacked - uniform_blend(probs))[~below].max() > 0.05
