"""The blend's figures: what is drawn is what the findings say."""

import base64
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from blends import evaluate
from matplotlib.figure import Figure

from imet_ray.blending.members import Member
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES
from imet_ray.reporting.pages import Section, draw_sections, shorten
from imet_ray.reporting.report_data import ReportData
from imet_ray.reporting.report_figures import FIGURES

DRAWN = list(FIGURES)[:8]  # those of the blend


def section(name, report) -> Section | None:
    """What stands under that name."""
    return FIGURES[name](ReportData(METRICS["f2"], report))


def drawn(name, report) -> Figure:
    """The figure of that name."""
    return section(name, report).figure


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
    axes = drawn("methods", report).axes[0]
    blends = [row for row in report["rows"] if not row["is_single"]]
    assert ticks(axes) == ["uniform", "greedy", "nelder-mead"]
    assert sorted(x for x, _ in dots(axes)) == pytest.approx(sorted(row["nested"] for row in blends))
    ringed = report["chosen"]["nested"]
    hollow = sorted([row["own"] for row in blends] + [ringed])
    assert sorted(x for x, _ in dots(axes, hollow=True)) == pytest.approx(hollow)
    assert len({y for _, y in dots(axes)}) == len(blends)


def test_an_interval_drawn_from_the_best_members_score_holds_the_nested_score(report):
    axes = drawn("methods", report).axes[0]
    intervals = [collection.get_segments()[0] for collection in axes.collections]
    for (low, y), (high, _) in intervals:
        (nested,) = [x for x, place in dots(axes) if place == pytest.approx(y)]
        assert low - 1e-9 <= nested <= high + 1e-9


def test_the_first_figure_has_the_blend_and_each_member_under_its_better_decoder(report):
    axes = drawn("blend", report).axes[0]
    singles = [row for row in report["rows"] if row["is_single"]]
    best = {
        row["method"]: max(r["nested"] for r in singles if r["method"] == row["method"]) for row in singles
    }
    names = sorted(best, key=lambda name: -best[name])
    assert ticks(axes) == ["the blend", *names]
    assert dots(axes) == [(pytest.approx(report["nested"]), 0)]
    (members,) = [
        line for line in axes.lines if len(line.get_xdata()) == len(names) and line.get_marker() == "o"
    ]
    assert members.get_xdata() == pytest.approx([best[name] for name in names])


def test_the_table_of_methods_says_what_the_terminals_does(report):
    table = section("methods", report).table
    assert [row[:4] for row in table.rows] == [
        (
            row["method"] + " (weights of the threshold)" * row["transferred"],
            row["decoder"],
            row["own"],
            row["nested"],
        )
        for row in report["rows"]
    ]


def test_the_gain_over_uniform_weights_leaves_uniform_out(report):
    axes = drawn("gains", report).axes[0]
    rows = [row for row in report["rows"] if not row["is_single"] and row["method"] != "uniform"]
    assert ticks(axes) == ["greedy", "nelder-mead"]
    assert sorted(x for x, _ in dots(axes)) == pytest.approx(sorted(r["over_uniform"]["mean"] for r in rows))


def test_level_2_stands_beside_the_methods(report):
    gain = {"mean": 0.01, "low": 0.0, "high": 0.02}
    level2 = {"kind": "logistic", "decoder": "threshold", "own": 0.7, "nested": 0.5, "over_best": gain}
    axes = drawn("methods", report | {"level2": [level2]}).axes[0]
    assert ticks(axes)[-1] == "level 2: logistic"
    assert 0.5 in [x for x, _ in dots(axes)]


def test_level_2_that_is_used_is_ringed_and_stands_for_the_blend(report):
    gain = {"mean": 0.01, "low": 0.0, "high": 0.02}
    level2 = {"kind": "net", "decoder": "threshold", "own": 0.97, "nested": 0.96, "used": True}
    level2 |= {"over_best": gain, "over_uniform": gain | {"mean": 0.03}, "over_single": gain}
    changed = report | {"level2": [level2 | {"used": False, "nested": 0.5}, level2], "nested": 0.96}
    found = section("methods", changed)
    ringed = [line for line in found.figure.axes[0].lines if line.get_markersize() == 12]
    assert [line.get_xdata()[0] for line in ringed] == [0.96]
    assert [row[0] for row in found.table.rows[-2:]] == ["level 2: net", "level 2: net (used)"]
    assert found.table.rows[-1][4:] == (
        "+0.0300 [+0.0000, +0.0200]",
        "+0.0100 [+0.0000, +0.0200] (over the best blend)",
    )
    assert 0.96 in [x for x, _ in dots(drawn("blend_and_members", changed).axes[0])]
    assert drawn("weights", changed).axes[1].lines[-1].get_xdata()[0] == report["chosen"]["nested"]


def test_weights_have_a_bar_per_member_and_dots_per_fold_and_the_score_without_each(report):
    left, right = drawn("weights", report).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(report["chosen"]["weights"])
    by_fold = [list(line.get_xdata()) for line in left.lines]
    assert by_fold == [list(fitted) for fitted in report["chosen"]["weights_by_fold"]]
    without = [worth["without"] for worth in report["worth"]]
    assert [x for x, _ in dots(right)] == pytest.approx(without)


def test_small_matrices_have_numbers_and_large_ones_a_scale(report):
    texts = [text.get_text() for text in drawn("correlation", report).axes[0].texts]
    assert texts[0] == "1.00"
    assert texts[1] == f"{report['correlation'][0][1]:.2f}".replace("0.", ".")
    assert len(texts) == 9
    many = {"names": [f"m{i}" for i in range(20)], "correlation": np.eye(20).tolist()}
    figure = drawn("correlation", many)
    assert not figure.axes[0].texts
    assert len(figure.axes) == 2


def upright(axes) -> list[float]:
    """Where vertical lines stand."""
    lines = [line.get_xdata() for line in axes.lines]
    return [float(x[0]) for x in lines if len(x) == 2 and x[0] == x[1]]


@pytest.mark.parametrize("scale", SCALES)
def test_the_threshold_that_decides_is_marked(scale):
    report = found(decoders=["threshold"], scale=scale)
    axes = drawn("threshold", report).axes[0]
    assert upright(axes) == pytest.approx([report["decoder"]["threshold"]], abs=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_threshold_of_each_group_is_marked(scale):
    report = found(decoders=["group-thresholds"], scale=scale)
    axes = drawn("threshold", report).axes[0]
    assert upright(axes) == pytest.approx(report["decoder"]["label_thresholds"][:2], abs=1e-6)
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_expected_f2_has_no_threshold_to_mark():
    axes = drawn("threshold", found(decoders=["expected-f2"])).axes[0]
    assert upright(axes) == []
    assert len(axes.lines) == 2


def test_greedys_curve_is_drawn_once_where_decoders_share_it(report):
    curves = {tuple(row["curve"]) for row in report["rows"] if row["curve"]}
    lines = [line for line in drawn("greedy", report).axes[0].lines if len(line.get_xdata()) > 1]
    assert {tuple(line.get_ydata()) for line in lines} == curves
    assert len(lines) == len(curves)


def test_a_budget_is_steps_up_to_its_limit():
    curve = [
        {"seconds": 30.0, "score": 0.6, "members": ["a", "b"]},
        {"seconds": 10.0, "score": 0.5, "members": ["a"]},
    ]
    axes = drawn("budget", {"budget": {"curve": curve, "limit_s": 40.0}}).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [10, 30, 40]
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.6, 0.6]
    assert upright(axes) == [40]
    assert drawn("budget", {"budget": {"curve": curve, "limit_s": None}}).axes[0].get_legend() is None


@pytest.mark.parametrize("name", FIGURES)
def test_what_lacks_its_numbers_is_not_drawn(name):
    assert section(name, {}) is None
    assert section(name, {"text": "of an earlier version", "nested": 0.5, "budget": None}) is None


def test_one_member_has_scores_and_a_threshold_but_nothing_to_compare():
    report = found(1, groups=False)
    assert [name for name in DRAWN if section(name, report) is not None] == ["methods", "threshold"]


def test_the_weights_of_an_earlier_version_are_drawn():
    earlier = {"names": ["a", "b"], "weights": [0.4, 0.6], "weights_by_fold": [[0.5, 0.5]]}
    assert len(drawn("weights", earlier).axes) == 1


@pytest.mark.parametrize("name", ["$x_1$ ^ $", "日本語", "<script>&", "a" * 300])
def test_any_name_can_be_drawn(report, name):
    known = report["names"][0]
    renamed = json.loads(json.dumps(report).replace(json.dumps(known), json.dumps(name)))
    (row,) = [r for r in report["rows"] if (r["method"], r["decoder"]) == ("uniform", "group-thresholds")]
    renamed |= {"groups": [name, "b"], "chosen": row}
    shown = draw_sections(FIGURES, ReportData(METRICS["f2"], renamed))
    assert [one["name"] for one in shown] == DRAWN[:-1]
    for one in shown:
        tree = ElementTree.fromstring(base64.b64decode(one["picture"].partition(",")[2]))
        texts = [text for element in tree.iter() if (text := element.text)]
        assert "script" not in {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert not any("mathdefault" in text for text in texts)


def test_a_long_name_loses_its_middle():
    assert shorten("efficientnet-light-288", 11) == "effic…t-288"
    assert shorten("eleven char", 11) == "eleven char"
