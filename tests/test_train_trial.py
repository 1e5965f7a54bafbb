"""One trial: what it writes, how it goes on, how it fails."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imet_ray.data.formats import read_catalog
from imet_ray.data.training_data import test_split as pictures_of_test
from imet_ray.errors import StoreError
from imet_ray.models.checkpoint import load_state, load_tagger, read_info
from imet_ray.models.models import build_model
from imet_ray.prediction.metrics import METRICS, Metric
from imet_ray.prediction.predict import predict_checkpoint, read_predictions, write_predictions
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.files import SupersededError, write_json
from imet_ray.storage.results import own_result, read_result
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.training import trainer
from imet_ray.training.distributed import Hardware
from imet_ray.training.train_trial import train_trial

F2 = METRICS["f2"]

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


@pytest.fixture
def run(tiny_data, tmp_path):
    """Train a spec in a store of its own; `stop_after` an epoch raises there, as a kill would end it."""

    def _run(spec, where="a", stop_after=None):
        trial = RunDirectory(tmp_path / where).trial(spec.trial_id)

        def report(metrics):
            if metrics["epoch"] == stop_after:
                raise Interrupted

        return train_trial(spec, tiny_data, trial, device=CPU, report=report), trial

    return _run


def weights(trial):
    return load_file(trial.best)


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def test_a_trial_leaves_weights_metrics_and_a_result(run, make_spec, tiny_data):
    spec = make_spec()
    result, trial = run(spec)
    assert result == read_result(trial)
    assert result.status == "complete"
    assert result.epochs == 3
    rows = read_json_lines(trial.metrics)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert max(row["score"] for row in rows) == result.score
    for key in ("train_loss", "valid_loss", "threshold", "expected_score", "lr", "images_per_s", "wait_s"):
        assert np.isfinite(rows[0][key])
    info = read_info(trial.best)
    assert info.spec == spec
    assert info.label_ids == tiny_data.label_ids
    assert not trial.last.exists()


def test_a_finished_trial_is_not_trained_again(run, make_spec):
    run(make_spec())
    result, _ = run(make_spec(), stop_after=1)  # would raise, were it trained
    assert result.status == "complete"


def test_a_directory_of_another_trial_is_not_taken_for_it(run, make_spec, tmp_path):
    spec = make_spec(epochs=1)
    _, trial = run(spec)
    altered = json.loads(trial.spec.read_text())
    altered["variant"]["lr"] = 0.5
    trial.spec.write_text(json.dumps(altered))
    with pytest.raises(StoreError, match="tells of another trial"):
        run(spec)
    with pytest.raises(StoreError, match="tells of another trial"):
        own_result(trial)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine", "cycles": 2, "warmup_epochs": 0.5, "dropout": 0.3, "head_only_epochs": 1},
        {"schedule": "onecycle", "optimizer": "adamw", "keep": "last", "mixup": 0.3},
        {"schedule": "plateau", "plateau_patience": 0, "ema_decay": 0.9, "warmup_epochs": 1.0},
        {"optimizer": "sgd", "accumulate": 2, "clip_norm": 1.0, "head_only_epochs": 1},
        {"schedule": "triangular2", "cycles": 3, "optimizer": "lion", "layer_decay": 0.7, "drop_path": 0.5},
        {"schedule": "exponential", "freeze": 2, "amsgrad": True, "beta2": 0.99, "label_smoothing": 0.1},
    ],
    ids=["cosine", "onecycle", "plateau", "sgd", "layered", "frozen"],
)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_trial_ends_with_the_same_weights_bit_for_bit(run, make_spec, settings, stop_after):
    spec = make_spec(**settings)
    through, one = run(spec, "through")
    with pytest.raises(Interrupted):
        run(spec, "broken", stop_after=stop_after)
    result, two = run(spec, "broken")
    assert equal(weights(one), weights(two))
    assert result.score == through.score
    timed = {"seconds", "images_per_s", "wait_s", "evaluate_s", "at"}
    for a, b in zip(read_json_lines(one.metrics), read_json_lines(two.metrics), strict=True):
        assert {k: a[k] for k in a.keys() - timed} == {k: b[k] for k in b.keys() - timed}


@pytest.mark.parametrize("stop_after", [None, 1])
def test_a_trial_whose_rate_is_spent_is_complete(run, make_spec, stop_after):
    """Its score never improves by 1: the rate drops after the second epoch, to 0.0006."""
    plateau = {"schedule": "plateau", "plateau_patience": 0, "plateau_improvement": 1.0, "min_lr": 0.001}
    spec = make_spec(epochs=5, **plateau)
    if stop_after:
        with pytest.raises(Interrupted):
            run(spec, stop_after=stop_after)
    result, trial = run(spec)
    rows = read_json_lines(trial.metrics)
    assert (result.status, result.epochs, len(rows)) == ("complete", 2, 2)
    assert result.score == max(row["score"] for row in rows)
    assert not trial.last.exists()
    assert run(spec, stop_after=1)[0] == result  # it is not trained further


def test_frozen_layers_keep_their_weights_and_their_batch_norms(run, make_spec, tiny_data):
    spec = make_spec(epochs=1, freeze="layer1", keep="last")
    _, trial = run(spec)
    torch.manual_seed(spec.seed)
    n = len(tiny_data.label_ids)
    start = build_model("test_resnet", n_labels=n, image_size=32, dropout=0.0, weights="none").state_dict()
    changed = {
        name.split(".")[1] for name, value in weights(trial).items() if not torch.equal(value, start[name])
    }
    assert changed == {"layer2", "layer3", "layer4", "fc"}


def test_interrupted_between_the_last_epoch_and_the_result_it_loses_one_epoch(run, make_spec, monkeypatch):
    spec = make_spec()

    def cut(self):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_finish", cut)
        with pytest.raises(Interrupted):
            run(spec)
    began = []
    really = trainer.Trainer._train_epoch
    monkeypatch.setattr(
        trainer.Trainer, "_train_epoch", lambda self: began.append(self.epoch) or really(self)
    )
    result, trial = run(spec)
    assert began == [2]
    assert result.epochs == 3
    monkeypatch.undo()
    assert equal(weights(trial), weights(run(spec, "through")[1]))


def test_a_damaged_state_begins_again(run, make_spec, caplog):
    spec = make_spec()
    with pytest.raises(Interrupted):
        run(spec, stop_after=2)
    _, reference = run(spec, "reference")
    trial = RunDirectory(reference.root.parent.parent.parent / "a").trial(spec.trial_id)
    trial.last.write_bytes(trial.last.read_bytes()[:1000])
    run(spec)
    assert "beginning again" in caplog.text
    assert equal(weights(trial), weights(reference))


def test_the_state_is_read_without_unpickling_code(run, make_spec):
    spec = make_spec()
    with pytest.raises(Interrupted):
        run(spec, "x", stop_after=1)
    _, trial = run(make_spec(fold=1))
    state = RunDirectory(trial.root.parent.parent.parent / "x").trial(spec.trial_id).last
    assert torch.load(state, weights_only=True)["epoch"] == 1


def test_other_seeds_folds_and_settings_give_other_weights(run, make_spec):
    _, one = run(make_spec())
    for other in (make_spec(fold=1), make_spec(dropout=0.5), make_spec().model_copy(update={"seed": 1})):
        _, two = run(other)
        assert not equal(weights(one), weights(two))


def test_a_nan_loss_fails_the_trial_with_its_reason(run, make_spec):
    result, trial = run(make_spec(lr=1e30, optimizer="sgd"))
    assert result.status == "failed"
    assert "NaN" in result.reason
    assert read_result(trial) == result


def test_a_batch_too_large_for_the_gpu_is_halved_at_most_twice(run, make_spec, monkeypatch):
    really = trainer.Trainer._train_epoch
    needed = 2

    def out_of_memory(self):
        if self.splits < needed:
            raise torch.cuda.OutOfMemoryError
        return really(self)

    monkeypatch.setattr(trainer.Trainer, "_train_epoch", out_of_memory)
    result, _ = run(make_spec(), "fits")
    assert (result.status, result.batch_splits) == ("complete", 2)
    needed = 8
    result, _ = run(make_spec(), "never")
    assert result.status == "failed"
    assert "out of GPU memory" in result.reason


@pytest.mark.parametrize("long", [False, True])
def test_only_a_long_trial_lets_cudnn_search_for_its_fastest_kernels(
    run, make_spec, tiny_data, monkeypatch, long
):
    spec = make_spec(epochs=3)
    pictures = 3 * len(tiny_data.rows(spec.fold, held_out=False))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not long)  # as another trial left it
    monkeypatch.setattr("imet_ray.training.trainer.LONG_TRIAL", pictures + (0 if long else 1))
    run(spec)
    assert torch.backends.cudnn.benchmark == long


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny_data, make_spec, tmp_path):
    spec = make_spec(architecture="test_vit", image_size=160, batch_size=8)  # no batch norm
    gradients = []
    for splits in (1, 4):
        trial = RunDirectory(tmp_path / str(splits)).trial(spec.trial_id)
        write_json(trial.splits, splits)
        training = trainer.Trainer(spec, tiny_data, trial, trial.acquire(), Hardware(CPU))
        torch.manual_seed(0)
        images = torch.randint(0, 255, (8, 3, 160, 160), dtype=torch.uint8)
        targets = torch.randint(0, 2, (8, len(tiny_data.label_ids))).float()
        training.model.eval()
        training._backward(images, targets, 0.5)
        gradients.append([p.grad.clone() for p in training.model.parameters() if p.grad is not None])
    assert gradients[0]
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-6)


def test_an_older_writer_stops_writing(tiny_data, make_spec, tmp_path):
    spec = make_spec()
    trial = RunDirectory(tmp_path).trial(spec.trial_id)
    with pytest.raises(SupersededError):
        train_trial(spec, tiny_data, trial, device=CPU, report=lambda metrics: trial.acquire() and None)
    assert not trial.result.exists()


def test_head_only_epochs_leave_the_body_alone(tiny_data, make_spec, tmp_path):
    spec = make_spec(head_only_epochs=1)
    trial = RunDirectory(tmp_path).trial(spec.trial_id)
    training = trainer.Trainer(spec, tiny_data, trial, trial.acquire(), Hardware(CPU))
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training._train_epoch()
    after = training.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"body.fc.weight", "body.fc.bias"}
    training.epoch = 1
    training._train_epoch()
    assert not torch.equal(before["body.conv1.0.weight"], training.model.state_dict()["body.conv1.0.weight"])


def test_on_a_plateau_training_goes_back_to_its_best_weights(tiny_data, make_spec, tmp_path, monkeypatch):
    scores = iter([0.5, 0.1, 0.1])
    monkeypatch.setattr(Metric, "best_threshold", lambda self, probs, labels: (0.2, next(scores)))
    spec = make_spec(schedule="plateau", plateau_patience=0, plateau_factor=0.5)
    trial = RunDirectory(tmp_path).trial(spec.trial_id)
    seen = []

    def report(metrics):
        if metrics["epoch"] == 2:  # the rate has dropped
            seen.append(load_state(trial.last))

    train_trial(spec, tiny_data, trial, device=CPU, report=report)
    best = weights(trial)
    assert all(torch.equal(best[name], seen[0]["model"][name]) for name in best)
    assert read_json_lines(trial.metrics)[2]["lr"] == pytest.approx(spec.variant.lr / 2)


def test_averaged_weights_are_what_is_kept(run, make_spec):
    _, plain = run(make_spec(keep="last"))
    _, averaged = run(make_spec(keep="last", ema_decay=0.9))
    assert not equal(weights(plain), weights(averaged))


def test_a_checkpoint_predicts_its_fold_once_and_again_only_if_it_changed(run, make_spec, tiny_data):
    _, trial = run(make_spec(views=["centre", "flip"]))
    rows = tiny_data.rows(0, held_out=True)
    how = {"path": trial.oof, "label_ids": tiny_data.label_ids, "device": CPU}
    assert predict_checkpoint(trial, tiny_data.split, rows, **how)
    assert not predict_checkpoint(trial, tiny_data.split, rows, **how)
    found = read_predictions(trial.oof)
    assert found.ids.tolist() == [tiny_data.split.ids[row] for row in rows]
    assert found.probs.shape == (len(rows), len(tiny_data.label_ids))
    assert found.probs.dtype == np.float16
    assert found.views == ("centre", "flip")
    _, other = run(make_spec(dropout=0.5, views=["centre", "flip"]))
    trial.best.write_bytes(other.best.read_bytes())
    assert predict_checkpoint(trial, tiny_data.split, rows, **how)


def test_predictions_that_are_nan_are_made_again(run, make_spec, tiny_data):
    _, trial = run(make_spec())
    rows = tiny_data.rows(0, held_out=True)
    how = {"path": trial.oof, "label_ids": tiny_data.label_ids, "device": CPU}
    predict_checkpoint(trial, tiny_data.split, rows, **how)
    good = read_predictions(trial.oof)
    write_predictions(trial.oof, replace(good, probs=np.full_like(good.probs, np.nan)))
    assert predict_checkpoint(trial, tiny_data.split, rows, **how)
    assert np.array_equal(read_predictions(trial.oof).probs, good.probs)


def test_pictures_that_were_replaced_under_their_names_are_predicted_again(
    run, make_spec, tiny_data, tiny_root, tmp_path
):
    _, trial = run(make_spec())
    root, cache = shutil.copytree(tiny_root, tmp_path / "data"), Cache(tmp_path / "cache")
    how = {"path": trial.test, "label_ids": tiny_data.label_ids, "device": CPU}

    def predict() -> bool:
        split = pictures_of_test(read_catalog(root, cache), cache)
        return predict_checkpoint(trial, split, np.arange(len(split.ids)), **how)

    assert predict()
    assert not predict()
    before = read_predictions(trial.test).probs
    first, second = read_catalog(root).test.files[:2]
    shutil.copy2(first, second)
    assert predict()
    after = read_predictions(trial.test).probs
    assert np.array_equal(after[1], before[0])
    assert not np.array_equal(after[1], before[1])


def test_a_checkpoint_builds_its_own_model_and_predicts_as_in_training(run, make_spec, tiny_data):
    result, trial = run(make_spec(keep="last", views=["centre"]))
    model, info = load_tagger(trial.best, CPU)
    assert not model.training
    assert info.score == result.score
    rows = tiny_data.rows(0, held_out=True)
    predict_checkpoint(
        trial, tiny_data.split, rows, path=trial.oof, label_ids=tiny_data.label_ids, device=CPU
    )
    assert F2.best_threshold(read_predictions(trial.oof).probs, tiny_data.labels[rows])[1] == result.score
