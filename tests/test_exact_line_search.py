"""Exact line search against a dense walk along the line, and `line` against Nelder-Mead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from imet_ray.blending import exact_line_search as line_module
from imet_ray.blending.disputed_cells import HIT, DisputedCells
from imet_ray.blending.exact_line_search import best_on_line, line_search, step_gains
from imet_ray.blending.methods import fit, settled_shifts, uniform
from imet_ray.prediction.metrics import METRICS

F2 = METRICS["f2"]

FINE = 300  # points of the dense walk


def draw_problem(rng, *, steps=None):
    """Cells, and a line through a point of the simplex; probabilities without ties, or on a grid of `steps`."""
    m, n, c = rng.integers(2, 6), rng.integers(1, 30), rng.integers(1, 7)
    values = rng.random((m, n, c)) if steps is None else rng.integers(0, steps + 1, (m, n, c)) / steps
    labels = (rng.random((n, c)) < 0.4).astype(np.uint8)
    cells = DisputedCells.build(
        list(values.astype(np.float32)),
        rng.uniform(0.3, 0.7, m).tolist() if steps is None else [0.5] * m,
        labels,
        half_range=rng.choice([0.0, 0.1, 0.3]),
        groups=np.arange(c) % 2,
        metric="f2",
    )
    weights = rng.dirichlet(np.ones(m)) if steps is None else uniform(m)
    shifts = rng.uniform(-0.5, 0.5, rng.choice([1, cells.n_groups])) * cells.reach * (steps is None)
    towards = rng.normal(size=m)
    towards = np.eye(m)[0] - weights if rng.random() < 0.5 else towards - towards.mean()
    shifting = rng.normal(size=len(shifts)) * rng.choice([0.0, 0.1])
    return cells, weights, shifts, towards, shifting


def score_at(x, cells, weights, shifts, towards, shifting) -> float:
    """Straight from the cells; None outside of the simplex and the reach."""
    there, shifted = weights + x * towards, shifts + x * shifting
    if there.min() < -1e-9 or np.abs(shifted).max() > cells.reach + 1e-9:
        return -1.0
    return cells.score(np.maximum(there, 0), np.clip(shifted, -cells.reach, cells.reach))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_point_of_a_dense_walk_along_the_line_is_better(seed):
    rng = np.random.default_rng(seed)
    line = draw_problem(rng)
    x = best_on_line(*line)
    walk = np.concatenate([rng.uniform(-2, 2, FINE), rng.uniform(-0.1, 0.1, FINE // 3)])
    assert score_at(x, *line) >= max(score_at(at, *line) for at in walk) - 1e-12


@pytest.mark.parametrize("steps", [2, 4, 10, 1000])
def test_the_best_point_of_a_line_is_never_worse_than_its_start_where_cells_tie(steps):
    for seed in range(60):
        line = draw_problem(np.random.default_rng(seed), steps=steps)
        assert score_at(best_on_line(*line), *line) >= score_at(0.0, *line) - 1e-12


def test_a_line_that_starts_on_a_tie_leads_away_from_it():
    p = [np.array([[0.25]], np.float32), np.array([[0.75]], np.float32)]
    cells = DisputedCells.build(
        p, [0.5, 0.5], np.ones((1, 1), np.uint8), metric="f2"
    )  # uniform weights sum to just 0
    weights, still = uniform(2), np.zeros(1)
    assert cells.score(weights) == 0
    for towards in np.eye(2) - weights:
        x = best_on_line(cells, weights, still, towards, still)
        assert cells.score(weights + x * towards) == 1


def test_the_shift_is_the_best_one_even_where_no_shift_is_a_tie():
    p = [np.array([[0.25]], np.float32), np.array([[0.75]], np.float32)]
    cells = DisputedCells.build(p, [0.5, 0.5], np.ones((1, 1), np.uint8), half_range=0.1, metric="f2")
    assert cells.score(uniform(2), settled_shifts(cells, uniform(2), np.zeros(1))) == 1


def test_a_step_too_narrow_for_float32_is_not_taken_for_the_best():
    for seed in range(100):  # a true and a false cell change sides together but for rounding
        rng = np.random.default_rng(seed)
        below, above, scale = -rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0.2, 1)
        margins = np.array([[below, below * scale], [above, above * scale]], np.float32)[:, None]
        cells = DisputedCells.build(list(margins), [0.0, 0.0], np.array([[1, 0]], np.uint8), metric="f2")
        start, still = (
            np.array([0.9, 0.1]) if 0.9 * below + 0.1 * above < 0 else np.array([1.0, 0.0]),
            np.zeros(1),
        )
        x = best_on_line(cells, start, still, np.array([-1.0, 1.0]), still)
        assert cells.score(start + x * np.array([-1.0, 1.0])) >= 5 / 6 - 1e-12, seed  # both: 5 / (4 + 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_gains_of_steps_are_those_of_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    n, k = rng.integers(1, 8), rng.integers(0, 60)
    true = rng.integers(0, 6, n)
    hits, chosen = true + 60, true + rng.integers(120, 150, n)  # enough for all that leave
    image, sign, label = rng.integers(0, n, k).astype(np.int32), rng.choice([-1, 1], k), rng.random(k) < 0.5
    found = step_gains(image, sign * (1 + HIT * label.astype(np.int64)), hits, chosen, true, F2)
    slow = []
    for i, s, is_true in zip(image, sign, label, strict=True):
        before = F2.of_counts(hits, true, chosen).sum()
        hits[i], chosen[i] = hits[i] + s * is_true, chosen[i] + s
        slow.append(F2.of_counts(hits, true, chosen).sum() - before)
    assert found == pytest.approx(np.array(slow), abs=1e-10)


def problem(make_members, noise=(1.0, 2.0, 1.5, 3.0), *, half_range=0.05, **how) -> DisputedCells:
    members, labels, _ = make_members(noise, **how)
    thresholds = [F2.best_threshold(member.probs, labels)[0] for member in members]
    return DisputedCells.build(
        [m.probs for m in members], thresholds, labels, half_range=half_range, metric="f2"
    )


def test_line_search_is_a_method_of_scipy(make_members):
    cells = problem(make_members)
    called = []

    def loss(x, sign):
        called.append(x)
        return sign * cells.score(x[:4], x[4:])

    start = np.append(uniform(4), 0.0)
    options = {"cells": cells, "rng": np.random.default_rng(0)}
    found = minimize(loss, start, args=(-1.0,), method=line_search, options=options)
    assert found.success
    assert found.fun == -cells.score(found.x[:4], found.x[4:])
    assert found.fun < loss(start, -1.0)
    assert found.x[:4].sum() == pytest.approx(1)
    assert found.x[:4].min() >= 0
    assert found.nfev <= len(called)


def test_more_rounds_and_kicks_are_never_worse(make_members, monkeypatch):
    cells = problem(make_members, [1.0, 1.0, 2.0, 2.0], n=150)

    def loss(x):
        return -cells.score(x[:4], x[4:])

    ends = []
    for rounds, kicks in [(0, 0), (1, 0), (3, 0), (3, 4)]:
        monkeypatch.setattr(line_module, "ROUNDS", rounds)
        monkeypatch.setattr(line_module, "KICKS", (kicks, kicks))
        start, rng = np.append(uniform(4), 0.0), np.random.default_rng(0)
        ends.append(line_search(loss, start, cells=cells, rng=rng).fun)
    assert ends[0] == loss(np.append(uniform(4), 0.0))
    assert ends == sorted(ends, reverse=True)


@pytest.mark.slow
def test_line_is_never_below_nelder_mead_on_20_seeded_problems(make_members):
    for seed in range(20):
        noise = np.random.default_rng(seed).uniform(0.5, 3, 3)
        cells = problem(make_members, noise, n=80, c=5, seed=seed)
        found = {method: fit(cells, method, seed=0).score for method in ("line", "nelder-mead")}
        assert found["line"] >= found["nelder-mead"], seed
