"""A thread beside the prediction: says every minute what is being done, and ends the process where nothing else would.

Between two batches the prediction looks at the clock itself. Within a hung read, a hung loader or an endless packing it
cannot; there the process is ended in the middle of the reserve, with the submission that is written.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable

from imet_ray.units import clock
from kernel_builder.runtime.schedule import Deadline

SAY_EVERY = 60.0  # seconds
LOOK_EVERY = 0.2


class Watch:
    """Runs from `start` to `stop`."""

    def __init__(
        self, deadline: Deadline, grace: float, end: Callable[[str], int], say: Callable[[str], None]
    ) -> None:
        """
        Args:
            grace: seconds after the deadline at which the process is ended.
            end: takes what was being done, prints the last lines, and gives the exit code.
            say: prints a line.
        """
        self.deadline, self.grace, self.end, self.say = deadline, grace, end, say
        self.doing = "starting"
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def tell(self, doing: str) -> None:
        """Take note of what is being done."""
        self.doing = doing

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """From here on, nothing ends the process."""
        with self._ending:
            self._over.set()

    def _look(self) -> None:
        said = self.deadline.clock()
        while not self._over.wait(LOOK_EVERY):
            if self.deadline.left() < -self.grace:
                with self._ending:
                    if not self._over.is_set():
                        self._exit()
            if self.deadline.clock() - said >= SAY_EVERY:
                said = self.deadline.clock()
                left = max(0.0, self.deadline.left())
                self.say(f"{clock(self.deadline.elapsed())}  {self.doing}; {clock(left)} left")

    def _exit(self) -> None:
        code = 1
        try:
            code = self.end(self.doing)
            sys.stdout.flush()
            sys.stderr.flush()
            for child in multiprocessing.active_children():  # loaders
                child.kill()
        finally:
            os._exit(code)
