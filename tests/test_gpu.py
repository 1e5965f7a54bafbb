"""What only a GPU shows: half precision, memory that is too small, several workers on one card."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_distributed import SMOOTH, alone, of_team, together

from imet_ray.models.models import build_model
from imet_ray.prediction.predict import Inference, predict_rows
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.train_trial import train_trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
__all__ = ["together"]  # a fixture

LARGE = {"image_size": 256, "batch_size": 32, "epochs": 1}  # a small model: its memory is that of the batch


@pytest.fixture
def memory():
    """Leave this process only so many bytes of the GPU's memory."""

    def _memory(limit: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])

    yield _memory
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def losses(trial) -> list[float]:
    return [row["train_loss"] for row in read_json_lines(trial.metrics)]


def test_bf16_trains_like_fp32(tiny_data, make_spec, tmp_path):
    found = [
        losses(alone(make_spec(precision=precision), tiny_data, tmp_path, GPU))
        for precision in ("fp32", "bf16")
    ]
    assert found[0] != found[1]
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)


def test_a_batch_too_large_for_the_memory_is_trained_in_parts(tiny_data, make_spec, tmp_path, memory):
    spec = make_spec(**LARGE)
    torch.cuda.reset_peak_memory_stats()
    whole = train_trial(spec, tiny_data, RunDirectory(tmp_path / "whole").trial("t"), device=GPU)
    assert whole.batch_splits == 1
    memory(int(0.6 * torch.cuda.max_memory_allocated()))
    parts = train_trial(spec, tiny_data, RunDirectory(tmp_path / "parts").trial("t"), device=GPU)
    assert parts.status == "complete"
    assert parts.batch_splits > 1


def test_a_batch_too_large_for_the_memory_is_predicted_in_smaller_ones(tiny_data, memory):
    model = build_model("resnet26", n_labels=9, image_size=64, dropout=0.0, weights="none").to(GPU)
    pack, rows = tiny_data.split.pack(64), np.arange(90)
    views = ("centre", "flip")
    torch.cuda.reset_peak_memory_stats()
    whole = predict_rows(model, pack, rows, Inference(GPU, views, 64, 90))
    memory(int(0.8 * torch.cuda.max_memory_allocated()))
    how = Inference(GPU, views, 64, 90)
    found = predict_rows(model, pack, rows, how)
    assert how.batch_size < 90
    np.testing.assert_allclose(found.astype(np.float32), whole.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.003), (torch.bfloat16, 0.02)])
def test_half_precision_predicts_nearly_the_same(tiny_data, dtype, tolerance):
    torch.manual_seed(0)
    model = build_model("resnet26", n_labels=9, image_size=64, dropout=0.0, weights="none").to(GPU)
    pack, rows = tiny_data.split.pack(64), np.arange(90)
    probs = [
        predict_rows(model, pack, rows, Inference(GPU, ("centre",), 64, 32, autocast=autocast)).astype(
            np.float32
        )
        for autocast in (None, dtype)
    ]
    assert 0 < np.abs(probs[0] - probs[1]).max() < tolerance


def test_two_workers_on_one_gpu_train_as_one_with_the_doubled_batch(together, tiny_data, make_spec, tmp_path):
    settings = SMOOTH | {"precision": "fp32"}
    pair = together(of_team(make_spec(batch_size=8, **settings)), device="cuda")
    one = alone(make_spec(batch_size=16, **settings), tiny_data, tmp_path / "one", GPU)
    np.testing.assert_allclose(losses(pair), losses(one), rtol=1e-4)


def test_batch_norm_over_both_workers_is_that_of_the_doubled_batch(together, tiny_data, make_spec, tmp_path):
    settings = {"precision": "fp32", "optimizer": "sgd", "lr": 0.01, "epochs": 2}
    spec = of_team(make_spec(batch_size=8, **settings))
    local = together(spec, "local", device="cuda")
    sync = together(spec.model_copy(update={"batch_norm": "sync"}), "sync", device="cuda")
    one = alone(make_spec(batch_size=16, **settings), tiny_data, tmp_path / "one", GPU)
    np.testing.assert_allclose(losses(sync), losses(one), rtol=1e-3)
    assert not all(map(math.isclose, losses(local), losses(one)))
    assert load_file(sync.best).keys() == load_file(one.best).keys()


def test_the_built_kernel_runs_on_the_gpu(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root)
    assert done.code == 0, done.stdout + done.stderr
    assert " on cuda" in done.stdout
    ours = (place / "working" / "submission.csv").read_text().splitlines()
    theirs = swept.read_text().splitlines()
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 0.9 * len(theirs)
