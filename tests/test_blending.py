"""The blend: disputed cells against the dense matrix, weights, and the honesty of the report."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imet_ray.blending import cells as cells_module
from imet_ray.blending.cells import DisputedCells, member_margin, weighted_margin
from imet_ray.blending.evaluate import Member, check_members, evaluate
from imet_ray.blending.fit import fit_weights, uniform
from imet_ray.blending.scoring import blended_probs, bootstrap
from imet_ray.decode import at_least_one, decode, decode_threshold
from imet_ray.errors import DataError
from imet_ray.metrics import best_threshold, f2_per_image, f2_score


def dense(probs, thresholds, labels, weights) -> np.ndarray:
    """Every cell of every member: (N, C) bool."""
    margins = [member_margin(p, t) for p, t in zip(probs, thresholds, strict=True)]
    return weighted_margin(margins, weights) > 0


@st.composite
def blends(draw):
    """Members that agree, tie or stand exactly at their thresholds; weights on the simplex, some of them 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, n, c = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    steps = draw(st.sampled_from([2, 5, 1000]))
    probs = [(rng.integers(0, steps, (n, c)) / steps).astype(np.float16) for _ in range(m)]
    if draw(st.booleans()):
        probs = [probs[0]] * m
    thresholds = (rng.integers(0, steps, m) / steps).tolist()
    labels = (rng.random((n, c)) < draw(st.sampled_from([0.0, 0.4]))).astype(np.uint8)
    raw = rng.integers(0, 3, m).astype(np.float64) + draw(st.sampled_from([0.0, 0.1]))
    return probs, thresholds, labels, raw / raw.sum() if raw.sum() else uniform(m)


@settings(max_examples=300, deadline=None)
@given(blends(), st.sampled_from([1, 4, 2048]))
def test_disputed_cells_count_what_the_whole_matrix_counts(case, rows):
    probs, thresholds, labels, weights = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells_module, "ROWS", rows)
        cells = DisputedCells.build(probs, thresholds, labels)
    whole = dense(probs, thresholds, labels, weights)
    hits, chosen = cells.counts(weights)
    assert chosen.tolist() == whole.sum(axis=1).tolist()
    assert hits.tolist() == (whole & labels.astype(bool)).sum(axis=1).tolist()
    assert cells.score(weights) == f2_score(whole, labels)


def test_one_member_or_equal_members_dispute_nothing():
    p = np.random.default_rng(0).random((20, 5)).astype(np.float16)
    labels = (p > 0.5).astype(np.uint8)
    assert DisputedCells.build([p], [0.5], labels).margins.shape == (1, 0)
    assert DisputedCells.build([p, p], [0.5, 0.5], labels).margins.shape == (2, 0)


def test_members_may_be_memory_mapped(tmp_path):
    members, labels, _ = make_members([1.0, 2.0])
    mapped = []
    for member in members:
        path = tmp_path / f"{member.name}.npy"
        np.save(path, member.probs)
        mapped.append(np.load(path, mmap_mode="r"))
    one = DisputedCells.build([m.probs for m in members], [0.3, 0.3], labels)
    two = DisputedCells.build(mapped, [0.3, 0.3], labels)
    assert np.array_equal(one.margins, two.margins)


def make_members(noise, *, n=600, c=12, seed=0):
    """Members that see the truth's log-odds through independent noise of a given strength, and three folds."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 2, size=(n, c))
    labels = (rng.random((n, c)) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    members = [
        Member(f"noise{i}", (1 / (1 + np.exp(-(logits + rng.normal(0, s, (n, c)))))).astype(np.float16))
        for i, s in enumerate(noise)
    ]
    return members, labels, rng.permutation(n) % 3


def tuned_cells(members, labels):
    thresholds = [best_threshold(m.probs, labels)[0] for m in members]
    return DisputedCells.build([m.probs for m in members], thresholds, labels)


@pytest.mark.parametrize("noise", [[1.0, 1.0], [0.5, 4.0], [4.0, 1.0]])
def test_the_fit_comes_near_the_best_of_a_fine_grid(noise):
    members, labels, _ = make_members(noise)
    cells = tuned_cells(members, labels)
    grid = max(cells.score(np.array([w, 1 - w])) for w in np.linspace(0, 1, 501))
    assert fit_weights(cells).score >= grid - 5e-4


def test_the_fit_is_never_worse_than_uniform_or_any_member_alone():
    for seed in range(5):
        members, labels, _ = make_members([0.3, 3.0, 3.0, 6.0], n=80, seed=seed)
        cells = tuned_cells(members, labels)
        found = fit_weights(cells)
        assert found.score == cells.score(found.weights)
        assert found.score >= max(cells.score(w) for w in [uniform(4), *np.eye(4)])
        assert found.weights.min() >= 0
        assert found.weights.sum() == pytest.approx(1)


def test_where_nothing_beats_uniform_weights_are_uniform():
    members, labels, _ = make_members([1.0])
    assert fit_weights(tuned_cells(members * 3, labels)).weights.tolist() == uniform(3).tolist()


def test_independent_members_blend_to_more_than_the_best_of_them():
    report = evaluate(*make_members([1.5, 1.5, 1.5]), seed=0)
    assert report.over_single.low > 0
    assert "the blend beats the best single variant by +" in report.text()


def test_a_blend_with_noise_says_that_it_does_not_beat_the_best_variant():
    members, labels, folds = make_members([1.0])
    rng = np.random.default_rng(1)
    noise = Member("noise", rng.random(labels.shape).astype(np.float16))
    report = evaluate([*members, noise], labels, folds, seed=0)
    assert report.best_single == "noise0"
    assert not report.over_single.low > 0
    assert "the blend beats" not in report.text()


def test_one_variant_is_a_blend_of_weight_one():
    report = evaluate(*make_members([1.0]), seed=0)
    assert (report.weights, report.weights_are) == ((1.0,), "uniform")
    assert "nothing to blend" in report.text()


def test_the_nested_score_of_a_fold_is_blind_to_its_labels():
    members, labels, folds = make_members([1.0, 2.0, 2.0])
    report = evaluate(members, labels, folds, seed=0)
    shuffled = labels.copy()
    shuffled[folds == 1] = labels[folds == 1][::-1]
    other = evaluate(members, shuffled, folds, seed=0)
    assert report.weights_by_fold[1] == other.weights_by_fold[1]
    assert report.weights_by_fold[0] != other.weights_by_fold[0]


def test_nested_by_threshold_is_what_fitting_fold_by_fold_gives():
    members, labels, folds = make_members([1.0, 2.0])
    report = evaluate(members, labels, folds, seed=0)
    scores = np.zeros(len(labels))
    for fold, weights in enumerate(report.weights_by_fold):
        out = folds != fold
        thresholds = [best_threshold(m.probs[out], labels[out])[0] for m in members]
        inside = [m.probs[~out] for m in members]
        predicted = dense(inside, thresholds, labels[~out], np.array(weights))
        predicted = at_least_one(blended_probs(inside, np.array(weights)), predicted)
        scores[~out] = f2_per_image(predicted, labels[~out])
    assert report.scores["threshold"]["fitted"].nested == pytest.approx(scores.mean(), abs=1e-12)


def test_own_scores_are_those_of_the_decoders_on_blended_probabilities():
    members, labels, folds = make_members([1.0, 2.0, 1.5])
    report = evaluate(members, labels, folds, seed=0)
    even = blended_probs([m.probs for m in members], uniform(3))
    threshold = float(np.mean(report.thresholds))
    by_hand = f2_score(at_least_one(even, decode_threshold(even, threshold)), labels)
    assert report.scores["threshold"]["uniform"].own == pytest.approx(by_hand, abs=1e-4)  # rounding of sums
    if report.weights_are == "uniform":
        kind = report.scores[report.decoder.name]["uniform"].own
        assert f2_score(decode(even, report.decoder), labels) == pytest.approx(kind, abs=1e-4)


def test_the_ensemble_uses_what_has_the_best_nested_score():
    report = evaluate(*make_members([0.5, 2.0, 3.0]), seed=0)
    nested = [report.scores[d][kind].nested for d in report.scores for kind in ("fitted", "uniform")]
    assert report.nested == max(nested)
    if report.weights_are == "uniform":
        assert report.weights == tuple(uniform(3).tolist())


def test_the_same_seed_gives_the_same_report_as_json():
    one, two = (json.dumps(evaluate(*make_members([1.0, 2.0]), seed=4).to_dict()) for _ in range(2))
    assert one == two
    assert json.loads(one)["text"].startswith(" ")


def test_the_bootstrap_interval_is_the_normal_one_for_many_pictures():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 1, 2000)
    mean, low, high = bootstrap(differences, rng)
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert (low, high) == (pytest.approx(mean - half, abs=0.01), pytest.approx(mean + half, abs=0.01))


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[0.5, np.nan]], "bad has NaN"),
        ([[0.5, np.inf]], "bad has NaN or infinite"),
        ([[-0.5, 0.5]], r"bad has probabilities outside 0\.\.1"),
        ([[1.5, 0.5]], r"bad has probabilities outside 0\.\.1"),
        ([[0.5]], r"bad has predictions of shape \(1, 1\), labels are \(1, 2\)"),
    ],
)
def test_predictions_that_cannot_be_blended_are_refused_by_name(probs, message):
    good = Member("good", np.array([[0.5, 0.5]], np.float16))
    with pytest.raises(DataError, match=message):
        check_members([good, Member("bad", np.array(probs, np.float16))], np.array([[0, 1]], np.uint8))


def test_pictures_in_another_order_are_refused_by_name_and_row():
    probs = np.full((3, 1), 0.5, np.float16)
    members = [Member("a", probs, ["x", "y", "z"]), Member("b", probs, ["x", "z", "y"])]
    with pytest.raises(DataError, match="member b has its pictures in another order than a: row 1 is 'z'"):
        check_members(members, np.ones((3, 1), np.uint8))


def test_a_member_that_comes_twice_is_refused():
    members, labels, folds = make_members([1.0])
    with pytest.raises(DataError, match="noise0 comes twice"):
        evaluate(members * 2, labels, folds, seed=0)


def test_one_fold_is_too_few_for_a_nested_estimate():
    members, labels, folds = make_members([1.0])
    with pytest.raises(DataError, match="two folds"):
        evaluate(members, labels, np.zeros_like(folds), seed=0)


def test_variants_may_have_any_name():
    members, labels, folds = make_members([1.0, 2.0])
    renamed = [Member("fitted", members[0].probs), Member("uniform", members[1].probs)]
    plain = evaluate(members, labels, folds, seed=0)
    assert evaluate(renamed, labels, folds, seed=0).nested == plain.nested
