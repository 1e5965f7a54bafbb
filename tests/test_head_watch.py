"""A cluster's head that is not there, that stays, that goes away."""

import socket
import subprocess
import sys

import pytest

from imet_ray.cluster import session as head
from imet_ray.errors import ConfigError

WATCH = """
import sys, time
from imet_ray.cluster import session as head
head.KNOCK_S, head.LOST_S, head.ANSWER_S = 0.05, 0.3, 0.2
with head.head_watched(sys.argv[1]):
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
print("ended")
"""


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watch(server, seconds) -> subprocess.Popen:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    return subprocess.Popen(
        [sys.executable, "-c", WATCH, address, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_head_that_stays_is_not_heard_of(listener):
    out, err = watch(listener, 1.0).communicate(timeout=60)
    assert (out, err) == ("begun\nended\n", "")


def test_a_head_that_goes_away_ends_the_driver_with_one_line(listener):
    driver = watch(listener, 60)
    assert driver.stdout.readline() == "begun\n"
    listener.close()
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: the head of the cluster (127.0.0.1:")
    assert "the same command continues" in err


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999", "127.0.0.1:"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="takes auto or HOST:PORT"):
        head.refuse_unanswered(address)


def test_an_address_where_nobody_listens_is_refused(listener):
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    head.refuse_unanswered(address)
    listener.close()
    with pytest.raises(ConfigError, match=f"nobody answers at {address}"):
        head.refuse_unanswered(address)
