"""How a command begins and ends, and what it prints to be pasted."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import kernel_builder.__main__ as kernel_builder
from imet_ray.blending.external_members import parse_member
from imet_ray.cli import blend, launch
from imet_ray.command_line import CLOSED_PIPE, exit_code, pasted
from imet_ray.data.sources import resolve_data
from imet_ray.errors import ConfigError
from imet_ray.space_file import read_space
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import runs_at

ROOT = Path(__file__).parent.parent
PRINTS = """
import sys
from imet_ray.command_line import Parser, exit_code
def work():
    Parser().parse_args(sys.argv[1:])
    print("a line")
    return 0
sys.exit(exit_code(work, ""))
"""


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def work() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    assert exit_code(work, "the same command continues") == 130
    assert capsys.readouterr().err == "interrupted: the same command continues\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_users_mistake_is_one_line_and_exit_code_1(capsys):
    def work() -> int:
        raise ConfigError("fold must be below n_folds=5, got fold=7: choose 0..4")

    assert exit_code(work, "") == 1
    assert capsys.readouterr().err == "error: fold must be below n_folds=5, got fold=7: choose 0..4\n"


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("argv", "expected"), [([], CLOSED_PIPE), (["--help"], 0), (["--wrong"], 2)])
def test_a_closed_pipe_is_no_traceback(argv, expected, both):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", PRINTS, *argv]
    errors = writing if both else subprocess.PIPE
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=errors, check=False)
    os.close(writing)
    assert done.returncode == (CLOSED_PIPE if both and argv == ["--wrong"] else expected)
    assert both or b"Traceback" not in done.stderr
    assert both or b"Exception" not in done.stderr


@pytest.mark.parametrize(
    ("printed_to", "argv", "expected"),
    [
        ("/dev/full", [], 1),
        ("/dev/full", ["--help"], 1),
        ("/dev/full", ["--wrong"], 2),
        ("&-", [], 0),
    ],
)
def test_an_output_that_is_full_or_closed_is_no_traceback(printed_to, argv, expected):
    command = f"{pasted(sys.executable, '-c', PRINTS, *argv)} >{printed_to}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (expected, int(expected > 0))


@pytest.mark.parametrize(
    "command",
    [
        "launch.py --sweep",
        "launch.py --status",
        "blend.py",
        "-m kernel_builder blend --out x",
        "-m kernel_builder keygen",
    ],
)
def test_a_python_without_the_packages_is_one_line_with_the_way_out(command):
    done = subprocess.run(
        [sys.executable, "-S", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "`uv run launch.py`" in done.stderr


@pytest.mark.parametrize("script", ["launch.py", "blend.py", "kernel_builder/__main__.py"])
def test_an_older_python_is_one_line_with_the_way_out(script):
    text = (ROOT / script).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 7))
    older = "import sys; sys.version_info = (3, 9, 18); exec(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", older], cwd=ROOT, input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "`uv run launch.py`" in done.stderr


def test_a_package_that_is_missing_in_our_own_code_is_a_fault():
    def work() -> int:
        raise ModuleNotFoundError("No module named 'imet_ray.x'", name="imet_ray.x")

    with pytest.raises(ModuleNotFoundError):
        exit_code(work, "")


@pytest.mark.parametrize("script", ["launch.py", "blend.py"])
def test_without_docstrings_and_asserts_it_runs(script):
    done = subprocess.run(
        [sys.executable, "-OO", script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--runs" in done.stdout


@pytest.mark.parametrize("folder", ["runs", "my runs", "it's; $HOME `ls` & (more)*", "--odd"])
def test_a_command_that_is_printed_leads_to_its_run(tmp_path, folder):
    store = RunDirectory(tmp_path / folder / "a")
    words = shlex.split(pasted("python", "blend.py", *store.options))
    assert words == ["python", "blend.py", "--name", "a", "--runs", str(tmp_path / folder)]


def weights_of(text: str, folder: Path) -> Path:
    (folder / "space.yml").write_text(
        f"variants: [{{name: a, architecture: resnet18, weights: {text}}}]", encoding="utf-8"
    )
    return Path(read_space(folder / "space.yml", check=lambda variant: None).variants[0].weights)


@pytest.mark.parametrize(
    "read",
    [
        lambda text, folder: runs_at(text, Cache(folder)).root,
        lambda text, folder: resolve_data(text, cache=folder),
        lambda text, folder: parse_member(f"a={text}")[1],
        weights_of,
        lambda text, folder: launch._parse(["--status", f"--cache={text}"]).cache,
        lambda text, folder: launch._parse([f"--check-data={text}"]).check_data,
        lambda text, folder: launch._parse(["--sweep", f"--space={text}"]).space,
        lambda text, folder: launch._parse(["--sweep", f"--from={text}"]).source,
        lambda text, folder: launch._parse(["--predict=a", f"--out={text}"]).out,
        lambda text, folder: blend._parse([f"--folds={text}"]).folds,
        lambda text, folder: blend._parse([f"--labels={text}"]).labels,
        lambda text, folder: kernel_builder._parse(["a", f"--out={text}"]).out,
        lambda text, folder: kernel_builder._parse(["a", "--out=a", f"--dry-run={text}"]).dry_run,
    ],
)
def test_a_home_is_found_in_every_path(read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    assert read("~/x", tmp_path) == tmp_path / "x"


def test_an_installed_package_has_all_files_that_it_reads():
    """`pip install .` takes what pyproject.toml names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    kinds = {pattern.removeprefix("*") for pattern in settings["package-data"]["*"]}
    for package in ("imet_ray", "kernel_builder", "search_spaces"):
        assert any(pattern.startswith(package) for pattern in settings["packages"]["find"]["include"])
        files = [path for path in (ROOT / package).rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= kinds | {".py", ".pyc"}


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("launch.py", "python launch.py --oof"),
        ("/usr/bin/imet-ray", "imet-ray --oof"),
        ("/usr/bin/imet-ray-blend", "imet-ray --oof"),
    ],
)
def test_a_command_that_is_printed_is_called_as_the_user_calls_it(monkeypatch, called, expected):
    monkeypatch.setattr(sys, "argv", [called])
    assert pasted("python", "launch.py", "--oof") == expected
