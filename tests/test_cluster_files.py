"""The files for `ray up`: as Ray's schema wants them, closed to strangers, and without data in what is sent."""

import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = ("cluster.yaml", "cluster-local.yaml")


def read(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / name).read_text())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_file_is_as_rays_schema_wants_it(name):
    config = read(name)
    validate_config(prepare_config(config))
    config["colour"] = "red"
    with pytest.raises(Exception, match="colour"):
        validate_config(config)


@pytest.mark.parametrize("name", FILES)
def test_code_is_sent_and_data_runs_and_environments_are_not(name):
    config = read(name)
    assert config["file_mounts"] == {"~/imet_ray": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    assert {".git", ".venv", "/runs", "/data"} <= set(config["rsync_exclude"])


@pytest.mark.parametrize("name", FILES)
def test_no_folder_of_the_code_has_a_name_that_is_left_out_wherever_it_lies(name):
    tracked = subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).splitlines()
    names = {part for path in tracked for part in Path(path).parts}
    assert not names & set(read(name)["rsync_exclude"])


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_the_token_and_the_dashboard_is_on_loopback(name):
    config = read(name)
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (REPOSITORY / name).read_text()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("which", ["head_start_ray_commands", "worker_start_ray_commands"])
@pytest.mark.parametrize(("slow", "code"), [(0, 0), (1, 0), (2, 1)])
def test_a_node_that_is_slow_to_start_is_started_once_more(tmp_path, name, which, slow, code):
    """Its first `slow` starts fail."""
    (command,) = [command for command in read(name)[which] if "ray start" in command]
    (tmp_path / "ray").write_text(
        f'#!/bin/sh\necho "$1" >> {tmp_path}/log\n'
        f'[ "$1" = stop ] || [ $(grep -c start {tmp_path}/log) -gt {slow} ]\n'
    )
    (tmp_path / "ray").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "192.0.2.1"}
    done = subprocess.run(["bash", "-c", command], env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "log").read_text().split() == ["start", "stop", "start"][: 1 if slow == 0 else 3]


def test_gpu_machines_are_spot_come_from_none_and_the_head_trains_nothing():
    types = read("cluster.yaml")["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["head"]["resources"] == {"CPU": 0}
