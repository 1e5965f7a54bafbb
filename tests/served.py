"""An ensemble that is served without models: a picture's colour says its labels."""

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from imet_ray.prediction.prepared import Prepared, Preparer, Sight
from imet_ray.serving.app import Served
from imet_ray.serving.limits import Limits
from imet_ray.serving.tagged import Tagged

SMALL = Limits(pictures=3, picture_bytes=2000, request_bytes=5000, pixels=10_000, waiting_bytes=60_000)
LABELS = ("red", "green", "<script>alert(1)</script>", "tag & more")  # blue is the third


def png(
    colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG"
) -> bytes:
    """A picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


async def tag_by_colour(prepared: Prepared) -> Tagged:
    """Red, green and blue are labels where they are bright."""
    await asyncio.sleep(0)
    colour = prepared.seen[0].reshape(-1, 3).mean(0) / 255
    probs = np.append(0.05 + 0.9 * colour, 0.01).astype(np.float32)
    return Tagged(probs, [int(c) for c in np.argsort(-probs) if probs[c] > 0.5], 0.001, 0.5)


async def ready() -> bool:
    return True


def served(**changes) -> Served:
    """The ensemble, with changes of one's own."""
    preparer = Preparer((Sight(32, 16, ("centre",)),))
    settings = {
        "name": "colours",
        "label_ids": [str(i) for i in range(len(LABELS))],
        "labels": LABELS,
        "decided_by": "brightness",
        "tagged_by": "colours 0123456789",
        "prepare": preparer,
        "tag": tag_by_colour,
        "ready": ready,
    }
    return Served(**settings | changes)


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """A real server in a thread; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@contextlib.contextmanager
def asking(app: FastAPI, **options) -> Iterator[httpx.Client]:
    """A client of a real server. Args: options: of the client."""
    with listening(app) as address, httpx.Client(base_url=address, timeout=30, **options) as client:
        yield client


def refused(answer: httpx.Response, status: int) -> str:
    """The one line that a refused request is answered with."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    text = answer.json()["error"]
    assert "\n" not in text
    return text
