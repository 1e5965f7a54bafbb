"""Which weights a trial keeps: averages, cycles that predict together, soups; each is one checkpoint."""

import copy
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from imet_ray.blending.blend_run import _remarks
from imet_ray.data.views import apply_view
from imet_ray.errors import SettingError
from imet_ray.models.checkpoint import load_tagger
from imet_ray.models.models import build_model
from imet_ray.models.snapshots import Snapshots, count_snapshots
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.predict import Inference, predict_checkpoint, predict_rows, read_predictions
from imet_ray.specs import Mixed, Variant
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.files import write_json
from imet_ray.storage.results import Standing
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory
from imet_ray.training import trainer
from imet_ray.training.averages import renew_statistics
from imet_ray.training.distributed import Hardware
from imet_ray.training.kept_weights import KEEPS, Judge, Soup
from imet_ray.training.recipe import check_recipe
from imet_ray.training.train_trial import train_trial
from kernel_builder.runtime.checkpoints import load_model

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


@pytest.fixture
def run(tiny_data, tmp_path):
    """Train a spec in a store of its own: its result, its directory and the model's weights after each epoch."""

    def _run(spec, where="a"):
        trial = RunDirectory(tmp_path / where).trial(spec.trial_id)
        training = trainer.Trainer(spec, tiny_data, trial, trial.acquire(), Hardware(CPU))
        seen = []
        result = training.run(lambda metrics: seen.append(copy.deepcopy(training.model.state_dict())))
        return result, trial, seen

    return _run


@pytest.fixture
def killed(tiny_data, tmp_path):
    """Train a spec, killed after each epoch and once between its last write and its result."""

    def _killed(spec, monkeypatch):
        trial = RunDirectory(tmp_path / "killed").trial(spec.trial_id)

        def stop(*_):
            raise Interrupted

        for _ in range(spec.recipe.epochs - 1):
            with pytest.raises(Interrupted):
                train_trial(spec, tiny_data, trial, device=CPU, report=stop)
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_finish", stop)
            with pytest.raises(Interrupted):
                train_trial(spec, tiny_data, trial, device=CPU)
        return train_trial(spec, tiny_data, trial, device=CPU), trial

    return _killed


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def mean_of(states):
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        for name in states[0]
        if states[0][name].is_floating_point() and "running" not in name
    }


def figures(trial):
    timed = {"seconds", "images_per_s", "wait_s", "evaluate_s", "at"}
    return [{k: row[k] for k in row.keys() - timed} for row in read_json_lines(trial.metrics)]


@pytest.mark.parametrize(
    "setting",
    [
        {"keep": "cycles", "cycles": 3, "ema_decay": 0.9},
        {"keep": "cycles", "cycle_epochs": 1, "cycle_plus": 1, "dropout": 0.3},
        {"keep": "soup", "soup_epochs": 2, "mixup": 0.3},
        {"keep": "soup", "soup": "uniform", "schedule": "constant", "ema_decay": 0.9},
        {"swa_start": 0.34, "schedule": "onecycle", "dropout": 0.3},
        {"swa_start": 0.34, "swa_lr": 0.001, "keep": "last"},
    ],
    ids=["cycles", "growing cycles", "greedy soup", "uniform soup", "swa", "swa with a rate"],
)
def test_killed_after_every_epoch_a_trial_keeps_the_same_weights_bit_for_bit(
    run, killed, make_spec, monkeypatch, setting
):
    spec = make_spec(**setting)
    through, whole, _ = run(spec)
    result, pieces = killed(spec, monkeypatch)
    assert equal(load_file(whole.best), load_file(pieces.best))
    assert result.score == through.score
    assert figures(whole) == figures(pieces)
    names = {path.name for path in pieces.root.iterdir()}
    assert names == {"best.safetensors", "metrics.jsonl", "result.json", "spec.json", "writer.token"}


@given(st.lists(st.lists(st.floats(-60, 60), min_size=3, max_size=3), min_size=1, max_size=5))
def test_snapshots_give_the_logits_of_their_mean_probability(given_logits):
    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, images):
            return self.logits.expand(len(images), 3)

    found = Snapshots([Fixed(logits) for logits in given_logits])(torch.zeros(2, 3, 4, 4)).sigmoid()
    wanted = (1 / (1 + np.exp(-np.array(given_logits)))).mean(0)
    np.testing.assert_allclose(found.numpy(), np.stack([wanted, wanted]), rtol=1e-5)


def test_the_weights_at_the_end_of_each_cycle_predict_together_as_one_checkpoint(run, make_spec, tiny_data):
    result, trial, seen = run(
        make_spec(keep="cycles", cycle_epochs=1, cycle_plus=1, epochs=4, views=["centre"])
    )
    tensors = load_file(trial.best)
    assert count_snapshots(tensors) == 3
    for i, epoch in enumerate((1, 3, 4)):
        own = {k.removeprefix(f"snapshots.{i}."): t for k, t in tensors.items() if f"snapshots.{i}." in k}
        assert equal(own, seen[epoch - 1])
    rows = tiny_data.rows(0, held_out=True)
    predict_checkpoint(
        trial, tiny_data.split, rows, path=trial.oof, label_ids=tiny_data.label_ids, device=CPU
    )
    found = read_predictions(trial.oof).probs
    model, info = load_tagger(trial.best, CPU)
    how = Inference.of(info.spec.recipe, CPU)
    alone = [predict_rows(one, tiny_data.split.pack(64), rows, how) for one in model.snapshots]
    assert not np.allclose(alone[0], alone[2], atol=0.01)
    np.testing.assert_allclose(found, np.mean(np.float32(alone), axis=0), atol=1e-3)
    assert METRICS["f2"].best_threshold(found, tiny_data.labels[rows])[1] == result.score == info.score
    scores = [METRICS["f2"].best_threshold(one, tiny_data.labels[rows])[1] for one in alone]
    assert read_json_lines(trial.metrics)[0]["score"] == scores[0]
    assert [row.get("kept_epochs") for row in read_json_lines(trial.metrics)] == [
        [1],
        None,
        [1, 3],
        [1, 3, 4],
    ]


def test_another_trial_begins_from_the_last_of_the_cycles(run, make_spec):
    _, trial, seen = run(make_spec(keep="cycles", cycles=2, epochs=2))
    settings = {"n_labels": len(seen[-1]["body.fc.bias"]), "image_size": 32, "dropout": 0.0}
    model = build_model("test_resnet", weights=str(trial.best), **settings)
    assert equal(model.state_dict(), seen[-1])


def test_a_kernel_predicts_snapshots_from_float16_weights(run, make_spec):
    spec = make_spec(keep="cycles", cycles=2, epochs=2)
    _, trial, _ = run(spec)
    tensors = load_file(trial.best)
    model, info = load_tagger(trial.best, CPU)
    half = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    kernels = load_model(spec.recipe, len(info.label_ids), save(half), CPU).eval()
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(kernels(images), model(images), rtol=0.02, atol=0.02)


def test_swa_keeps_the_mean_of_the_last_epochs_weights(run, make_spec):
    _, trial, seen = run(make_spec(epochs=5, swa_start=0.5, keep="last"))
    kept = load_file(trial.best)
    for name, wanted in mean_of(seen[2:]).items():
        torch.testing.assert_close(kept[name], wanted)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_swas_own_rate_is_reached_after_an_epoch_and_stays(run, make_spec, schedule):
    _, trial, _ = run(make_spec(epochs=4, swa_start=0.5, swa_lr=0.0123, schedule=schedule))
    rates = [row["lr"] for row in read_json_lines(trial.metrics)]
    assert rates[1] != 0.0123
    assert rates[2:] == [pytest.approx(0.0123)] * 2


def test_swas_own_rate_decays_by_layer_as_the_schedules_does(tiny_data, tmp_path, make_spec):
    spec = make_spec(epochs=2, swa_start=0.5, swa_lr=0.01, layer_decay=0.7)
    trial = RunDirectory(tmp_path).trial(spec.trial_id)
    training = trainer.Trainer(spec, tiny_data, trial, trial.acquire(), Hardware(CPU))
    training.run(lambda metrics: None)
    groups = training.optimizer.param_groups
    assert len({group["lr_scale"] for group in groups}) > 2
    assert all(group["lr"] == pytest.approx(0.01 * group["lr_scale"]) for group in groups)


def test_batch_norm_statistics_of_an_average_are_those_of_training_pictures(run, make_spec, tiny_data):
    _, trial, _ = run(make_spec(epochs=2, swa_start=0.0, keep="last"))
    model, _ = load_tagger(trial.best, CPU)
    inputs = []
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    pack, rows = tiny_data.split.pack(64), tiny_data.rows(0, held_out=False)
    pictures = np.stack([apply_view(pack[row], "centre", 32) for row in rows])
    model(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, inputs[0].var((0, 2, 3)), rtol=0.02, atol=1e-3)


def test_frozen_layers_keep_their_batch_norm_statistics(run, make_spec):
    _, trial, seen = run(make_spec(epochs=2, swa_start=0.0, keep="last", freeze=1))
    kept = load_file(trial.best)
    assert torch.equal(kept["body.bn1.running_mean"], torch.zeros(len(kept["body.bn1.running_mean"])))
    assert not torch.equal(kept["body.layer4.0.bn1.running_mean"], seen[-1]["body.layer4.0.bn1.running_mean"])


def test_batch_norm_statistics_are_of_a_bounded_number_of_pictures(run, make_spec, tiny_data, monkeypatch):
    _, trial, _ = run(make_spec(epochs=1))
    model, info = load_tagger(trial.best, CPU)
    monkeypatch.setattr("imet_ray.training.averages.STATISTICS_PICTURES", 20)
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    how = Inference.quick(info.spec.recipe, CPU)
    how.batch_size = 8
    renew_statistics(model, tiny_data.split.pack(64), tiny_data.rows(0, held_out=False), how, seed=0)
    assert seen == [8, 8]
    assert not model.training


def test_a_uniform_soup_is_the_mean_of_the_last_epochs_weights(run, make_spec):
    result, trial, seen = run(make_spec(keep="soup", soup="uniform", soup_epochs=2))
    kept = load_file(trial.best)
    for name, wanted in mean_of(seen[1:]).items():
        torch.testing.assert_close(kept[name], wanted)
    last = read_json_lines(trial.metrics)[-1]
    assert last["kept_epochs"] == [2, 3]
    assert (result.score, result.epoch) == (last["score"], 3)


@pytest.mark.parametrize("server", ["s3"], indirect=True)  # all stores: test_bucket_mirror.py
def test_over_a_bucket_cycles_and_soups_go_on_wherever_they_are_started_next(
    on_node, run, make_spec, tiny_data
):
    def stop(*_):
        raise Interrupted

    def train(spec, node, **how):
        trial = on_node(node).trial(spec.trial_id)
        train_trial(spec, tiny_data, trial, device=CPU, **how)
        return trial

    spec = make_spec(keep="cycles", cycles=3)
    for node in "ab":
        with pytest.raises(Interrupted):
            train(spec, node, report=stop)
    assert equal(load_file(train(spec, "c").best), load_file(run(spec)[1].best))
    specs = [make_spec(lr=lr, epochs=1) for lr in (0.003, 0.002)]
    mixed = [train(one, node) for one, node in zip(specs, "ab", strict=True)]
    of = Mixed(trials=tuple(one.trial_id for one in specs), how="uniform")
    kept = load_file(train(specs[0].model_copy(update={"soup_of": of}), "c").best)
    for name, wanted in mean_of([load_file(trial.best) for trial in mixed]).items():
        torch.testing.assert_close(kept[name], wanted)


def cooked(scores, epochs, soup="greedy"):
    """The epochs whose weights a soup has: epoch n weighs n, and the score of a mean weight is looked up."""
    keep = Soup(Variant(name="a", architecture="x", keep="soup", soup=soup, epochs=len(epochs)))
    settled = []
    for epoch, weight in enumerate(epochs, 1):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, weight)
        kept, row = keep.judge(
            epoch, model, Judge(lambda one: {"score": scores(one.weight.item())}, settled.append)
        )
    return kept.weight.item(), row


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=5), st.integers(0, 8))
def test_a_greedy_soup_takes_epochs_by_their_scores_as_long_as_the_mean_does_not_get_worse(epochs, best):
    def score(weight):
        return -abs(weight - best)

    taken = []
    for one in sorted(range(len(epochs)), key=lambda i: (-score(epochs[i]), i)):
        tried = [*taken, one]
        if (
            not taken
            or score(np.mean([epochs[i] for i in tried])) >= score(np.mean([epochs[i] for i in taken])) - 1e-6
        ):
            taken = tried
    weight, row = cooked(lambda w: round(score(w), 5), epochs)
    assert weight == pytest.approx(np.mean([epochs[i] for i in taken]), abs=1e-5)
    assert row["kept_epochs"] == sorted(i + 1 for i in taken)
    assert row["score"] >= max(map(score, epochs))


@pytest.mark.parametrize("how", ["greedy", "uniform"])
def test_a_soup_of_trials_is_one_model_of_their_weights_and_goes_on_where_it_was_killed(
    tiny_data, tmp_path, make_spec, monkeypatch, how
):
    specs = [make_spec(lr=lr, head_only_epochs=1, ema_decay=0.9) for lr in (0.003, 0.002, 0.001)]
    store = RunDirectory(tmp_path)
    results = [train_trial(one, tiny_data, store.trial(one.trial_id), device=CPU) for one in specs]
    ids = tuple(one.trial_id for one in specs)
    soup = specs[0].model_copy(update={"soup_of": Mixed(trials=ids, how=how)})
    trial = store.trial(soup.trial_id)

    def stop(*_):
        raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            train_trial(soup, tiny_data, trial, device=CPU, report=stop)
    result = train_trial(soup, tiny_data, trial, device=CPU)
    rows = read_json_lines(trial.metrics)
    assert [row["score"] for row in rows[:2]] == [one.score for one in results[:2]]
    kept = [load_file(store.trial(ids[i - 1]).best) for i in rows[-1]["kept_epochs"]]
    for name, wanted in mean_of(kept).items():
        torch.testing.assert_close(load_file(trial.best)[name], wanted)
    if how == "uniform":
        assert len(kept) == 3
    else:
        assert result.score >= max(one.score for one in results)
    _, info = load_tagger(trial.best, CPU)
    assert info.spec == soup
    assert info.spec.recipe.views == specs[0].recipe.views


@pytest.mark.parametrize(
    ("setting", "field", "expected"),
    [
        ({"keep": "cycels"}, "keep", "unknown keep 'cycels': did you mean 'cycles'?"),
        (
            {"keep": "cycles"},
            "keep",
            "schedule 'cosine' with less than two: set schedule 'cosine' and cycles",
        ),
        ({"keep": "cycles", "schedule": "constant"}, "keep", "schedule 'constant' with less than two"),
        ({"keep": "cycles", "schedule": "plateau"}, "keep", "needs keep 'best'"),
        ({"keep": "soup", "schedule": "plateau"}, "keep", "needs keep 'best'"),
        ({"soup": "uniform"}, "soup", "soup is for keep 'soup', got keep 'best'"),
        (
            {"soup_epochs": 3, "keep": "last"},
            "soup_epochs",
            "soup_epochs is for keep 'soup', got keep 'last'",
        ),
        ({"swa_lr": 0.1}, "swa_lr", "set swa_start, such as 0.75"),
        ({"swa_start": 0.75, "ema_decay": 0.9}, "swa_start", "are two averages: choose one"),
        ({"swa_start": 0.75, "schedule": "plateau"}, "swa_start", "goes back to the best weights"),
        ({"swa_start": 0.75, "keep": "soup"}, "swa_start", "both average epochs"),
        ({"swa_start": 0.75, "keep": "cycles", "cycles": 2}, "swa_start", "both average epochs"),
    ],
)
def test_ways_that_do_not_go_together_are_refused_by_name(setting, field, expected):
    with pytest.raises(SettingError, match=re.escape(expected)) as caught:
        check_recipe(Variant.model_validate({"name": "a", "architecture": "resnet18"} | setting))
    assert caught.value.field == field


def test_every_other_combination_of_average_and_kept_weights_is_taken():
    averages = [{}, {"ema_decay": 0.9}, {"swa_start": 0.5}]
    for average, keep in itertools.product(averages, KEEPS):
        if "swa_start" not in average or keep in ("best", "last"):
            recipe = {"name": "a", "architecture": "resnet18", "keep": keep, "cycles": 2} | average
            check_recipe(Variant.model_validate(recipe))


@pytest.mark.parametrize(
    ("setting", "picks"),
    [
        ({}, True),
        ({"epochs": 1}, False),
        ({"keep": "last"}, False),
        ({"keep": "cycles", "cycles": 2}, False),
        ({"keep": "soup"}, True),
        ({"keep": "soup", "soup": "uniform"}, False),
    ],
)
def test_what_chose_among_epochs_by_held_out_pictures_says_so(setting, picks):
    recipe = Variant.model_validate({"name": "a", "architecture": "resnet18"} | setting)
    assert KEEPS[recipe.keep].picks(recipe) == picks


@pytest.mark.parametrize(
    ("setting", "remark"),
    [
        ({}, ["optimistic: keep: best picked epochs on the folds that are scored (keep: last does not)"]),
        (
            {"keep": "soup"},
            ["optimistic: keep: soup picked epochs on the folds that are scored (keep: last does not)"],
        ),
        ({"keep": "cycles", "cycles": 2}, []),
    ],
)
def test_a_blend_says_which_ways_flatter_its_members(make_spec, tmp_path, setting, remark):
    trial = RunDirectory(tmp_path).trial("t")
    write_json(trial.spec, make_spec(**setting).model_dump(mode="json"))
    assert _remarks(blended(trial)) == remark


@pytest.mark.parametrize(
    ("how", "remarks"), [("greedy", ["optimistic: soup_of picked what it mixed"]), ("uniform", [])]
)
def test_a_blend_says_that_a_greedy_soup_of_sets_flatters(make_spec, tmp_path, how, remarks):
    trial = RunDirectory(tmp_path).trial("t")
    spec = make_spec(keep="last").model_copy(update={"soup_of": Mixed(trials=("a", "b"), how=how)})
    write_json(trial.spec, spec.model_dump(mode="json"))
    assert [remark.partition(" on ")[0] for remark in _remarks(blended(trial))] == remarks


def blended(trial: TrialDirectory) -> SimpleNamespace:
    """What `_remarks` reads of a run of this trial."""
    standing, space = (
        Standing("a", {}, {0: trial}, {0: 0.5}, {0: 0.5}, 3),
        SimpleNamespace(trials_per_variant=1),
    )
    return SimpleNamespace(whole=[standing], external=[], space=space, left_out=[], views=None)
