"""Servers that speak what object stores speak, on loopback, behind a proxy that counts and does harm."""

import contextlib
import http.client
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from bucket_stores import STORES, AzureStore, S3Store

START_S = 60.0

Harm = Callable[[str, str], str | None]  # of method and path: what `do` knows, or None


@dataclass
class Proxy:
    """Stands before the server."""

    store: S3Store | AzureStore
    address: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path, without %
    harm: Harm = lambda method, path: None
    harmed: int = 0

    @property
    def scheme(self) -> str:
        return self.store.scheme

    @property
    def environment(self) -> dict[str, str]:
        """Where the client finds it."""
        return self.store.environment(self.address)

    def count(self, method: str, part: str = "") -> int:
        return sum(one == method and part in path for one, path in self.requests)

    def listings(self) -> int:
        return self.count("GET", self.store.listing)

    def outage(self, seconds: float, kind: str = "reset") -> None:
        """From now on everything fails, for so long."""
        until = time.monotonic() + seconds
        self.harm = lambda method, path: kind if time.monotonic() < until else None


def _handler(proxy: Proxy, backend: tuple[str, int]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else 40 ms an answer

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.requests.append((self.command, unquote(self.path)))
            harm = proxy.harm(self.command, self.path)
            proxy.harmed += harm is not None
            if harm == "reset":
                return self.reset()
            if harm in ("slow", "401", "403"):
                status, kind, data = proxy.store.refusal(harm, proxy.harmed)
                return self.answer(status, [("Content-Type", kind)], data)
            if harm == "half":
                with contextlib.suppress(OSError), socket.create_connection(backend) as half:
                    head = "".join(f"{k}: {v}\r\n" for k, v in self.headers.items() if k.lower() != "expect")
                    half.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode())
                    half.sendall(body[: len(body) // 2])
                return self.reset()
            connection = http.client.HTTPConnection(*backend, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
            path, asked = proxy.store.asked(self.path, headers.items())
            connection.request(self.command, path, body, dict(asked))
            found = connection.getresponse()
            told, data = proxy.store.answered(found.getheaders()), found.read()
            connection.close()
            if harm == "lost" or (harm == "cut" and self.command == "HEAD"):  # done, and nobody hears of it
                return self.reset()
            if harm == "cut":  # in the middle of the answer
                with contextlib.suppress(OSError):
                    self.answer(found.status, told, data[: len(data) // 2], str(len(data)))
                    self.wfile.flush()
                return self.reset()
            self.answer(found.status, told, data, found.getheader("Content-Length"))

        def answer(self, status: int, headers: Any, data: bytes, length: str | None = None) -> None:
            self.send_response_only(status)
            for key, value in headers:
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *args: Any) -> None:
            pass

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    return Handler


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serve(scheme: str, folder: Path, *, trials: int = 0) -> Iterator[Proxy]:
    """Server and proxy, both on loopback.

    Args:
        folder: an empty one, for what the server has from the start.
        trials: so many in the bucket FULL.
    """
    port = _free_port()
    proxy = Proxy(STORES[scheme](port))
    trials = min(trials, proxy.store.most)
    if proxy.store.missing:
        pytest.skip(proxy.store.missing)
    front = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy, ("127.0.0.1", port)))
    front.daemon_threads = True
    proxy.address = f"http://127.0.0.1:{front.server_address[1]}"
    command = proxy.store.command(folder, trials)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        proxy.store.fill(trials)
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield proxy
        front.shutdown()
    finally:
        front.server_close()
        server.kill()
        server.wait()
