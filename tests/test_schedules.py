"""Learning rates over a trial."""

import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CyclicLR

from imet_ray.models.models import Tagger
from imet_ray.specs import Variant
from imet_ray.training.optimizers import build_optimizer
from imet_ray.training.schedules import SCHEDULES, build_schedule, cycle_ends

UPDATES = 10  # an epoch
HEAD = -1  # the group of the highest layer


def start(recipe, updates=UPDATES):
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(3)))
    layers.group_matcher = lambda coarse: lambda name: int(name.split(".")[0])
    optimizer = build_optimizer(Tagger(layers, (0.5,) * 3, (0.5,) * 3), recipe)
    return optimizer, build_schedule(optimizer, recipe, updates_per_epoch=updates)


def rates(scores=None, *, cut=None, group=HEAD, updates=UPDATES, **settings):
    """The rate of each update, with the epoch's scores heard after each epoch.

    Args:
        cut: after so many epochs everything begins anew, from the states alone.
        updates: per epoch.
    """
    recipe = Variant.model_validate(
        {"name": "a", "architecture": "x", "lr": 0.1, "epochs": 4, "optimizer": "sgd"} | settings
    )
    optimizer, schedule = start(recipe, updates)
    found = []
    for epoch in range(recipe.epochs):
        for update in range(epoch * updates, (epoch + 1) * updates):
            schedule.before_update(update)
            found.append(optimizer.param_groups[group]["lr"])
            optimizer.step()
        schedule.after_epoch((scores or [0.0] * recipe.epochs)[epoch])
        if schedule.spent:
            break
        if epoch + 1 == cut:
            written = io.BytesIO()
            torch.save([optimizer.state_dict(), schedule.state_dict()], written)
            written.seek(0)
            states = torch.load(written, weights_only=True)
            optimizer, schedule = start(recipe, updates)
            optimizer.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
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


def test_one_cycle_that_was_cut_after_its_first_update_goes_on_without_a_warning():
    assert rates(schedule="onecycle", updates=1, cut=1) == rates(schedule="onecycle", updates=1)


def test_the_rate_drops_after_epochs_without_a_better_score():
    found = rates([0.5, 0.5, 0.5, 0.5], schedule="plateau", plateau_patience=1, plateau_factor=0.2)
    assert found[29] == pytest.approx(0.1)
    assert found[30] == pytest.approx(0.02)


@pytest.mark.parametrize("schedule", ["step", "exponential", "polynomial"])
@pytest.mark.parametrize("warm_up", [{"warmup_epochs": 1.0}, {"warmup_steps": 10}])
def test_warm_up_is_given_in_epochs_or_in_updates(schedule, warm_up):
    needed = {"drop_every": 2} if schedule == "step" else {}
    found = rates(schedule=schedule, **warm_up, **needed)
    assert found[:10] == pytest.approx([0.001 + 0.0099 * update for update in range(10)])
    assert found[10] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "schedule", ["cosine", "onecycle", "plateau", "constant", "exponential", "polynomial"]
)
def test_a_warm_up_longer_than_the_trial_rises_to_its_end(schedule):
    found = rates(schedule=schedule, warmup_steps=5000)
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] <= 0.1


# What each schedule is, the slow obvious way: a function of the update, and of the settings.


def warm(update, settings, low):
    return low + (0.1 - low) * update / settings["warmup_steps"]


def in_cycle(update, settings):
    """The number of the cycle, and the share of it that is over."""
    length, begin, cycle = settings["cycle_epochs"], 0, 0
    while True:
        length = min(length, settings.get("cycle_longest") or length)
        cut = min(length, settings["epochs"] - begin)
        if update < (begin + cut) * UPDATES:
            return cycle, (update / UPDATES - begin) / cut
        begin, cycle = begin + cut, cycle + 1
        length = length * settings["cycle_times"] + settings["cycle_plus"]


def cosine(update, settings):
    if update < settings["warmup_steps"]:
        return warm(update, settings, 0.001)
    return 0.002 + 0.098 * (1 + math.cos(math.pi * in_cycle(update, settings)[1])) / 2


def step(update, settings):
    if update < settings["warmup_steps"]:
        return warm(update, settings, 0.001)
    return 0.1 * settings["drop_factor"] ** (update // UPDATES // settings["drop_every"])


def multistep(update, settings):
    if update < settings["warmup_steps"]:
        return warm(update, settings, 0.001)
    return 0.1 * settings["drop_factor"] ** sum(update >= UPDATES * epoch for epoch in settings["drop_at"])


def exponential(update, settings):
    if update < settings["warmup_steps"]:
        return warm(update, settings, 0.001)
    return 0.1 * settings["drop_factor"] ** ((update - settings["warmup_steps"]) / UPDATES)


def polynomial(update, settings):
    if update < settings["warmup_steps"]:
        return warm(update, settings, 0.001)
    whole = settings["epochs"] * UPDATES - settings["warmup_steps"]
    left = 1 - (update - settings["warmup_steps"]) / whole
    return 0.002 + 0.098 * left ** settings["power"]


epochs = st.integers(1, 9)
factor = st.floats(0.05, 0.95)
WARM = {"epochs": epochs, "warmup_steps": st.integers(0, 9)}
CYCLES = {
    "epochs": epochs,
    "cycle_epochs": st.integers(1, 4),
    "cycle_plus": st.integers(0, 2),
    "cycle_times": st.integers(1, 2),
    "cycle_longest": st.none() | st.integers(1, 5),
    "min_lr": st.just(0.002),
}
ORACLES = {
    "cosine": (cosine, CYCLES | WARM),
    "step": (step, WARM | {"drop_every": st.integers(1, 4), "drop_factor": factor}),
    "multistep": (
        multistep,
        WARM | {"drop_at": st.sets(st.integers(1, 9), min_size=1).map(sorted), "drop_factor": factor},
    ),
    "exponential": (exponential, WARM | {"drop_factor": factor}),
    "polynomial": (polynomial, WARM | {"power": st.floats(0.5, 3), "min_lr": st.just(0.002)}),
}


@pytest.mark.parametrize("schedule", ORACLES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_each_schedule_is_its_plain_formula(schedule, data):
    formula, drawn = ORACLES[schedule]
    given = data.draw(st.fixed_dictionaries(drawn))
    n = given["epochs"] * UPDATES
    assert rates(schedule=schedule, **given) == pytest.approx([formula(i, given) for i in range(n)])


@pytest.mark.parametrize("schedule", ["triangular", "triangular2", "exp_range"])
@settings(max_examples=25, deadline=None)
@given(epochs=st.integers(1, 9), length=st.integers(1, 9), factor=factor)
def test_cyclic_rates_are_those_of_torch(schedule, epochs, length, factor):
    whole = length * -(-epochs // length)  # in torch no cycle is cut
    extra = {"drop_factor": factor} if schedule == "exp_range" else {}
    found = rates(schedule=schedule, epochs=whole, cycle_epochs=length, min_lr=0.01, **extra)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = CyclicLR(
        optimizer,
        base_lr=0.01,
        max_lr=0.1,
        step_size_up=length * UPDATES // 2,
        mode=schedule,
        gamma=factor ** (1 / UPDATES),
        cycle_momentum=False,
    )
    expected = []
    for _ in range(whole * UPDATES):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()
    assert found == pytest.approx(expected)


def test_cycles_may_be_counted_in_place_of_their_length():
    assert rates(schedule="triangular", cycles=2) == rates(schedule="triangular", cycle_epochs=2)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"epochs": 20, "cycle_epochs": 3, "cycle_plus": 1, "cycle_longest": 5}, (3, 7, 12, 17, 20)),
        ({"epochs": 15, "cycle_epochs": 1, "cycle_times": 2, "schedule": "triangular"}, (1, 3, 7, 15)),
        ({"epochs": 10, "cycles": 3}, (3, 6, 10)),
        ({"epochs": 10, "cycles": 3, "warmup_epochs": 1.0}, (4, 7, 10)),
        ({"epochs": 10}, (10,)),
        ({"epochs": 10, "schedule": "plateau"}, ()),
    ],
)
def test_it_is_known_with_which_epochs_cycles_end(settings, ends):
    assert cycle_ends(Variant.model_validate({"name": "a", "architecture": "x"} | settings)) == ends


@given(
    settings=st.fixed_dictionaries({key: one for key, one in CYCLES.items() if key != "min_lr"}),
    schedule=st.sampled_from(["cosine", "triangular"]),
)
@settings(max_examples=50, deadline=None)
def test_the_rate_is_at_its_least_where_a_cycle_is_said_to_end(settings, schedule):
    found = rates(schedule=schedule, **settings)
    recipe = Variant.model_validate({"name": "a", "architecture": "x", "schedule": schedule} | settings)
    ends = cycle_ends(recipe)
    assert ends[-1] == settings["epochs"]
    for begin, end in itertools.pairwise((0, *ends)):
        falling = found[begin * UPDATES + (end - begin) * UPDATES // 2 : end * UPDATES]
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] < 0.2 * 0.1 + 0.001


ALL = {
    "cosine": CYCLES | WARM,
    "onecycle": WARM,
    "plateau": WARM
    | {
        "plateau_factor": factor,
        "plateau_patience": st.integers(0, 2),
        "plateau_improvement": st.floats(0, 0.2),
        "min_lr": st.just(0.002),
    },
    "constant": WARM,
    "triangular": CYCLES,
    "triangular2": CYCLES,
    "exp_range": CYCLES | {"drop_factor": factor},
} | {name: drawn for name, (_, drawn) in ORACLES.items() if name != "cosine"}


def test_all_schedules_are_interrupted_below():
    assert ALL.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("schedule", ALL)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_interrupted_schedule_goes_on_with_the_same_rates_to_the_last_bit(schedule, data):
    given = data.draw(st.fixed_dictionaries(ALL[schedule]))
    scores = data.draw(st.lists(st.floats(0, 1), min_size=given["epochs"], max_size=given["epochs"]))
    cut = data.draw(st.integers(1, given["epochs"]))
    layers = {"layer_decay": data.draw(st.none() | st.just(0.7))}
    through = rates(scores, schedule=schedule, **given, **layers)
    assert rates(scores, cut=cut, schedule=schedule, **given, **layers) == through


@pytest.mark.parametrize("schedule", ALL)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_rates_that_decay_by_layer_keep_their_proportion(schedule, data):
    given = data.draw(st.fixed_dictionaries(ALL[schedule]))
    scores = [0.0] * given["epochs"]
    plain = rates(scores, schedule=schedule, **given)
    assert rates(scores, schedule=schedule, **given, layer_decay=0.7) == pytest.approx(plain)
    lowest = rates(scores, group=0, schedule=schedule, **given, layer_decay=0.7)
    assert lowest == pytest.approx([lowest[0] / plain[0] * rate for rate in plain])
    assert lowest[0] < plain[0]


def test_training_ends_when_the_rate_is_spent():
    """As in 2019: factor 0.2, patience 4, improvements of 0.001, down to 1e-7."""
    scores = [0.5 + 0.0009 * (epoch % 2) for epoch in range(100)]
    found = rates(
        scores,
        schedule="plateau",
        epochs=100,
        lr=1e-4,
        plateau_factor=0.2,
        plateau_patience=4,
        plateau_improvement=0.001,
        min_lr=1e-7,
    )
    # 1e-4, 2e-5, 4e-6, 8e-7, 1.6e-7: the first lasts from the best epoch on, each five epochs; then 3.2e-8
    assert len(found) == UPDATES * (1 + 5 * 5)
    assert found[-1] == pytest.approx(1.6e-7)


def test_a_low_rate_of_the_warm_up_ends_nothing():
    found = rates(schedule="plateau", epochs=6, warmup_epochs=3.0, min_lr=0.05, plateau_patience=5)
    assert len(found) == 6 * UPDATES


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_have_their_rate_and_leave_biases_undecayed(name):
    recipe = Variant(name="a", architecture="x", optimizer=name, lr=0.2, weight_decay=0.1)
    groups = build_optimizer(torch.nn.Linear(2, 2), recipe).param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    assert {group["lr"] for group in groups} == {0.2}
