"""The command line of --serve-tags: its mistakes are one line each, before Ray is started or anything is loaded."""

import importlib.util
import socket

import pytest

import launch
from imet_ray.commands.serve import Listen
from imet_ray.errors import ConfigError

TOKEN = "a-token-of-24-characters"


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs --serve-tags with options; the one line that it is refused with."""

    def _refused(*options: object) -> str:
        where = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
        code = launch.main(["--serve-tags", "blend", *map(str, options), *where])
        out, err = capsys.readouterr()
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        return err.removeprefix("error: ")

    return _refused


def test_a_taken_port_is_one_line(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: " in refused("--port", port)


def test_a_port_that_cannot_be_is_one_line(refused):
    assert "--port must be in" in refused("--port", 70000)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_let_in_with_a_token_only(refused, host):
    assert "give --token" in refused("--host", host, "--port", 0)
    assert "no run in" in refused("--host", host, "--port", 0, "--token", TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.5"])
def test_loopback_needs_no_token(host):
    with Listen(0, host).open() as listening:
        assert listening.getsockname()[0].startswith("127.")


def test_a_host_that_is_not_here_is_one_line(refused):
    assert "--host" in refused("--host", "203.0.113.7", "--port", 0, "--token", TOKEN)
    assert "--host" in refused("--host", "no such host", "--port", 0)


@pytest.mark.parametrize(
    "token", ["short", "", "with spaces in it, and long", "schlüssel-schlüssel-schlüssel"]
)
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused(refused, token):
    assert "openssl rand" in refused("--port", 0, "--token", token)


def test_a_token_may_lie_in_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert Listen(0, token=f"@{file}").secret() == TOKEN
    with pytest.raises(ConfigError, match="--token @"):
        Listen(0, token=f"@{file}.txt").secret()


def test_a_missing_package_is_named_with_the_command_that_installs_it(refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    line = refused()
    assert "fastapi" in line
    assert "uv sync --extra serve" in line


def test_an_ensemble_that_is_not_there_is_one_line(refused):
    assert "no run in" in refused("--port", 0)
