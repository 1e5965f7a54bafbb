"""Learning rates over a trial."""

import pytest
import torch

from imet_ray.specs import Variant
from imet_ray.training.optimizers import build_optimizer
from imet_ray.training.schedules import build_schedule

UPDATES = 10  # an epoch


def rates(scores=None, **settings):
    """The rate of each update, with the epoch's scores heard after each epoch."""
    recipe = Variant.model_validate(
        {"name": "a", "architecture": "x", "lr": 0.1, "epochs": 4, "optimizer": "sgd"} | settings
    )
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, updates_per_epoch=UPDATES)
    found = []
    for epoch in range(recipe.epochs):
        for update in range(epoch * UPDATES, (epoch + 1) * UPDATES):
            schedule.before_update(update)
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        schedule.after_epoch((scores or [0.0] * recipe.epochs)[epoch])
    return found


def test_cosine_falls_from_the_rate_to_a_hundredth():
    found = rates(schedule="cosine")
    assert found[0] == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(0.001, abs=0.001)


def test_cosine_restarts_at_the_full_rate():
    found = rates(schedule="cosine", cycles=2)
    assert found[20] == pytest.approx(0.1)
    assert found[19] < 0.002


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_warm_up_rises_to_the_rate(schedule):
    found = rates(schedule=schedule, warmup_epochs=1.0)
    assert found[:10] == sorted(found[:10])
    assert found[0] < 0.02
    assert found[10] == pytest.approx(0.1)


def test_one_cycle_rises_and_falls():
    found = rates(schedule="onecycle")
    peak = found.index(max(found))
    assert 8 <= peak <= 14
    assert found[-1] < found[0] < found[peak] == pytest.approx(0.1, rel=0.02)


def test_the_rate_drops_after_epochs_without_a_better_score():
    found = rates([0.5, 0.5, 0.5, 0.5], schedule="plateau", plateau_patience=1, plateau_factor=0.2)
    assert found[29] == pytest.approx(0.1)
    assert found[30] == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_have_their_rate_and_leave_biases_undecayed(name):
    recipe = Variant(name="a", architecture="x", optimizer=name, lr=0.2, weight_decay=0.1)
    groups = build_optimizer(torch.nn.Linear(2, 2), recipe).param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    assert {group["lr"] for group in groups} == {0.2}
