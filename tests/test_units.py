"""Spans of time and numbers of bytes as people write them."""

from pathlib import Path

import pytest

from imet_ray.errors import ConfigError
from imet_ray.units import ago, byte_size, clock, duration, space_path, user_path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("1h30m", 5400),
        ("8h40m", 31_200),
        ("45s", 45),
        ("1h1s", 3601),
        ("0.5h", 1800),
        ("1.5h30.5s", 5430.5),
    ],
)
def test_hours_minutes_and_seconds_are_added_up(text, seconds):
    assert duration(text, "--x") == seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "1m2h", "-1h", "1h 2m", "h", "1d", "1hh", "1e3s", "١h\n"])
def test_anything_else_is_refused_with_the_name_of_its_option(text):
    with pytest.raises(ConfigError, match="--x takes 2h, 90m or 1h30m, got "):
        duration(text, "--x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.4, "0:09"), (65, "1:05"), (3599.6, "1:00:00"), (7385, "2:03:05")]
)
def test_a_clock_shows_minutes_and_only_then_hours(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20 * 10**9), ("500mb", 5 * 10**8), ("1.5 KB", 1500), ("7", 7), ("7B", 7)]
)
def test_a_size_is_a_number_and_a_unit(text, size):
    assert byte_size(text, "--bytes") == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "20GB/day", "20 G", "1e9", "20 zebras"])
def test_what_is_no_size_is_refused_with_the_name_of_its_option(text):
    with pytest.raises(ConfigError, match="--bytes takes a size such as 20GB or 500MB, got "):
        byte_size(text, "--bytes")


@pytest.mark.parametrize(
    ("seconds", "text"), [(65, "1:05 ago"), (-0.3, "0:00 ago"), (-3600, "1:00:00 ahead of the clock here")]
)
def test_a_time_that_another_clock_tells_is_never_negative(seconds, text):
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("text", "path"), [("~/x", "HOME/x"), ("~", "HOME"), ("x/~", "x/~"), ("~nobody-of-that-name/x",) * 2]
)
def test_a_home_is_found_where_no_shell_did_it(text, path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(user_path(text)) == path.replace("HOME", str(tmp_path))


def test_a_space_that_came_with_the_code_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parents[1] / "search_spaces" / "demo.yml"
    assert space_path("search_spaces/demo.yml") == shipped
    assert space_path("search_spaces/mine.yml") == Path("search_spaces/mine.yml")
    own = tmp_path / "search_spaces" / "demo.yml"
    own.parent.mkdir()
    own.touch()
    assert space_path("search_spaces/demo.yml") == Path("search_spaces/demo.yml")
