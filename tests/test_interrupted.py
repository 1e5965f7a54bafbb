"""A trial that is interrupted after any epoch ends with the same weights: whatever its settings, bit for bit.

The model has a few hundred parameters, with batch norm and dropout. Schedules alone: `test_schedules.py`.
"""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from interrupted_trial import train_until
from safetensors.torch import load_file

from imet_ray.models.models import Tagger
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training import trainer
from imet_ray.training.kept_weights import KEEPS
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial

CPU = torch.device("cpu")
SHARE = st.floats(0.0, 0.9)
AVERAGES = {
    "none": st.just({}),
    "ema": st.fixed_dictionaries({"ema_decay": st.floats(0.1, 0.99)}),
    "swa": st.fixed_dictionaries({"swa_start": SHARE}, optional={"swa_lr": st.just(0.01)}),
}
CYCLIC = st.one_of(  # of at least two cycles in two epochs
    st.fixed_dictionaries({"cycles": st.just(2)}),
    st.fixed_dictionaries({"cycle_epochs": st.just(1), "cycle_plus": st.integers(0, 1)}),
)
SCHEDULES = st.one_of(
    st.sampled_from([{"schedule": "constant"}, {"schedule": "onecycle"}, {"schedule": "triangular2"}]),
    CYCLIC,
)
PLATEAU = st.fixed_dictionaries(
    {
        "schedule": st.just("plateau"),
        "plateau_patience": st.integers(0, 1),
        "plateau_improvement": st.floats(0, 0.1),
    }
)
KEPT = {
    "best": SCHEDULES,
    "last": SCHEDULES,
    "cycles": CYCLIC,
    "soup": st.tuples(
        SCHEDULES,
        st.fixed_dictionaries(
            {"soup": st.sampled_from(["greedy", "uniform"]), "soup_epochs": st.integers(2, 3)}
        ),
    ).map(lambda both: both[0] | both[1]),
}
SAMPLERS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"rare": st.floats(0.1, 2)}),
    st.fixed_dictionaries({"oversample": st.integers(2, 12)}),
)
OTHERS = st.fixed_dictionaries(
    {"epochs": st.integers(2, 4), "batch_size": st.integers(12, 40), "sampler": SAMPLERS},
    optional={
        "accumulate": st.integers(2, 3),
        "mixup": st.just(0.3),
        "cutmix": st.just(1.0),
        "clip_norm": st.just(0.1),
        "optimizer": st.sampled_from(["adamw", "sgd"]),
    },
)


class Small(torch.nn.Sequential):
    def get_classifier(self) -> torch.nn.Module:
        return self[-1]


def small_model(architecture, *, n_labels, dropout, **_):
    body = Small(
        torch.nn.AvgPool2d(8),
        torch.nn.Conv2d(3, 4, 2, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(4, n_labels),
    )
    return Tagger(body, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def trained(tiny_data):
    """Train a spec, interrupted after an epoch or not at all: the kept weights, and the epochs' figures."""

    def _trained(spec, cut=None):
        with TemporaryDirectory() as folder, patch.object(trainer, "build_model", small_model):
            trial = RunDirectory(Path(folder)).trial(spec.trial_id)
            if cut is not None:
                train_until(cut, spec, tiny_data, trial)
            result = train_trial(spec, tiny_data, trial, device=CPU)
            assert result.status == "complete", result.reason
            timed = {"seconds", "images_per_s", "wait_s", "evaluate_s", "at"}
            rows = [{k: row[k] for k in row.keys() - timed} for row in read_json_lines(trial.metrics)]
            return load_file(trial.best), rows

    return _trained


def pairs():
    """Each average with each way of keeping weights that it goes with."""
    return [
        (average, keep)
        for average, keep in itertools.product(AVERAGES, KEPT)
        if average != "swa" or keep in ("best", "last")
    ]


def test_all_ways_of_keeping_weights_are_interrupted_here():
    assert KEPT.keys() == KEEPS.keys()


@pytest.mark.parametrize(("average", "keep"), [*pairs(), ("none", "plateau"), ("ema", "plateau")])
@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_interrupted_after_any_epoch_a_trial_ends_the_same(trained, make_spec, average, keep, data):
    kept = PLATEAU if keep == "plateau" else KEPT[keep].map(lambda drawn: drawn | {"keep": keep})
    drawn = data.draw(OTHERS) | data.draw(AVERAGES[average]) | data.draw(kept)
    spec = make_spec(augmentation="light", lr=0.03, **drawn)
    check_recipe(spec.recipe)
    cut = data.draw(st.integers(1, spec.recipe.epochs - 1))
    weights, figures = trained(spec)
    again, figures_again = trained(spec, cut)
    assert figures_again == figures
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
