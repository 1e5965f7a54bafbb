"""The project as a package: its wheel, and the commands that it installs, away from the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("imet_ray", "kernel_builder", "search_spaces")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without a network, in a copy: it would leave folders in the clone."""
    copy, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "launch.py", "blend.py"):
        shutil.copy(ROOT / name, copy)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder as an installer leaves it, without the commands."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    return target


@pytest.fixture
def call(installed, tmp_path):
    """Runs an installed command in a folder of its own, as the script that an installer writes does."""

    def _call(command: str, *options: object) -> subprocess.CompletedProcess:
        (info,) = installed.glob("*.dist-info")
        (entry,) = PathDistribution(info).entry_points.select(group="console_scripts", name=command)
        script = tmp_path / "bin" / command
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n")
        own = {"PYTHONPATH": str(installed), "IMET_RAY_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, str(script), *map(str, options)],
            cwd=tmp_path,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )

    return _call


def test_the_wheel_has_all_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == wanted


@pytest.mark.parametrize("command", ["imet-ray", "imet-ray-blend"])
def test_an_installed_command_says_how_it_is_called(call, command):
    done = call(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {command} ")


def test_an_installed_command_works_on_data(call, tiny_root):
    done = call("imet-ray", "--check-data", tiny_root)
    assert done.returncode == 0, done.stderr
    assert "90" in done.stdout


def test_an_installed_command_names_itself(call):
    done = call("imet-ray", "--status")
    said = "error: no run in runs: start one with `imet-ray --sweep`\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_the_spaces_that_were_installed_are_found_from_any_folder(installed, tmp_path):
    code = "from imet_ray.units import space_path; print(space_path('search_spaces/demo.yml'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == f"{installed / 'search_spaces' / 'demo.yml'}\n"
