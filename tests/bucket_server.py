"""A real server that speaks S3, on loopback, behind a proxy that counts and does harm."""

import contextlib
import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

START_S = 60.0
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please slow down</Message></Error>"

FULL = "ten-thousand"  # a bucket with as many trials; by way of the network writing them would take minutes
FILL = f"""
from moto.s3.models import s3_backends
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("{FULL}", "us-east-1")
for i in range(10_000):
    backend.put_object("{FULL}", f"runs/r/trials/{{i:016x}}/best.safetensors", b"")
"""

Harm = Callable[[str, str], str | None]  # of method and path: "slow", "reset", "half", "lost" or None


@dataclass
class Proxy:
    """Stands before the server."""

    address: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    harm: Harm = lambda method, path: None
    harmed: int = 0

    def count(self, method: str, part: str = "") -> int:
        return sum(one == method and part in path for one, path in self.requests)

    def listings(self) -> int:
        return self.count("GET", "list-type=2")

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
            proxy.requests.append((self.command, self.path))
            harm = proxy.harm(self.command, self.path)
            proxy.harmed += harm is not None
            if harm == "reset":
                return self.reset()
            if harm == "slow":
                return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            if harm == "half":
                with contextlib.suppress(OSError), socket.create_connection(backend) as half:
                    head = "".join(f"{k}: {v}\r\n" for k, v in self.headers.items() if k.lower() != "expect")
                    half.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode())
                    half.sendall(body[: len(body) // 2])
                return self.reset()
            connection = http.client.HTTPConnection(*backend, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
            connection.request(self.command, self.path, body, headers)
            found = connection.getresponse()
            data = found.read()
            connection.close()
            if harm == "lost":  # done, and nobody hears of it
                return self.reset()
            self.answer(found.status, found.getheaders(), data, found.getheader("Content-Length"))

        def answer(self, status: int, headers: Any, data: bytes, length: str | None = None) -> None:
            self.send_response_only(status)
            for key, value in headers:
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.send_header(
                "Content-Length", length if self.command == "HEAD" and length else str(len(data))
            )
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
def serve() -> Iterator[Proxy]:
    """Server and proxy, both on loopback."""
    port = _free_port()
    code = FILL + f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        proxy = Proxy("")
        front = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy, ("127.0.0.1", port)))
        front.daemon_threads = True
        proxy.address = f"http://127.0.0.1:{front.server_address[1]}"
        assert urlsplit(proxy.address).port
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield proxy
        front.shutdown()
        front.server_close()
    finally:
        server.kill()
        server.wait()
