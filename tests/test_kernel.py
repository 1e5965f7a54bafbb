"""A kernel, built and run as Kaggle runs it: alone, from its one file, on what lies under the input folder."""

import ast
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from imet_ray.crypto import Secret
from imet_ray.errors import ConfigError
from kernel_builder.runtime.inputs import find_secret

pytestmark = pytest.mark.slow


@dataclass
class Done:
    """How a kernel ended."""

    code: int
    stdout: str
    stderr: str


class Machine:
    """Runs kernels, each in a process of its own, with nothing of ours in it."""

    def __init__(self) -> None:
        clean = {
            k: v
            for k, v in os.environ.items()
            if k not in ("PYTHONPATH", "IMET_RAY_KEY", "IMET_RAY_PASSPHRASE")
        }
        server = Path(__file__).with_name("kernel_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(server)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean,
            cwd="/",
        )

    def __call__(
        self,
        place: Path,
        data: Path,
        *options: str,
        env: dict[str, str] | None = None,
        patch: str = "",
        kill_after: float | None = None,
    ) -> Done:
        given, work = place / "input", place / "working"
        given.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        for name, target in (("weights", place / "datasets"), ("data", data)):
            if not (given / name).exists():
                (given / name).symlink_to(target)
        job = {
            "kernel": str(place / "kernel" / "kernel.py"),
            "argv": ["--input", str(given), *options],
            "cwd": str(work),
            "env": env or {},
            "out": str(place / "out"),
            "err": str(place / "err"),
            "patch": patch,
            "kill_after": kill_after,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return Done(code, (place / "out").read_text(), (place / "err").read_text())


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    found = Machine()
    yield found
    found.process.communicate()


def manifest_of(place: Path) -> dict:
    """What is packed in the kernel."""
    tree = ast.parse((place / "kernel" / "kernel.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MANIFEST":
            return json.loads(
                zlib.decompress(base64.b85decode("".join(ast.literal_eval(node.value).split())))
            )
    raise AssertionError("no manifest")


def submission(place: Path) -> str:
    return (place / "working" / "submission.csv").read_text()


def test_a_kernel_gives_each_picture_the_labels_that_launch_gives_it(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k", "--encrypt", "--key", "file", "--max-dataset-bytes", "1MB")
    assert len(list((place / "datasets").iterdir())) > 2  # files are cut into pieces
    done = machine(place, tiny_root)
    assert done.code == 0, done.stdout + done.stderr
    assert submission(place) == swept.read_text()
    assert "6 of 6 checkpoints, 20 pictures" in done.stdout.splitlines()[-1]
    assert sorted(path.name for path in (place / "working").iterdir()) == ["submission.csv"]
    assert (place / "kernel" / "kernel.py").stat().st_size < 1_000_000


def test_missing_cut_and_altered_files_are_named_before_anything_is_predicted(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    first, second, third = sorted((place / "datasets" / "0").glob("*.safetensors"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    data = bytearray(third.read_bytes())
    data[-1] ^= 1
    third.write_bytes(data)
    done = machine(place, tiny_root)
    assert done.code == 1
    assert f"{first.name} is missing" in done.stderr
    assert f"{second.name} is cut off or another file" in done.stderr
    assert f"{third.name} was altered" in done.stderr
    assert not (place / "working" / "submission.csv").exists()


def test_without_its_key_an_encrypted_kernel_says_so_at_once(monkeypatch, tmp_path):
    for name in ("IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="the weights are encrypted: set IMET_RAY_KEY"):
        find_secret(None, [tmp_path / "other.key"])


def test_pictures_that_cannot_be_read_are_counted_and_have_labels(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    data = tmp_path / "data"
    shutil.copytree(tiny_root, data)
    pictures = sorted((data / "test").iterdir())
    pictures[0].write_bytes(b"no picture")
    pictures[1].unlink()
    done = machine(place, data)
    assert done.code == 64 + 4, done.stdout + done.stderr
    assert "2 pictures could not be read" in done.stdout.splitlines()[-1]
    before, now = swept.read_text().splitlines(), submission(place).splitlines()
    assert [line.partition(",")[0] for line in now] == [line.partition(",")[0] for line in before]
    assert sum(one != two for one, two in zip(before, now, strict=True)) <= 2
    assert all(line.partition(",")[2] for line in now)


SLOW_DISK = """
import pathlib
import time
def write_text(self, text, encoding=None):
    with self.open("wb", buffering=0) as file:  # most of the run is spent within a file
        data = text.encode()
        for start in range(0, len(data), 16):
            file.write(data[start : start + 16])
            time.sleep(1e-3)
pathlib.Path.write_text = write_text
"""


def test_killed_at_20_moments_it_leaves_no_submission_or_a_whole_one(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    began = time.monotonic()
    assert machine(place, tiny_root, patch=SLOW_DISK).code == 0
    whole = time.monotonic() - began
    rows = swept.read_text().splitlines()
    target = place / "working" / "submission.csv"
    left = []
    for delay in np.sort(np.random.default_rng(0).uniform(0, whole, 20)):
        target.unlink(missing_ok=True)
        ended = machine(place, tiny_root, patch=SLOW_DISK, kill_after=float(delay)).code
        left.append(target.exists())
        if target.exists():
            lines = target.read_text().splitlines()
            assert [line.partition(",")[0] for line in lines] == [line.partition(",")[0] for line in rows]
            assert all(line.partition(",")[2] for line in lines)
            assert target.read_text().endswith("\n")
        assert ended in (0, -signal.SIGKILL)
    assert set(left) == {False, True}  # early and late ones


@pytest.mark.parametrize("key", ["embed", "env", "file"])
def test_the_key_reaches_the_kernel_in_each_way_and_stands_nowhere_else(
    tmp_path, swept, built, trained, tiny_root, machine, monkeypatch, capfd, key
):
    if key == "env":
        monkeypatch.setenv("IMET_RAY_KEY", secret := Secret.new().text)
    place = built(tmp_path / "k", "--encrypt", "--key", key)
    embedded = manifest_of(place)["key"]
    assert (embedded is not None) == (key == "embed")
    if key == "embed":
        secret = Secret.parse(embedded).text
    if key == "file":
        secret = (place / "datasets" / "key" / "imet_ray.key").read_text().strip()
        assert (place / "datasets" / "key" / "imet_ray.key").stat().st_mode & 0o077 == 0
    if key == "env":
        assert machine(place, tiny_root).code == 1
        assert "the weights are encrypted: set IMET_RAY_KEY" in (place / "err").read_text()
    done = machine(place, tiny_root, env={"IMET_RAY_KEY": secret} if key == "env" else {})
    assert done.code == 0, done.stderr
    assert submission(place) == swept.read_text()
    said = done.stdout + done.stderr + "".join(capfd.readouterr())
    written = [path for path in place.rglob("*") if path.is_file() and path.name != "imet_ray.key"]
    assert secret not in said
    assert len(written) > 8
    assert not any(secret.encode() in path.read_bytes() for path in written)


def test_a_passphrase_opens_the_weights_and_a_wrong_one_is_refused_by_the_files_name(
    tmp_path, swept, built, trained, tiny_root, machine, monkeypatch
):
    monkeypatch.setenv("IMET_RAY_PASSPHRASE", "correct horse")
    place = built(tmp_path / "k", "--encrypt", "--key", "env")
    done = machine(place, tiny_root, env={"IMET_RAY_PASSPHRASE": "correct horse"})
    assert done.code == 0, done.stderr
    assert submission(place) == swept.read_text()
    (place / "working" / "submission.csv").unlink()
    done = machine(place, tiny_root, env={"IMET_RAY_PASSPHRASE": "wrong horse"})
    assert done.code == 1
    assert re.search(r"[ab]-f0.safetensors.encrypted cannot be decrypted: a wrong passphrase", done.stderr)
    assert not (place / "working" / "submission.csv").exists()


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
        (DYING_LOADER, ("--workers", "1"), "loading in this process"),
        (FULL_DISK, (), "decoding for each checkpoint instead"),
    ],
    ids=["memory", "loader", "disk"],
)
def test_it_goes_on_without_what_fails_and_says_so(
    tmp_path, swept, built, trained, tiny_root, machine, patch, options, said
):
    place = built(tmp_path / "k")
    done = machine(place, tiny_root, *options, patch=patch)
    assert done.code == 64 + 8, done.stdout + done.stderr
    assert said in done.stdout.splitlines()[-1]
    assert submission(place) == swept.read_text()
    done = machine(place, tiny_root, *options, patch=patch, env={"KAGGLE_KERNEL_RUN_TYPE": "Batch"})
    assert (done.code, said in done.stdout.splitlines()[-1]) == (0, True)  # another code throws it away


def test_pictures_are_decoded_once_for_all_checkpoints_of_one_size(
    tmp_path, swept, built, trained, tiny_root, machine
):
    place = built(tmp_path / "k")
    count = """
import PIL.ImageFile
real = PIL.ImageFile.ImageFile.load
def load(self):
    if self.tile:
        print("decoded", flush=True)
    return real(self)
PIL.ImageFile.ImageFile.load = load
"""
    done = machine(place, tiny_root, patch=count)
    assert done.code == 0, done.stderr
    assert done.stdout.count("decoded") == 20  # six checkpoints
