"""The blend's figures: what is drawn is what the findings say."""

import json

import numpy as np
import pytest

from imet_ray.blending.evaluate import evaluate
from imet_ray.blending.members import Member
from imet_ray.prediction.pooling import SCALES
from imet_ray.reporting import blend_figures as figures
from imet_ray.reporting.html import drawing, shortened

DRAWN = (*(draw for _, drawings in figures.SECTIONS for _, draw in drawings), figures.budget)


def found(m=3, *, groups=True, decoders=None, scale=None) -> dict:
    """The findings on small generated members, as `ensemble.json` keeps them."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 6)) < 0.4).astype(np.uint8)
    ids = tuple(map(str, range(60)))
    members = []
    for i in range(m):
        noise = rng.random(labels.shape)
        probs = np.clip(0.4 * labels + 0.6 * noise, 0, 1).astype(np.float32)
        members.append(Member(f"m{i}", probs, ids))
    of_label = ("a", "b") * 3 if groups else ()
    report = evaluate(
        members,
        labels,
        np.arange(60) % 3,
        seed=0,
        groups=of_label,
        methods=["greedy", "nelder-mead"],
        decoders=decoders,
        scale=scale,
    )
    return report.to_dict()


@pytest.fixture(scope="module")
def report() -> dict:
    return found()


def ticks(axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def dots(axes, *, hollow=False) -> list[tuple[float, float]]:
    """Positions of the single dots: hollow or full."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if len(line.get_xdata()) == 1 and (line.get_fillstyle() == "none") == hollow
    ]


def test_each_method_and_decoder_has_its_nested_and_its_own_score(report):
    axes = figures.scores(report).axes[0]
    blends = [row for row in report["rows"] if not row["is_single"]]
    assert ticks(axes) == ["uniform", "greedy", "nelder-mead"]
    assert sorted(x for x, _ in dots(axes)) == pytest.approx(sorted(row["nested"] for row in blends))
    ringed = report["chosen"]["nested"]
    hollow = sorted([row["own"] for row in blends] + [ringed])
    assert sorted(x for x, _ in dots(axes, hollow=True)) == pytest.approx(hollow)
    assert len({y for _, y in dots(axes)}) == len(blends)


def test_an_interval_drawn_from_the_best_members_score_holds_the_nested_score(report):
    axes = figures.scores(report).axes[0]
    intervals = [collection.get_segments()[0] for collection in axes.collections]
    for (low, y), (high, _) in intervals:
        (nested,) = [x for x, place in dots(axes) if place == pytest.approx(y)]
        assert low - 1e-9 <= nested <= high + 1e-9


def test_the_gain_over_uniform_weights_leaves_uniform_out(report):
    axes = figures.gains(report).axes[0]
    rows = [row for row in report["rows"] if not row["is_single"] and row["method"] != "uniform"]
    assert ticks(axes) == ["greedy", "nelder-mead"]
    assert sorted(x for x, _ in dots(axes)) == pytest.approx(sorted(r["over_uniform"]["mean"] for r in rows))


def test_level_2_stands_beside_the_methods(report):
    level2 = {"kind": "logistic", "decoder": "threshold", "own": 0.7, "nested": 0.5}
    axes = figures.scores(report | {"level2": [level2]}).axes[0]
    assert ticks(axes)[-1] == "level 2: logistic"
    assert 0.5 in [x for x, _ in dots(axes)]


def test_weights_have_a_bar_a_member_and_dots_a_fold_and_the_score_without_each(report):
    left, right = figures.weights(report).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(report["chosen"]["weights"])
    drawn = [list(line.get_xdata()) for line in left.lines]
    assert drawn == [list(by_fold) for by_fold in report["chosen"]["weights_by_fold"]]
    without = [worth["without"] for worth in report["worth"]]
    assert [x for x, _ in dots(right)] == pytest.approx(without)


def test_small_matrices_have_numbers_and_large_ones_a_scale(report):
    texts = [text.get_text() for text in figures.correlation(report).axes[0].texts]
    assert texts[0] == "1.00"
    assert texts[1] == f"{report['correlation'][0][1]:.2f}".replace("0.", ".")
    assert len(texts) == 9
    many = {"names": [f"m{i}" for i in range(20)], "correlation": np.eye(20).tolist()}
    figure = figures.correlation(many)
    assert not figure.axes[0].texts
    assert len(figure.axes) == 2


def upright(axes) -> list[float]:
    """Where vertical lines stand."""
    lines = [line.get_xdata() for line in axes.lines]
    return [float(x[0]) for x in lines if len(x) == 2 and x[0] == x[1]]


@pytest.mark.parametrize("scale", SCALES)
def test_the_threshold_that_decides_is_marked(scale):
    report = found(decoders=["threshold"], scale=scale)
    axes = figures.threshold_curve(report).axes[0]
    assert upright(axes) == pytest.approx([report["decoder"]["threshold"]], abs=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_threshold_of_each_group_is_marked(scale):
    report = found(decoders=["group-thresholds"], scale=scale)
    axes = figures.threshold_curve(report).axes[0]
    assert upright(axes) == pytest.approx(report["decoder"]["label_thresholds"][:2], abs=1e-6)
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_expected_f2_has_no_threshold_to_mark():
    axes = figures.threshold_curve(found(decoders=["expected-f2"])).axes[0]
    assert upright(axes) == []
    assert len(axes.lines) == 2


def test_greedys_curve_is_drawn_once_where_decoders_share_it(report):
    curves = {tuple(row["curve"]) for row in report["rows"] if row["curve"]}
    lines = [line for line in figures.greedy(report).axes[0].lines if len(line.get_xdata()) > 1]
    assert {tuple(line.get_ydata()) for line in lines} == curves
    assert len(lines) == len(curves)


def test_a_budget_is_steps_up_to_its_limit():
    curve = [
        {"seconds": 30.0, "score": 0.6, "members": ["a", "b"]},
        {"seconds": 10.0, "score": 0.5, "members": ["a"]},
    ]
    axes = figures.budget({"budget": {"curve": curve, "limit_s": 40.0}}).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [10, 30, 40]
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.6, 0.6]
    assert upright(axes) == [40]
    assert figures.budget({"budget": {"curve": curve, "limit_s": None}}).axes[0].get_legend() is None


@pytest.mark.parametrize("draw", DRAWN)
def test_what_lacks_its_numbers_is_not_drawn(draw):
    assert draw({}) is None
    assert draw({"text": "of an earlier version", "nested": 0.5, "budget": None}) is None


def test_one_member_has_scores_and_a_threshold_but_nothing_to_compare():
    report = found(1, groups=False)
    drawn = [draw for draw in DRAWN if draw(report) is not None]
    assert drawn == [figures.scores, figures.threshold_curve]


def test_the_weights_of_an_earlier_version_are_drawn():
    earlier = {"names": ["a", "b"], "weights": [0.4, 0.6], "weights_by_fold": [[0.5, 0.5]]}
    assert len(figures.weights(earlier).axes) == 1


@pytest.mark.parametrize("name", ["$x_1$ ^ $", "日本語", "<b>&", "a" * 300])
def test_any_name_can_be_drawn(report, name):
    known = report["names"][0]
    renamed = json.loads(json.dumps(report).replace(json.dumps(known), json.dumps(name)))
    (row,) = [r for r in report["rows"] if (r["method"], r["decoder"]) == ("uniform", "group-thresholds")]
    renamed |= {"groups": [name, "b"], "chosen": row}
    for draw in DRAWN[:-1]:
        assert drawing(draw(renamed), name).startswith("<img ")


def test_a_long_name_loses_its_middle():
    assert shortened("efficientnet-light-288", 11) == "effic…t-288"
    assert shortened("eleven char", 11) == "eleven char"
