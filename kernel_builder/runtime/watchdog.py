"""A thread beside the prediction: it reports every minute what is being done, and ends a process that hangs.

Between two batches the prediction looks at the clock itself. Within a hung read, a hung loader or an endless decoding
it cannot. There the watchdog ends the process in the middle of the reserve; the submission that is written stays.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable

from imet_ray.units import clock
from kernel_builder.runtime.schedule import Deadline

REPORT_EVERY = 60.0  # seconds
LOOK_EVERY = 0.2  # seconds


class Watchdog:
    """Runs from `start` to `stop`."""

    def __init__(
        self, deadline: Deadline, grace: float, end: Callable[[str], int], log: Callable[[str], None]
    ) -> None:
        """
        Args:
            grace: seconds after the deadline at which the process is ended.
            end: takes the current activity, prints the last lines, and gives the exit code.
            log: prints a line.
        """
        self.deadline, self.grace, self.end, self.log = deadline, grace, end, log
        self.activity = "starting"
        self._stopped = threading.Event()
        self._ending = threading.Lock()

    def note(self, activity: str) -> None:
        """Remember what is being done."""
        self.activity = activity

    def start(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """From here on, nothing ends the process."""
        with self._ending:
            self._stopped.set()

    def _watch(self) -> None:
        reported = self.deadline.clock()
        while not self._stopped.wait(LOOK_EVERY):
            if self.deadline.left() < -self.grace:
                with self._ending:
                    if not self._stopped.is_set():
                        self._exit()
            if self.deadline.clock() - reported >= REPORT_EVERY:
                reported = self.deadline.clock()
                left = max(0.0, self.deadline.left())
                self.log(f"{clock(self.deadline.elapsed())}  {self.activity}; {clock(left)} left")

    def _exit(self) -> None:
        code = 1
        try:
            code = self.end(self.activity)
            sys.stdout.flush()
            sys.stderr.flush()
            for child in multiprocessing.active_children():  # loaders
                child.kill()
        finally:
            os._exit(code)
