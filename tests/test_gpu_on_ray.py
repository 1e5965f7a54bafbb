"""Sweeps on a real Ray with a real GPU: trials and teams that share one card, and a card that others have filled."""

import subprocess
from dataclasses import dataclass

import pytest
import torch
from test_ddp_trial import sweep

from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.results import TrialResult, read_result
from imet_ray.storage.run_directory import RunDirectory

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not GPUS, reason="needs a GPU")]
PATIENCE = 300  # seconds

SPACE = """
n_folds: 2
trials_per_variant: 1
resources: {{cpus_per_trial: 1, gpus_per_trial: {share}{more}}}
base: {{architecture: {architecture}, weights: none, image_size: {size}, epochs: 3, batch_size: {batch}, lr: 0.003}}
variants: [{{name: one}}, {{name: two}}]
"""


@dataclass
class Swept:
    results: list[TrialResult | None]
    rows: list[list[dict]]  # of each trial, an epoch each
    printed: str


@pytest.fixture
def swept(tiny_root, tiny_cache, tmp_path):
    def _swept(
        *, share: float, more: str = "", architecture: str = "test_resnet", size: int = 64, batch: int = 8
    ) -> Swept:
        space = SPACE.format(share=share, more=more, architecture=architecture, size=size, batch=batch)
        driver = sweep(tmp_path, space, tiny_root, tiny_cache.root)
        try:
            printed = driver.communicate(timeout=PATIENCE)[0]
        finally:
            end(driver)
        assert driver.returncode == 0, printed
        trials = list(RunDirectory(tmp_path / "runs" / "r").trials())
        return Swept([read_result(t) for t in trials], [read_json_lines(t.metrics) for t in trials], printed)

    return _swept


def end(driver: subprocess.Popen) -> None:
    """Ray's processes end with their driver, also one that is told so."""
    if driver.poll() is None:
        driver.terminate()
        try:
            driver.communicate(timeout=60)
        finally:
            driver.kill()


def whole(found: Swept, trials: int) -> None:
    assert [result and result.status for result in found.results] == ["complete"] * trials, found.printed
    assert all([row["epoch"] for row in rows] == [1, 2, 3] for rows in found.rows)
    assert all(row["gpu_bytes"] > 0 for rows in found.rows for row in rows)


def test_two_trials_share_one_gpu(swept):
    found = swept(share=0.5)
    whole(found, 4)
    assert f"{2 * GPUS} trials at once" in found.printed


@pytest.mark.parametrize("batch_norm", ["local", "sync"])
def test_a_team_of_two_trains_on_one_gpu(swept, batch_norm):
    found = swept(share=0.5, more=f", workers_per_trial: 2, batch_norm: {batch_norm}")
    whole(found, 4)
    assert all(row["workers"] == 2 for rows in found.rows for row in rows)


def test_trials_on_a_gpu_that_others_have_filled_compute_their_batches_in_parts(swept):
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(
        free - 3 * 2**30, dtype=torch.uint8, device="cuda"
    )  # too few for a whole batch, by an estimate
    try:
        found = swept(share=1, architecture="resnet50", size=320, batch=32)
    finally:
        del taken
        torch.cuda.empty_cache()
    whole(found, 4)
    assert any(result.batch_splits > 1 for result in found.results if result)
