"""A kernel on a machine where something fails: it leaves a submission and says what happened."""

import pytest
from kernel_machine import submission

pytestmark = pytest.mark.slow

OUT_OF_MEMORY = """
import torch
real = torch.Tensor.sigmoid
def sigmoid(self):
    if len(self) > 8:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    return real(self)
torch.Tensor.sigmoid = sigmoid
"""
DYING_LOADER = """
import os
import torch
real = torch.from_numpy
def from_numpy(array):
    if torch.utils.data.get_worker_info() is not None:
        os._exit(9)
    return real(array)
torch.from_numpy = from_numpy
"""
OUT_OF_CUBLAS = OUT_OF_MEMORY.replace(
    'torch.cuda.OutOfMemoryError("CUDA out of memory")',
    'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")',
)
NO_LOADER = """
import errno
import multiprocessing.process
def start(self):
    raise OSError(errno.ENOMEM, "Cannot allocate memory")
multiprocessing.process.BaseProcess.start = start
"""
FULL_DISK = """
import errno
import os
def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")
os.posix_fallocate = full
"""


@pytest.mark.parametrize(
    ("patch", "options", "said"),
    [
        (OUT_OF_MEMORY, (), "out of GPU memory: predicting in batches of "),
        (OUT_OF_CUBLAS, (), "out of GPU memory: predicting in batches of "),
        (DYING_LOADER, ("--workers", "1"), "loading in this process"),
        (NO_LOADER, ("--workers", "1"), "loading in this process"),
        (FULL_DISK, (), "decoding for each checkpoint instead"),
    ],
    ids=["memory", "cublas", "loader", "no-loader", "disk"],
)
def test_it_goes_on_without_what_fails_and_says_so(
    tmp_path, swept, built, trained, tiny_root, machine, patch, options, said
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, *options, patch=patch)
    assert done.code == 64 + 8, done.stdout + done.stderr
    assert said in done.stdout.splitlines()[-1]
    assert submission(place) == swept.read_text()


def test_of_two_competitions_the_one_that_is_not_used_is_named(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    other = place / "input" / "other"
    (other / "test").mkdir(parents=True)
    (other / "sample_submission.csv").write_text("id,attribute_ids\nz,0\n")
    done = machine(place, tiny_root)
    assert done.code == 64 + 8, done.stdout + done.stderr
    said = f"the pictures of {place / 'input' / 'data'}, not those of {other}"
    assert done.stdout.splitlines()[0] == said
    assert done.stdout.splitlines()[-1].endswith(said)
    assert submission(place) == swept.read_text()


BROKEN_GPU = """
import torch
def fails(*args, **kwargs):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
torch.cuda.is_available = lambda: True
torch.nn.Conv2d.to = fails
"""


def test_a_gpu_that_torch_has_no_code_for_is_left_alone(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, patch=BROKEN_GPU)
    assert done.code == 64 + 8, done.stdout + done.stderr
    assert "the GPU cannot be used (CUDA error: no kernel image" in done.stdout.splitlines()[-1]
    assert "on cpu" in done.stdout
    assert submission(place) == swept.read_text()


def test_an_older_submission_is_left_where_weights_are_missing(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    next((place / "datasets" / "0").glob("*.safetensors")).unlink()
    (place / "working").mkdir()
    (place / "working" / "submission.csv").write_text("mine")
    assert machine(place, tiny_root).code == 1
    assert submission(place) == "mine"


NO_THREADS = """
import threading
real = threading.Thread.start
def start(self):
    if "_read_into" in repr(self._target):
        raise RuntimeError("can't start new thread")
    return real(self)
threading.Thread.start = start
"""


def test_without_threads_weights_are_read_here(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, patch=NO_THREADS)
    assert done.code == 0, done.stdout + done.stderr
    assert submission(place) == swept.read_text()


BROKEN_MODEL = """
import torch
real = torch.Tensor.sigmoid
calls = []
def sigmoid(self):
    calls.append(1)
    if len(calls) == 1:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    return real(self)
torch.Tensor.sigmoid = sigmoid
"""


def test_a_models_fault_is_not_blamed_on_the_loaders(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, "--workers", "1", patch=BROKEN_MODEL)
    assert done.code == 64 + 2, done.stdout + done.stderr
    assert "5 of 6 checkpoints" in done.stdout.splitlines()[-1]
    assert "loader" not in done.stdout


DISK_FILLS = """
import errno
import os
real, calls = os.replace, []
def replace(source, target):
    if str(target).endswith("submission.csv"):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
    return real(source, target)
os.replace = replace
"""


def test_a_disk_that_fills_up_leaves_the_submission_before_and_says_so(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, "--timing", "/proc/timing.json", patch=DISK_FILLS)
    assert done.code == 64 + 8 + 16, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("submission.csv: 2 of 6 checkpoints")
    assert "the last predictions could not be written: StoreError: disk full while writing" in last
    assert "cannot write /proc/timing.json" in last
    assert len(submission(place).splitlines()) == 21


BROKEN_WEIGHTS = """
import safetensors.torch
def load(data):
    raise ValueError("broken")
safetensors.torch.load = load
"""


def test_where_no_checkpoint_can_be_used_it_fails_on_kaggle_too(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, patch=BROKEN_WEIGHTS, env={"KAGGLE_KERNEL_RUN_TYPE": "Batch"})
    assert done.code == 64 + 2, done.stdout + done.stderr
    assert "no checkpoint could be used" in done.stdout.splitlines()[-1]
    assert len(submission(place).splitlines()) == 21


NO_CRYPTOGRAPHY = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
    del sys.modules[name]
sys.modules["cryptography"] = None
"""


def test_encrypted_weights_without_cryptography_are_one_line(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k", "--encrypt")
    done = machine(place, tiny_root, patch=NO_CRYPTOGRAPHY)
    assert done.code == 1
    assert done.stderr.startswith(
        "error: the weights are encrypted, and this machine lacks the package cryptography"
    )
    assert len(done.stderr.splitlines()) == 1


NO_TIMM = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
    del sys.modules[name]
sys.modules["timm"] = None
"""


def test_a_package_that_is_not_there_is_one_line(tmp_path, swept, built, trained, tiny_root, machine):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, patch=NO_TIMM)
    assert done.code == 1
    assert done.stderr == "error: this machine lacks the package timm, which the kernel needs: install it\n"
