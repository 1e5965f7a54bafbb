"""The watchdog's clock: when it ends a process, and what it reports in the meantime."""

import os
import threading

import pytest

from kernel_builder.runtime import watchdog
from kernel_builder.runtime.schedule import Deadline
from kernel_builder.runtime.watchdog import Watchdog


class Watched:
    """A process with a limit of 1,000 s, 100 of them kept back, ended 50 s after the deadline; its clock is `now`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.ended_with: list[int] = []
        self.over = threading.Event()
        self.looks = 0
        self.dog = Watchdog(Deadline(1000.0, 100.0, self.clock), 50.0, self.end, self.lines.append)

    def clock(self) -> float:
        self.looks += 1
        return self.now

    def end(self, activity: str) -> int:
        self.lines.append(f"hung: {activity}")
        return 65

    def exit(self, code: int) -> None:
        self.ended_with.append(code)  # the real one does not return, so that it is called once
        self.over.set()

    def look(self) -> None:
        """Wait until the watchdog has seen the clock again."""
        before = self.looks
        while self.looks < before + 4:
            self.over.wait(0.001)


@pytest.fixture
def watched(monkeypatch):
    found = Watched()
    monkeypatch.setattr(watchdog, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(os, "_exit", found.exit)
    found.dog.start()
    yield found
    found.dog.stop()


def test_a_process_is_ended_in_the_middle_of_the_reserve_and_not_before(watched):
    watched.dog.note("reading")
    watched.now = 949.9
    watched.look()
    assert watched.ended_with == []
    watched.now = 950.1
    assert watched.over.wait(10)
    assert watched.ended_with[0] == 65
    assert watched.lines[-1] == "hung: reading"


def test_once_it_is_stopped_nothing_is_ended(watched):
    watched.dog.stop()
    watched.now = 5000.0
    assert not watched.over.wait(0.05)


def test_each_minute_it_says_what_is_being_done(watched):
    watched.look()
    watched.dog.note("checkpoint 1 of 6")
    watched.now = 59.0
    watched.look()
    assert watched.lines == []
    watched.now = 65.0
    watched.look()
    watched.look()
    assert watched.lines == ["1:05  checkpoint 1 of 6; 13:55 left"]
