"""launch.py --serve-tags with a real ensemble on a real Ray: its answers, listeners, killed replicas, and its end."""

import concurrent.futures
import ipaddress
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from processes import below, wait_for

import imet_ray
import launch
from imet_ray.tagging.tables import TABLES

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
EXIFTOOL = shutil.which("exiftool")
CLIENTS = 8
KILLS = 3


@dataclass
class Server:
    """A server that runs, and what it may be asked."""

    process: subprocess.Popen
    address: str
    pictures: list[Path]
    expected: list[tuple[list[str], list[float]]]  # labels and probabilities of each picture

    def replicas(self) -> list[int]:
        return [pid for pid, title in below(self.process.pid).items() if "ServeReplica" in title]

    def is_right(self, client: httpx.Client, i: int) -> bool:
        """Have a picture tagged; whether the answer is its own."""
        answer = client.post(f"{self.address}/tag", content=self.pictures[i].read_bytes())
        assert answer.status_code == 200, answer.text
        labels, probabilities = self.expected[i]
        found = answer.json()["pictures"][0]["labels"]
        near = pytest.approx(probabilities, abs=2e-3)
        return [one["name"] for one in found] == labels and [one["probability"] for one in found] == near


@pytest.fixture(scope="module")
def server(swept, trained, tiny_root, tmp_path_factory) -> Iterator[Server]:
    """The ensemble `k`, served."""
    pictures = sorted((tiny_root / "test").iterdir())
    table = imet_ray.load(swept.parent).predict(pictures)
    expected = list(zip(table.labels, table.probabilities, strict=True))
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("w") as out:
        command = [
            sys.executable,
            "launch.py",
            "--serve-tags",
            "k",
            "--name",
            "r",
            "--port",
            "0",
            *trained.where,
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        told = wait_for(lambda: log.read_text() if "http://" in log.read_text() else "", process, "server")
        address = next(word for word in told.split() if word.startswith("http://"))
        yield Server(process, address, pictures, expected)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        # Ray tells of replicas that were killed
        lines = [line for line in log.read_text().splitlines() if not line.startswith("ray: A worker died")]
        assert lines == [f"{address}  (Ctrl-C ends it)"]
    finally:
        process.kill()
        process.wait()


def test_served_pictures_get_the_labels_of_the_tagger(server):
    with httpx.Client(timeout=120) as client:
        assert all(server.is_right(client, i) for i in range(len(server.pictures)))
        files = [("picture", (path.name, path.read_bytes())) for path in server.pictures]
        many = client.post(f"{server.address}/tag", files=files).json()["pictures"]
        assert [one["name"] for one in many] == [path.name for path in server.pictures]
        assert [[label["name"] for label in one["labels"]] for one in many] == [
            one for one, _ in server.expected
        ]
        health = client.get(f"{server.address}/healthz").json()
    assert health["pictures_per_batch"] > 1
    assert health["model_seconds"] > 0


def test_what_waits_for_busy_replicas_is_tagged_in_large_batches(server):
    """Ray's own queues would hand out two or three pictures at a time."""
    files = [("picture", (path.name, path.read_bytes())) for path in server.pictures]
    files = (files * 64)[:64]

    def ask(_: int) -> int:
        with httpx.Client(timeout=300) as client:
            return client.post(f"{server.address}/tag?top=0", files=files).status_code

    before = counted(server)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {200}
    after = counted(server)
    assert after[0] - before[0] == 6 * 64
    assert (after[0] - before[0]) / (after[1] - before[1]) > 10


def test_downloads_are_what_tag_writes(server, trained, tmp_path):
    with httpx.Client(timeout=120) as client:
        files = [("picture", (path.name, path.read_bytes())) for path in server.pictures]
        found = client.post(f"{server.address}/tag", files=files).json()["pictures"]
        chosen = [
            {
                "name": one["name"],
                "labels": [
                    {"name": label["name"], "probability": label["probability"]} for label in one["labels"]
                ],
            }
            for one in found
        ]
        served = client.post(f"{server.address}/csv", json={"pictures": chosen})
        sidecar = client.post(f"{server.address}/xmp", json={"pictures": chosen[:1]})
    (tmp_path / "served.csv").write_bytes(served.content)
    asked = ["--tag", *map(str, server.pictures), "--with", "r/k", "--out", str(tmp_path / "tag.csv")]
    assert launch.main([*asked, *trained.where]) == 0
    tagged, downloaded = (TABLES[".csv"].read(tmp_path / name) for name in ("tag.csv", "served.csv"))
    assert [Path(row.path).name for row in tagged] == [row.path for row in downloaded]
    assert [row.labels for row in tagged] == [row.labels for row in downloaded]
    assert {(row.decided_by, row.tagged_by) for row in tagged} == {
        (row.decided_by, row.tagged_by) for row in downloaded
    }
    for one, other in zip(tagged, downloaded, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=2e-3)
    if EXIFTOOL is not None:
        (tmp_path / "a.xmp").write_bytes(sidecar.content)
        told = subprocess.run(
            [EXIFTOOL, "-j", "-Subject", tmp_path / "a.xmp"], check=True, capture_output=True, text=True
        )
        said = json.loads(told.stdout)[0].get("Subject", [])
        assert ([said] if isinstance(said, str) else said) == list(downloaded[0].labels)


def test_what_the_server_starts_listens_on_loopback_alone(server):
    pids = {server.process.pid, *below(server.process.pid)}
    assert server.replicas()
    listening = [address for pid in pids for address in listeners(pid)]
    assert len(listening) > 5
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_no_request_is_lost_while_replicas_are_killed(server):
    numbers, over = random.Random(0), threading.Event()
    before, _ = counted(server)

    def ask(seed: int) -> tuple[int, int]:
        mine, right, wrong = random.Random(seed), 0, 0
        with httpx.Client(timeout=300) as client:
            while not over.is_set():
                good = server.is_right(client, mine.randrange(len(server.pictures)))
                right, wrong = right + good, wrong + (not good)
        return right, wrong

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, seed) for seed in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                victim = wait_for(server.replicas, server.process, "replica")
                time.sleep(numbers.uniform(0.05, 1.0))  # a random moment, not a wait for anything
                os.kill(numbers.choice(victim), signal.SIGKILL)
            for pid in wait_for(server.replicas, server.process, "replica"):  # all at once
                os.kill(pid, signal.SIGKILL)
            dead = set(server.replicas())
            wait_for(lambda: set(server.replicas()) - dead, server.process, "fresh replica")
            with httpx.Client(timeout=300) as client:
                assert server.is_right(client, 0)
        finally:
            over.set()
        found = [one.result() for one in asked]
    assert sum(wrong for _, wrong in found) == 0
    assert sum(right for right, _ in found) > CLIENTS
    after, _ = counted(server)
    assert after - before == sum(right for right, _ in found) + 1  # none was answered twice


def counted(server: Server) -> tuple[int, float]:
    """How many pictures were answered since the start, and in how many batches."""
    told = httpx.get(f"{server.address}/healthz", timeout=60)
    assert told.status_code == 200, told.text
    pictures = told.json()["pictures"]
    return pictures, pictures / (told.json()["pictures_per_batch"] or 1)


def listeners(pid: int) -> set[str]:
    """The addresses that a process listens on, IPv4's as such."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(entry))  # noqa: PTH115
        except OSError:
            continue
    found = set()
    for table, words in (("tcp", 1), ("tcp6", 4)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                found.add(shown(bytes.fromhex(local.split(":")[0]), words))
    return found


def shown(address: bytes, words: int) -> str:
    """The kernel's hexadecimal address as people write it."""
    swapped = b"".join(address[4 * i : 4 * i + 4][::-1] for i in range(words))
    found = ipaddress.ip_address(swapped)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
