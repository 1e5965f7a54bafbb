"""A kernel on a machine where something never ends: the watchdog ends it in time, with the submission that is there.

The clock of these kernels jumps to the moment of the watchdog when something hangs: nobody waits for nine hours.
"""

import re

import pytest
from kernel_machine import submission

pytestmark = pytest.mark.slow

LIMIT, RESERVE = 9 * 3600, 600  # seconds; what a kernel is built with
CLOCK = f"""
import builtins
import mmap
import time
monotonic, sleep = time.monotonic, time.sleep
builtins.jumped = mmap.mmap(-1, 1)  # loader processes share it
time.monotonic = lambda: monotonic() + ({LIMIT - RESERVE / 2} if jumped[0] else 0)
def hang(*args, **kwargs):
    jumped[0] = 1
    sleep(600)
"""
HANGS_IN_PREDICTION = """
import torch
real, calls = torch.Tensor.sigmoid, []
def sigmoid(self):
    calls.append(1)
    if len(calls) > 2:
        hang()
    return real(self)
torch.Tensor.sigmoid = sigmoid
"""
HANGS_IN_DECODING = """
import PIL.ImageFile
PIL.ImageFile.ImageFile.load = hang
"""
HANGS_IN_A_LOADER = """
import torch
real = torch.from_numpy
def from_numpy(array):
    if torch.utils.data.get_worker_info() is not None:
        hang()
    return real(array)
torch.from_numpy = from_numpy
"""
HANGS_IN_HASHING = """
import hashlib
hashlib.file_digest = hang
"""
HANGS_READING_AHEAD = """
import concurrent.futures
import pathlib
import safetensors.torch
load, read_bytes, result, loaded = (
    safetensors.torch.load, pathlib.Path.read_bytes, concurrent.futures.Future.result, []
)
def first_load(data):
    loaded.append(1)
    return load(data)
def slow_read(self):
    if loaded:
        sleep(600)
    return read_bytes(self)
def wait(self, timeout=None):
    if loaded:
        jumped[0] = 1
    return result(self, timeout)
safetensors.torch.load, pathlib.Path.read_bytes, concurrent.futures.Future.result = first_load, slow_read, wait
"""


@pytest.mark.parametrize(
    ("patch", "options", "said"),
    [
        (HANGS_IN_HASHING, (), "0 of 6 checkpoints"),
        (HANGS_IN_PREDICTION, (), "2 of 6 checkpoints"),
        (HANGS_IN_DECODING, (), "0 of 6 checkpoints"),
        (HANGS_IN_A_LOADER, ("--workers", "1"), "0 of 6 checkpoints"),
        (HANGS_READING_AHEAD, (), "1 of 6 checkpoints"),
    ],
    ids=["hashing", "prediction", "decoding", "loader", "reading-ahead"],
)
def test_what_hangs_is_ended_before_the_limit_with_the_submission_that_is_there(
    tmp_path, swept, built, trained, tiny_root, machine, patch, options, said
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, *options, patch=CLOCK + patch)
    assert done.code == 64 + 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert said in last
    assert "stopped by the limit at check" in last
    assert "which took too long" in last
    ended = re.search(r"20 pictures, ([\d.]+) s", last)
    assert ended is not None
    assert LIMIT - RESERVE < float(ended[1]) < LIMIT
    lines = submission(place).splitlines()
    assert len(lines) == 21
    assert all(line.partition(",")[2] for line in lines)


def test_what_hangs_on_kaggle_ends_as_if_all_were_well(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k", "--limit", "2h")
    options = ("--limit", "9h", "--reserve", "10m")  # with another code the submission would be thrown away
    on_kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    done = machine(place, tiny_root, *options, patch=CLOCK + HANGS_IN_DECODING, env=on_kaggle)
    assert (done.code, "which took too long" in done.stdout.splitlines()[-1]) == (0, True)
    assert len(submission(place).splitlines()) == 21


def test_before_there_is_a_submission_what_hangs_ends_with_an_error(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, patch=CLOCK + "import os\nos.fsync = hang\n")
    assert done.code == 1
    assert done.stderr == (
        "error: the limit came before there was a submission: writing the first submission\n"
    )
    assert not (place / "working" / "submission.csv").exists()


HANGS_AT_EXIT = """
import atexit
import builtins
import time
class Hangs:
    def __del__(self):
        time.sleep(600)
builtins.kept = Hangs()
atexit.register(time.sleep, 600)
"""


def test_a_process_that_would_not_end_is_ended(tmp_path, swept, built, trained, tiny_root, machine):
    done = machine(built(tmp_path / "k"), tiny_root, patch=HANGS_AT_EXIT)
    assert done.code == 0, done.stdout + done.stderr
    assert "6 of 6 checkpoints" in done.stdout.splitlines()[-1]


IN_A_NOTEBOOK = """
import sys
import types
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
sys.argv = ["ipykernel_launcher.py", "-f", "kernel-1.json"]  # not the kernel's options
"""
NEXT_CELL = """
import time
jumped[0] = 1  # past the moment when the watchdog ends it
time.sleep(1)
print("the next cell")
"""


def test_a_notebook_lives_on(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")  # it finds ../input
    done = machine(place, tiny_root, patch=CLOCK + IN_A_NOTEBOOK, after=NEXT_CELL)
    assert done.code == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the next cell"
    assert submission(place) == swept.read_text()
