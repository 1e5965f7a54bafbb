"""Runs kernels in forked processes: the libraries are imported once, which else is most of a run of tiny models.

Reads one JSON object per line: `kernel`, `argv`, `cwd`, `env`, `out` (file for stdout), `err`, `patch` and `after`
(Python that is run before and after the kernel, in its process), and `kill_after` (seconds, then SIGKILL). Answers each
with a line, the exit code. None of our own modules is imported here: a kernel brings its own.
"""

import json
import os
import runpy
import signal
import sys
import time

import albumentations  # noqa: F401
import cryptography.hazmat.primitives.ciphers.aead
import cryptography.hazmat.primitives.kdf.scrypt  # noqa: F401
import cv2
import pydantic  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.special  # noqa: F401
import timm  # noqa: F401
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)


def child(job: dict) -> None:
    os.chdir(job["cwd"])
    for stream, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    os.environ.update(job["env"])
    sys.argv = [job["kernel"], *job["argv"]]
    code = 0
    try:
        exec(job["patch"], {})
        runpy.run_path(job["kernel"], run_name="__main__")
        exec(job["after"], {})
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 99
    sys.exit(code)  # as Python ends any process


for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        child(job)
    if job["kill_after"] is not None:
        time.sleep(job["kill_after"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
