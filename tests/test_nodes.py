"""What the nodes of a cluster are asked before a sweep begins, on a real Ray."""

import os

import pytest
import ray

from imet_ray.cluster import nodes
from imet_ray.cluster.session import ray_session
from imet_ray.errors import ConfigError
from imet_ray.space import Resources

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LOST = {"NodeID": "ab" * 28, "NodeManagerAddress": "192.0.2.77", "Alive": True}


@pytest.fixture(scope="module", autouse=True)
def on_ray():
    with ray_session(Resources()):
        yield


@pytest.fixture
def with_lost(monkeypatch):
    """So many times Ray still lists a node that is no more."""
    listed = ray.nodes

    def _with_lost(times: int) -> None:
        left = iter(range(times))
        monkeypatch.setattr(ray, "nodes", lambda: listed() + ([LOST] if next(left, None) is not None else []))

    return _with_lost


def test_nodes_of_the_same_versions_are_counted():
    assert nodes.refuse_other_versions() == 1


def test_a_node_that_is_lost_while_it_is_asked_is_left_out(with_lost):
    with_lost(1)
    assert nodes.refuse_other_versions() == 1


def test_a_node_that_is_there_and_cannot_be_asked_is_named(with_lost):
    with_lost(2)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77 has"):
        nodes.refuse_other_versions()


def test_a_node_of_another_version_is_named_with_both(monkeypatch):
    ours, here = nodes.versions(), os.getpid()
    monkeypatch.setattr(nodes, "versions", lambda: ours | ({"timm": "0.0.1"} if os.getpid() == here else {}))
    with pytest.raises(ConfigError, match=rf"timm {ours['timm']}, here 0\.0\.1"):
        nodes.refuse_other_versions()
