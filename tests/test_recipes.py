"""What `benchmarks.recipes` compares: one thing at a time, picture by picture, at equal epochs."""

import numpy as np
import pytest
import yaml

from benchmarks.recipes import BASE, DECODERS, PARENTS, PEERS, SPACE, compared, part_of, verdict
from imet_ray.blending.cross_fit import Gain
from imet_ray.space_file import read_space
from imet_ray.training.recipe import check_recipe


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(0.01, 0.03), (0.002, 0.02)], "gains"),
        ([(-0.03, -0.01), (-0.02, -0.001)], "loses"),
        ([(-0.01, 0.02), (-0.001, 0.03)], "nothing beyond noise"),
        ([(0.001, 0.02), (-0.001, 0.03)], "by one decoder"),
    ],
)
def test_a_recipe_gains_where_both_intervals_are_above_zero(intervals, said):
    assert verdict([Gain((low + high) / 2, low, high) for low, high in intervals]) == said


def test_recipes_are_compared_on_the_same_pictures():
    hard = np.random.default_rng(0).random(400)  # pictures differ far more than recipes do
    scores = {
        BASE: dict.fromkeys(DECODERS, hard),
        "better": dict.fromkeys(DECODERS, hard + 0.01),
    }
    row = compared("better", BASE, scores, 12.0)
    assert row.gain[DECODERS[0]].low == pytest.approx(0.01)
    assert row.gain[DECODERS[0]].high == pytest.approx(0.01)
    assert row.score[DECODERS[1]] == pytest.approx(hard.mean() + 0.01)
    assert "gains" in row.text()


def test_all_recipes_of_the_benchmark_have_as_many_epochs_as_the_base():
    space = read_space(SPACE, check=check_recipe)
    variants = {variant.name: variant for variant in space.variants}
    assert not any(space.ranges.values())  # nothing is searched
    assert {*PEERS, *(peer for peers in PEERS.values() for peer in peers), BASE, *PARENTS} <= variants.keys()
    for name, variant in variants.items():
        epochs = variant.epochs + (variants[variant.parent].epochs if variant.parent else 0)
        assert epochs == variants[BASE].epochs or name in PARENTS, name


def test_what_is_trained_again_comes_with_its_parents_and_another_seed(tmp_path):
    file = tmp_path / "again.yml"
    file.write_text(yaml.safe_dump(part_of(SPACE, [BASE, "grown", "large"], seed=7, run="other")))
    space = read_space(file, check=check_recipe)
    assert {variant.name for variant in space.variants} == {BASE, "half", "grown", "large"}
    assert space.seed == 7
    assert yaml.safe_load(file.read_text())["base"] == yaml.safe_load(SPACE.read_text())["base"]


def test_a_recipe_that_nobody_knows_is_not_trained_again():
    with pytest.raises(SystemExit, match="no recipe 'unknown'"):
        part_of(SPACE, ["unknown"], seed=1, run="other")
