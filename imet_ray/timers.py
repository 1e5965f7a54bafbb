"""What is done if a block of code takes too long."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def called_after(seconds: float, function: Callable[[], None]) -> Iterator[None]:
    """Call a function, in another thread, if the block has not ended by then. It does not end the block."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
