"""The head of a cluster that we join: whether it is there, and stays there."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator

from imet_ray.errors import ConfigError

ANSWER_S = 5.0  # that a head has to answer
LOOK_S = 5.0
SHOW_CURSOR = "\x1b[?25h"
GONE_S = 40.0  # without an answer; after 60 Ray itself ends the process, in its own words


def refuse_nobody(address: str) -> None:
    """Ask whether anyone listens: Ray itself would try for minutes.

    Raises:
        ConfigError: if nobody does, or the address is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigError(f"--address takes auto or HOST:PORT, got {address[:60]!r}")
    try:
        _knock(address)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"nobody answers at {address} ({error}): start a Ray with `ray start --head`, or leave out --address"
        ) from None


@contextlib.contextmanager
def watched(address: str) -> Iterator[None]:
    """End this process with one line when the head is lost.

    Nothing can be asked of Ray then, not even to shut down; what was trained is in the store.
    """
    over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(LOOK_S):
            with contextlib.suppress(OSError):
                _knock(address)
                heard = time.monotonic()
            silent = time.monotonic() - heard
            if silent >= GONE_S and not over.is_set():
                sys.stdout.flush()
                shown = SHOW_CURSOR if sys.stderr.isatty() else ""  # a live table hides it
                print(
                    f"{shown}error: the head of the cluster ({address}) has not answered for {silent:.0f} s: start the "
                    "cluster again, then the same command continues",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True, name="head")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
