"""A kernel in a fresh virtual environment that has what Kaggle's has and nothing of ours, cut off from the network."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "numpy",
    "pandas",
)  # torchvision: timm's own wish


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of the fresh environment."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv, which makes the environment, is not on the PATH")
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    found = folder / "bin" / "python"
    subprocess.run([uv, "venv", "-q", str(folder), "--python", sys.executable], check=True)
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(found), *wanted]
    if subprocess.run(
        [*install, "--offline"], capture_output=True, check=False
    ).returncode:  # not all is cached
        subprocess.run(install, check=True)
    return found


def test_it_runs_with_torch_timm_albumentations_numpy_and_pandas_alone_and_without_a_network(
    tmp_path, python, swept, built, tiny_root
):
    place = built(tmp_path / "k")
    given, work = tmp_path / "kaggle" / "input", tmp_path / "kaggle" / "working"
    shutil.copytree(place / "datasets" / "0", given / "weights")
    shutil.copytree(tiny_root, given / "competition")
    work.mkdir()
    kernel = shutil.copy(place / "kernel" / "kernel.py", tmp_path / "kaggle")
    command = [str(python), "-I", str(kernel), "--input", str(given)]
    if shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        command = ["unshare", "-rn", *command]
    else:
        pytest.skip("no network can be cut off here: `unshare -rn` is not allowed")
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    absent = subprocess.run(
        [str(python), "-c", "import ray"], cwd=tmp_path, env=clean, capture_output=True, check=False
    )
    assert b"ModuleNotFoundError" in absent.stderr
    done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert (work / "submission.csv").read_text() == swept.read_text()
    assert [path.name for path in work.iterdir()] == ["submission.csv"]
