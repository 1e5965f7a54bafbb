"""A kernel on a machine where something never ends: the watch ends it in time, with the submission that is there."""

import subprocess
import sys
import time

import pytest
from kernel_machine import submission

pytestmark = pytest.mark.slow

HANGS_IN_PREDICTION = """
import time
import torch
real, calls = torch.Tensor.sigmoid, []
def sigmoid(self):
    calls.append(1)
    if len(calls) > 2:
        time.sleep(600)
    return real(self)
torch.Tensor.sigmoid = sigmoid
"""
HANGS_IN_DECODING = """
import time
import PIL.ImageFile
PIL.ImageFile.ImageFile.load = lambda self: time.sleep(600)
"""
HANGS_IN_A_LOADER = """
import time
import torch
real = torch.from_numpy
def from_numpy(array):
    if torch.utils.data.get_worker_info() is not None:
        time.sleep(600)
    return real(array)
torch.from_numpy = from_numpy
"""
HANGS_IN_HASHING = """
import hashlib
import time
hashlib.file_digest = lambda file, name: time.sleep(600)
"""
HANGS_IN_WRITING = """
import os
import time
os.fsync = lambda file: time.sleep(600)
"""


@pytest.mark.parametrize(
    ("patch", "options", "said"),
    [
        (HANGS_IN_HASHING, (), "0 of 6 checkpoints"),
        (HANGS_IN_PREDICTION, (), "2 of 6 checkpoints"),
        (HANGS_IN_DECODING, (), "0 of 6 checkpoints"),
        (HANGS_IN_A_LOADER, ("--workers", "1"), "0 of 6 checkpoints"),
    ],
    ids=["hashing", "prediction", "decoding", "loader"],
)
def test_what_hangs_is_ended_before_the_limit_with_the_submission_that_is_there(
    tmp_path, swept, built, trained, tiny_root, machine, patch, options, said
):
    place = built(tmp_path / "k")
    options = (*options, "--limit", "8s", "--reserve", "4s")
    began = time.monotonic()
    done = machine(place, tiny_root, *options, patch=patch)
    assert time.monotonic() - began < 8
    assert done.code == 64 + 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert said in last
    assert "stopped by the limit at check" in last
    assert "which took too long" in last
    lines = submission(place).splitlines()
    assert len(lines) == 21
    assert all(line.partition(",")[2] for line in lines)


def test_what_hangs_on_kaggle_ends_as_if_all_were_well(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    options = ("--limit", "6s", "--reserve", "4s")  # with another code the submission would be thrown away
    done = machine(
        place, tiny_root, *options, patch=HANGS_IN_DECODING, env={"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    )
    assert (done.code, "which took too long" in done.stdout.splitlines()[-1]) == (0, True)
    assert len(submission(place).splitlines()) == 21


def test_before_there_is_a_submission_what_hangs_ends_with_an_error(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, "--limit", "4s", "--reserve", "3s", patch=HANGS_IN_WRITING)
    assert done.code == 1
    assert done.stderr == (
        "error: the limit came before there was a submission: looking for pictures and weights\n"
    )
    assert not (place / "working" / "submission.csv").exists()


HANGS_READING_AHEAD = """
import io
import time
import safetensors.torch
real, calls, read = safetensors.torch.load, [], io.BufferedReader.read
def load(data):
    calls.append(1)
    return real(data)
safetensors.torch.load = load
class Slow(io.BufferedReader):
    def read(self, *args):
        if calls:
            time.sleep(600)
        return read(self, *args)
io.BufferedReader = Slow
"""


HANGS_AT_EXIT = """
import atexit
import time
class Hangs:
    def __del__(self):
        time.sleep(600)
kept = Hangs()
atexit.register(time.sleep, 600)
"""
IN_A_NOTEBOOK = """
import sys
import types
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
"""


def alone(place, data, patch: str, after: str = "", *options: str) -> subprocess.CompletedProcess:
    """A kernel in a process that Python itself ends."""
    given, work = place / "input", place / "working"
    given.mkdir()
    work.mkdir()
    (given / "weights").symlink_to(place / "datasets")
    (given / "data").symlink_to(data)
    run = f"import runpy\nrunpy.run_path({str(place / 'kernel' / 'kernel.py')!r}, run_name='__main__')\n"
    (place / "patched.py").write_text(patch + run + after)
    command = [sys.executable, str(place / "patched.py"), "--input", str(given), *options]
    return subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("patch", "limit", "code", "said"),
    [
        (HANGS_READING_AHEAD, ("--limit", "30s", "--reserve", "16s"), 64 + 1, "1 of 6 checkpoints"),
        (HANGS_AT_EXIT, (), 0, "6 of 6 checkpoints"),
    ],
    ids=["reading-ahead", "at-exit"],
)
def test_a_process_that_would_not_end_is_ended(
    tmp_path, swept, built, trained, tiny_root, patch, limit, code, said
):
    done = alone(built(tmp_path / "k"), tiny_root, patch, "", *limit)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout.splitlines()[-1]


def test_a_notebook_lives_on(tmp_path, swept, built, trained, tiny_root):
    after = (
        "import time\ntime.sleep(20.0)\nprint('the next cell')\n"  # past the moment when the watch ends it
    )
    place = built(
        tmp_path / "k", "--limit", "20s", "--reserve", "8s"
    )  # a notebook's own options are not read
    patch = IN_A_NOTEBOOK + "import os\nimport sys\nsys.argv = ['x']\n"
    (tmp_path / "input").symlink_to(tmp_path / "k" / "input")  # ../input
    done = alone(place, tiny_root, patch, after)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the next cell"
    assert submission(place) == swept.read_text()
