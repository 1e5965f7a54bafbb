"""Runs kernels, each in a process of its own, with nothing of ours in it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Done:
    """How a kernel ended."""

    code: int
    stdout: str
    stderr: str


class Machine:
    """Starts them from a server that has imported what they need."""

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
        after: str = "",
        kill_after: float | None = None,
    ) -> Done:
        given, work = place / "input", place / "working"
        given.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        for name, target in (("weights", place / "datasets"), ("data", data)):
            if not (given / name).is_symlink():
                (given / name).symlink_to(target)
        job = {
            "kernel": str(place / "kernel" / "kernel.py"),
            "argv": ["--input", str(given), *options],
            "cwd": str(work),
            "env": env or {},
            "out": str(place / "out"),
            "err": str(place / "err"),
            "patch": patch,
            "after": after,
            "kill_after": kill_after,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return Done(code, (place / "out").read_text(), (place / "err").read_text())

    def stop(self) -> None:
        self.process.communicate()


def submission(place: Path) -> str:
    return (place / "working" / "submission.csv").read_text()
