"""Samplers: which pictures an epoch shows, how often, and that nothing else depends on it."""

import doctest
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interrupted_trial import train_until
from pydantic import ValidationError
from safetensors.torch import load_file

from imet_ray.data import samplers
from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.loader import TrainDataset, train_batches
from imet_ray.data.samplers import epoch_order, rarity, repeats
from imet_ray.errors import ConfigError
from imet_ray.space_file import read_space
from imet_ray.specs import Sampler, Variant
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial

SAMPLERS = [None, Sampler(rare=0.5), Sampler(oversample=9)]
ROWS = np.arange(1, 24)  # of 24 pictures: row 0 is held out
LABELS = np.zeros((24, 4), np.uint8)
LABELS[:, 0] = 1
LABELS[12:16, 1] = LABELS[2, 2] = LABELS[0, 3] = 1  # label 2 has one training picture, label 3 none
TABLES = st.integers(1, 25).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=n, max_size=n)
)


PICTURES = np.random.default_rng(0).integers(0, 256, (24, 40, 40, 3), np.uint8)


@pytest.fixture
def make():
    def _make(sampler, rows=ROWS, labels=LABELS):
        return TrainDataset(PICTURES, rows, labels, TrainTransform("hard", "random", 32), 5, sampler=sampler)

    return _make


def shown(dataset, epoch=0):
    """The rows of an epoch in its order."""
    dataset.set_epoch(epoch)
    return dataset.rows[dataset.order() % len(dataset.rows)]


def test_the_examples_of_the_docs_run():
    assert doctest.testmod(samplers).failed == 0


def test_a_picture_is_as_rare_as_its_rarest_label(make):
    labels = LABELS[ROWS]
    oracle = [len(labels) / min(labels[:, c].sum() for c in np.flatnonzero(row)) for row in labels]
    assert rarity(labels).tolist() == oracle


def test_to_have_no_label_counts_as_a_label():
    assert rarity(np.array([[1], [1], [1], [0]])).tolist() == [4 / 3, 4 / 3, 4 / 3, 4]


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_pictures_are_drawn_by_the_power_of_their_rarity(power):
    order = epoch_order(Sampler(rare=power), LABELS, ROWS)
    counts = np.zeros(len(ROWS))
    for seed in range(400):
        np.add.at(counts, order.draw(np.random.default_rng(seed)) % len(ROWS), 1)
    expected = rarity(LABELS[ROWS]) ** power
    expected *= counts.sum() / expected.sum()
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


@given(TABLES, st.integers(0, 12))
def test_oversampled_each_label_comes_often_enough_and_no_picture_is_left_out(table, least):
    labels = np.array(table)
    found = repeats(labels, least)
    assert found.min() >= 1
    comes = found @ labels
    assert (comes >= np.where(labels.any(0), np.maximum(least, labels.sum(0)), 0)).all()
    for label in np.flatnonzero(
        labels.any(0)
    ):  # no picture is shown more often than its rarest label asks for
        assert found[labels[:, label] == 1].max() <= max(1, least)
    assert found[~labels.any(1)].tolist() == [1] * int((~labels.any(1)).sum())


def test_an_oversampled_epoch_is_longer_and_has_each_copy(make):
    dataset = make(Sampler(oversample=9))
    assert len(dataset) == len(dataset.order()) == repeats(LABELS[ROWS], 9).sum()
    counts = Counter(shown(dataset).tolist())
    assert counts[2] == 9
    assert sum(counts[row] for row in range(12, 16)) == 9
    assert min(counts.values()) == 1


def test_a_drawn_epoch_is_as_long_as_one_without_a_sampler(make):
    assert len(make(Sampler(rare=1.0))) == len(make(Sampler(rare=1.0)).order()) == len(ROWS)


def test_only_labels_of_training_pictures_count(make):
    changed = LABELS.copy()
    changed[0] = [0, 1, 1, 0]  # the held-out picture
    for sampler in SAMPLERS:
        assert np.array_equal(shown(make(sampler)), shown(make(sampler, labels=changed)))


@pytest.mark.parametrize("off", [Sampler(), Sampler(rare=0.0, oversample=0), Sampler(oversample=1)])
def test_a_sampler_that_is_off_changes_no_order_and_no_pixel(make, off):
    without, dataset = make(None), make(off)
    for epoch in (0, 3):
        assert np.array_equal(shown(dataset, epoch), shown(without, epoch))
        order = np.random.default_rng((5, epoch)).permutation(len(ROWS))
        assert np.array_equal(without.order(), order)  # as it was before there were samplers
        a, b = (data.__getitems__(data.order()[:5]) for data in (without, dataset))
        assert torch.equal(a[0], b[0])


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_a_picture_that_is_shown_again_looks_different_and_the_first_time_as_without_a_sampler(make, sampler):
    dataset, without = make(sampler), make(None)
    order = dataset.order()
    assert len(set(order.tolist())) == len(order)
    n = len(ROWS)
    (again, *_) = order[order >= n].tolist()
    times, place = divmod(again, n)
    assert {place + k * n for k in range(times)} <= set(order.tolist())  # no copy without those before it
    assert not torch.equal(dataset[again][0], dataset[place][0])
    assert torch.equal(dataset[again][1], dataset[place][1])
    assert torch.equal(dataset[place][0], without[place][0])


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_epochs_differ_and_one_that_is_begun_again_does_not(make, sampler):
    dataset = make(sampler)
    first = shown(dataset, 1)
    assert not np.array_equal(first, shown(dataset, 2))
    assert np.array_equal(first, shown(dataset, 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_team_shares_the_batches_that_one_process_has(make, sampler):
    dataset = make(sampler)
    whole = list(train_batches(dataset, batch_size=6, workers=0))
    parts = [list(train_batches(make(sampler), batch_size=6, workers=0, rank=r, size=2)) for r in (0, 1)]
    for (images, targets), *of_ranks in zip(whole, *parts, strict=True):
        assert torch.equal(images, torch.cat([part[0] for part in of_ranks]))
        assert torch.equal(targets, torch.cat([part[1] for part in of_ranks]))


@pytest.mark.parametrize("sampler", [{"rare": 0.5}, {"oversample": 30}])
def test_an_interrupted_trial_with_a_sampler_ends_with_the_same_weights(
    tiny_data, make_spec, tmp_path, sampler
):
    spec = make_spec(sampler=sampler, epochs=2)

    through, broken = (RunDirectory(tmp_path / name).trial(spec.trial_id) for name in ("a", "b"))
    train_trial(spec, tiny_data, through, device=torch.device("cpu"))
    train_until(1, spec, tiny_data, broken)
    train_trial(spec, tiny_data, broken, device=torch.device("cpu"))
    one, two = load_file(through.best), load_file(broken.best)
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = [[row["train_loss"] for row in read_json_lines(trial.metrics)] for trial in (through, broken)]
    assert losses[0] == losses[1]


def test_a_sampler_is_part_of_a_trials_id_and_none_leaves_it_as_it_was(make_spec):
    ids = [make_spec(**s).trial_id for s in ({}, {"sampler": None}, {"sampler": {"rare": 0.5}})]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({"rare": -0.5}, "greater than or equal to 0"),
        ({"rare": 0.5, "oversample": 20}, "choose one, got rare=0.5 and oversample=20"),
        ({"oversample": 2.5}, "valid integer"),
        ({"oversample": 10**9}, "less than or equal to 10000"),
        ({"rear": 0.5}, "not permitted"),
        ("rare", "Sampler"),
    ],
)
def test_a_sampler_that_cannot_be_meant_is_refused(sampler, expected):
    with pytest.raises(ValidationError, match=expected):
        Variant.model_validate({"name": "a", "architecture": "test_resnet", "sampler": sampler})


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("{rear: 0.5}", "line 1: unknown key 'rear': did you mean 'rare'?"),
        ("{rare: -1}", "line 1: sampler.rare must be greater than or equal to 0, got -1"),
        ("{rare: 0.5, oversample: 9}", "line 1: sampler: rare draws pictures and oversample repeats them"),
    ],
)
def test_a_mistake_in_a_space_is_one_line_that_names_the_sampler(tmp_path, sampler, expected):
    space = tmp_path / "space.yml"
    space.write_text(f"variants: [{{name: a, architecture: test_resnet, sampler: {sampler}}}]\n")
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        read_space(space, check=check_recipe)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sampler_of_a_space_arrives_in_its_variants(tmp_path):
    space = tmp_path / "space.yml"
    space.write_text("base: {architecture: test_resnet, sampler: {rare: 1}}\nvariants: [{name: a}]\n")
    assert read_space(space, check=check_recipe).variants[0].sampler == Sampler(rare=1.0)
