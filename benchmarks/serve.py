"""Pictures a second of `launch.py --serve-tags`, against a plain FastAPI and torch loop of the same ensemble.

    uv run launch.py --sweep
    uv run python -m benchmarks.serve blend

Each client sends a picture, waits for its labels and sends the next one. The peer decodes a picture and asks the same
models about it, one picture at a time, with torch's own threads; or several such processes share the cores
(`--peers 1,2`). All run one after the other, in each round, and their answers are compared.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile

from imet_ray.cores import usable_cores
from imet_ray.models.checkpoint import load_tagger
from imet_ray.prediction.ensemble import EnsembleMember, combined, in_order
from imet_ray.prediction.predict import Inference, predict_batch
from imet_ray.prediction.prepared import Prepared, Preparer, Sight, sights_of
from imet_ray.prediction.tagger_files import find_ensemble
from imet_ray.storage.experiment import read_experiment
from imet_ray.storage.runs import Runs

START_S = 300
COMPARED = 8  # pictures whose labels are compared
WHERE, THREADS = "IMET_BENCHMARK_ENSEMBLE", "IMET_BENCHMARK_THREADS"  # for the peer's processes


@dataclass
class Measured:
    """What some clients saw."""

    rates: list[float] = field(default_factory=list)  # pictures/s, a value per round
    waits: list[float] = field(default_factory=list)  # seconds per picture, of all rounds
    shares: list[float] = field(default_factory=list)  # of the cores' time that models computed

    def row(self, ours: "Measured") -> list[str]:
        """The cells of a table."""
        ratio = statistics.median(one / other for one, other in zip(ours.rates, self.rates, strict=True))
        waits = [f"{1000 * float(np.quantile(self.waits, q)):.0f}" for q in (0.5, 0.95, 0.99)]
        rate = statistics.median(self.rates)
        return [f"{rate:.1f}", *waits, f"{statistics.median(self.shares):.0%}", f"{ratio:.2f}"]


class PlainTagger:
    """The ensemble as a loop: each of its checkpoints is asked about a picture, one after the other."""

    def __init__(self, where: str) -> None:
        self.files = find_ensemble(where, Runs(Path("runs")))
        self.ensemble, cpu = self.files.ensemble, torch.device("cpu")
        loaded = {trial_id: load_tagger(path, cpu) for trial_id, path in self.files.checkpoints.items()}
        self.models = {trial_id: model.eval() for trial_id, (model, _) in loaded.items()}
        self.how, sights = {}, []
        for trial_id, (_, info) in loaded.items():
            how = self.how[trial_id] = Inference.of(info.spec.recipe, cpu, views=self.ensemble.views)
            sights.append(Sight(info.spec.pack_short_side, how.image_size, how.views))
        self.prepare = Preparer(sights_of(sights))
        self.sight = dict(zip(loaded, map(self.prepare.sights.index, sights), strict=True))

    def tag(self, picture: Prepared) -> list[dict[str, Any]]:
        """Labels with their probabilities."""
        seen = [torch.from_numpy(views).permute(0, 3, 1, 2)[None] for views in picture.seen]

        def of(member: EnsembleMember) -> np.ndarray:
            folds = [
                predict_batch(self.models[one], seen[self.sight[one]], self.how[one]) for one in member.trials
            ]
            return np.mean([probs.astype(np.float32) for probs in folds], axis=0)

        scores = combined(self.ensemble, ((member, of(member)) for member in in_order(self.ensemble)))
        calibration = self.ensemble.calibration
        probs = scores if calibration is None else calibration.applied(scores)
        chosen = np.flatnonzero(self.ensemble.decoder.decode(scores)[0])
        return [
            {"name": self.files.label_names[c], "probability": round(float(probs[0, c]), 4)}
            for c in sorted(chosen, key=lambda c: -scores[0, c])
        ]


def peer() -> FastAPI:
    """The plain way: decode, predict, answer."""
    torch.set_num_threads(int(os.environ[THREADS]))
    tagger, app = PlainTagger(os.environ[WHERE]), FastAPI()

    @app.post("/tag")
    async def tag(picture: UploadFile) -> dict[str, Any]:
        prepared = tagger.prepare(await picture.read(), name=picture.filename or "")
        began = time.monotonic()
        labels = tagger.tag(prepared)
        seconds = time.monotonic() - began
        return {"pictures": [{"name": picture.filename, "labels": labels}], "model_seconds": seconds}

    return app


def serve_peer(port: int, processes: int) -> None:
    """The peer, in so many processes."""
    uvicorn.run("benchmarks.serve:peer", factory=True, port=port, workers=processes, log_level="error")


def form(name: str, data: bytes) -> tuple[bytes, str]:
    """A form with one file: its bytes, and its type."""
    head = f'--x\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


@dataclass(frozen=True)
class Server:
    """What is measured."""

    name: str
    command: list[str]
    port: int
    environment: dict[str, str]
    threads: int  # that compute together in a process


def servers(ensemble: str, run: str, peers: list[int], where: Path) -> list[Server]:
    """Ours, then each peer."""
    cores = usable_cores()

    def free_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return int(listener.getsockname()[1])

    port = free_port()
    ours = [sys.executable, "launch.py", "--serve-tags", ensemble, "--name", run, "--port", str(port)]
    found = [Server("launch.py --serve-tags", ours, port, {}, cores // min(2, cores))]
    for processes in peers:
        port, threads = free_port(), max(1, cores // processes)
        command = [sys.executable, "-m", "benchmarks.serve", "--peer", str(port), str(processes)]
        name = f"FastAPI + torch, {processes} x {threads} threads"
        found.append(Server(name, command, port, {WHERE: str(where), THREADS: str(threads)}, threads))
    return found


def get(port: int, path: str) -> dict[str, Any]:
    """A JSON answer; empty where there is none."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)) as client:
        client.request("GET", path)
        answer = client.getresponse()
        text = answer.read()
        return json.loads(text) if answer.status == 200 else {}


@contextlib.contextmanager
def running(server: Server) -> Iterator[None]:
    """The server, from when it answers."""
    process = subprocess.Popen(
        server.command,
        env=os.environ | server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                get(server.port, "/openapi.json")
                break
            time.sleep(0.5)
        else:
            raise SystemExit(f"it did not start: {' '.join(server.command)}")
        yield
    finally:
        process.terminate()
        process.wait()


def tagged(client: http.client.HTTPConnection, body: tuple[bytes, str]) -> dict[str, Any]:
    """The answer to a picture."""
    client.request("POST", "/tag?top=0", body[0], {"Content-Type": body[1]})
    answer = client.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"a request was answered with {answer.status}: {text[:200]!r}")
    found: dict[str, Any] = json.loads(text)
    return found


def measure(
    server: Server, bodies: list[tuple[bytes, str]], clients: int, seconds: float, found: Measured
) -> None:
    """Have pictures tagged by so many clients for so long."""
    waits: list[float] = []
    spent = [0.0] * clients  # by the peer's models
    before, began = get(server.port, "/healthz").get("model_seconds"), time.monotonic()

    def ask(first: int) -> None:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_S)
        ) as client:
            i = first
            while (start := time.monotonic()) < began + seconds:
                spent[first] += tagged(client, bodies[i % len(bodies)]).get("model_seconds", 0.0)
                waits.append(time.monotonic() - start)
                i += clients

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    in_models = sum(spent) if before is None else get(server.port, "/healthz")["model_seconds"] - before
    found.rates.append(len(waits) / took)
    found.waits += waits
    found.shares.append(in_models * server.threads / (took * usable_cores()))


def answers(server: Server, bodies: list[tuple[bytes, str]]) -> list[list[tuple[str, float]]]:
    """The labels of some pictures; the first ones warm the server up."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_S)) as client:
        found = [tagged(client, body)["pictures"][0]["labels"] for body in bodies]
    return [[(one["name"], one["probability"]) for one in labels] for labels in found]


def differing(one: list[list[tuple[str, float]]], other: list[list[tuple[str, float]]]) -> int:
    """Pictures whose labels differ, or their probabilities by more than 0.001."""
    same = (
        [a for a, _ in left] == [b for b, _ in right]
        and all(abs(p - q) <= 1e-3 for (_, p), (_, q) in zip(left, right, strict=True))
        for left, right in zip(one, other, strict=True)
    )
    return sum(not equal for equal in same)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ensemble", nargs="?", default="blend")
    parser.add_argument("--name", default="demo", help="the run")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="1", help="in how many processes the peer runs")
    parser.add_argument("--peer", nargs=2, type=int, metavar=("PORT", "PROCESSES"), help="be the peer")
    args = parser.parse_args()
    if args.peer:
        return serve_peer(*args.peer)
    run = Runs(Path("runs")).open(args.name)
    pictures = sorted((Path(read_experiment(run).data_root) / "test").iterdir())[:256]
    bodies = [form(path.name, path.read_bytes()) for path in pictures]
    counts = [int(n) for n in args.clients.split(",")]
    where = run.ensemble(args.ensemble).root
    tested = servers(args.ensemble, args.name, [int(n) for n in args.peers.split(",")], where)
    found = {(server.name, n): Measured() for server in tested for n in counts}
    said: dict[str, list[list[tuple[str, float]]]] = {}
    for _ in range(args.rounds):
        for server in tested:
            with running(server):
                said[server.name] = answers(server, bodies[:COMPARED])
                for n in counts:
                    measure(server, bodies, n, args.seconds, found[server.name, n])
                    print(
                        f"{server.name}, {n} clients: {found[server.name, n].rates[-1]:.1f}/s",
                        file=sys.stderr,
                    )
    ours, *peers = tested
    for other in peers:
        print(
            f"{differing(said[ours.name], said[other.name])} of {COMPARED} pictures differ from {other.name}"
        )
    print("| server | clients | pictures/s | p50 ms | p95 ms | p99 ms | in models | ours / it |")
    print("|---|---|---|---|---|---|---|---|")
    for n in counts:
        for server in tested:
            print(f"| {server.name} | {n} | {' | '.join(found[server.name, n].row(found[ours.name, n]))} |")


if __name__ == "__main__":
    main()
