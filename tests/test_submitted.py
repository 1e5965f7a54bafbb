"""A sweep as a job that is submitted to a cluster: `ray job submit`."""

import subprocess
import sys
import zlib

import pytest
from processes import PATIENCE

from benchmarks.nodes import RAY, cluster
from imet_ray.storage.results import read_result
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.cluster

SPACE = """
n_folds: 2
trials_per_variant: 1
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, lr: 0.003}
variants: [{name: sent}]
"""


def test_a_submitted_sweep_comes_to_its_end_and_less_than_1_mb_is_sent(tiny_root, tiny_cache, tmp_path):
    (tmp_path / "space.yml").write_text(SPACE)
    sweep = [
        *(sys.executable, "tests/stub_sweep.py", "--sweep", "--address", "auto", "--name", "r"),
        *("--space", str(tmp_path / "space.yml"), "--data", str(tiny_root)),
        *("--runs", str(tmp_path / "runs"), "--cache", str(tiny_cache.root)),
    ]
    # the head alone: nodes of one machine delete each other's copy of what is sent
    with cluster(dashboard=True, head_cpus=1) as ray:
        submit = [str(RAY), "job", "submit", "--address", f"http://127.0.0.1:{ray.dashboard_port}"]
        done = subprocess.run(
            [*submit, "--working-dir", ".", "--", *sweep],
            env=ray.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
        sent = [*ray.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/**/*")]
        zipped = sum(len(zlib.compress(path.read_bytes())) for path in sent if path.is_file())
    assert done.returncode == 0, done.stdout
    assert "finished in" in done.stdout
    assert 100_000 < zipped < 1_000_000
    results = [read_result(trial) for trial in RunDirectory(tmp_path / "runs" / "r").trials()]
    assert len(results) == 2
    assert all(result is not None and result.status == "complete" for result in results)
