"""The single file: the same bytes each time, whole or refused, and it runs alone from memory."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_builder.import_closure import Closure, import_closure
from kernel_builder.single_file import kernel_text

REPOSITORY = Path(__file__).parents[1]

MAIN = """
import json
from mine import tools

def main(manifest):
    print(json.dumps(manifest))
    return tools.status(manifest)
"""
TOOLS = """
def status(manifest):
    if "raise" in manifest:
        raise ValueError("on purpose")  # this very line
    return manifest.get("status", 0)
"""


def closure(main: str = MAIN, tools: str = TOOLS, **more: str) -> Closure:
    sources = {"mine": "", "mine.main": main, "mine.tools": tools, **more}
    return Closure(sources, frozenset({"mine"}))


def text_of(made: Closure, manifest: dict | None = None, header: str = "A kernel.") -> str:
    return kernel_text(made, manifest or {}, entry="mine.main", header=header)


@pytest.fixture
def run(tmp_path):
    """Runs a kernel's text in a folder of its own."""

    def _run(text: str, *options: str, cwd: Path = tmp_path) -> "subprocess.CompletedProcess[str]":
        path = tmp_path / "kernel.py"
        path.write_text(text)
        command = [sys.executable, "-W", "error", *options, str(path)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return _run


def test_the_entry_gets_the_manifest_and_gives_the_exit_code(run):
    manifest = {"status": 3, "names": ["é", '"""', "\\"]}
    done = run(text_of(closure(), manifest))
    assert done.returncode == 3
    assert json.loads(done.stdout) == manifest
    assert done.stderr == ""


def test_its_exit_code_stands_where_nobody_listens(tmp_path):
    main = "import sys\ndef main(manifest):\n    sys.stdout.write('x')\n    return 3"
    (tmp_path / "kernel.py").write_text(text_of(closure(main)))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-W", "error", str(tmp_path / "kernel.py")]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=full, check=False)
    assert done.returncode == 3


def test_it_runs_from_any_folder_and_writes_nothing(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(text_of(closure()), cwd=elsewhere).returncode == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "kernel.py"]


def test_it_needs_neither_installed_packages_nor_the_environment(run):
    assert run(text_of(closure()), "-I", "-S").returncode == 0


def test_its_modules_come_before_others_of_the_same_name(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    assert run(text_of(closure())).returncode == 0


def test_a_module_that_was_not_packed_is_not_taken_from_elsewhere(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other.py").write_text("")
    done = run(text_of(closure("def main(manifest):\n    import mine.other")))
    assert "No module named 'mine.other'" in done.stderr


def test_a_traceback_shows_the_lines_of_packed_sources(run):
    done = run(text_of(closure(), {"raise": True}))
    assert done.returncode == 1
    assert 'File "<kernel>/mine/tools.py", line 4, in status' in done.stderr
    assert "# this very line" in done.stderr


def test_modules_know_their_place_and_their_source(run):
    main = """
import inspect, mine, mine.tools

def main(manifest):
    assert mine.__file__ == "<kernel>/mine/__init__.py", mine.__file__
    assert mine.tools.__file__ == "<kernel>/mine/tools.py"
    assert mine.tools.__package__ == "mine" and mine.__path__ == []
    assert inspect.getsource(mine.tools.status).startswith("def status")
"""
    done = run(text_of(closure(main)))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_it_starts_have_its_modules(run, method):
    main = f"""
import multiprocessing
from mine import tools

def main(manifest):
    process = multiprocessing.get_context({method!r}).Process(target=tools.status, args=({{}},))
    process.start()
    process.join()
    return process.exitcode
"""
    done = run(text_of(closure(main)))
    assert (done.returncode, done.stderr) == (0, "")


def in_a_cell(text: str, *others: str) -> str:
    """A script that runs texts as a notebook runs cells: in one namespace, which has no `__file__`."""
    cells = [compile_call(one) for one in (*others, text)]
    notebook = "import sys, types\nsys.modules['ipykernel'] = types.ModuleType('ipykernel')\n"
    return notebook + "space = {'__name__': '__main__'}\n" + "\n".join(cells) + "\nprint('went on')\n"


def compile_call(text: str) -> str:
    return f"exec(compile({text!r}, '<cell>', 'exec'), space)"


def test_it_runs_in_a_cell_and_the_notebook_goes_on(run):
    done = run(in_a_cell(text_of(closure(), {"a": 1})))
    assert done.stdout == '{"a": 1}\nwent on\n'


def test_a_second_kernel_in_the_same_notebook_replaces_the_first(run):
    first = closure("import mine.gone\ndef main(manifest): print('first')", **{"mine.gone": ""})
    second = closure("def main(manifest):\n    import mine.gone")
    done = run(in_a_cell(text_of(second), text_of(first)))
    assert done.stdout == "first\n"
    assert "No module named 'mine.gone'" in done.stderr


def test_the_same_input_gives_the_same_bytes_whatever_its_order():
    made = closure()
    turned = Closure(dict(reversed(made.modules.items())), made.packages)
    assert text_of(made, {"a": 1, "b": 2}) == text_of(turned, {"b": 2, "a": 1})


def test_lines_are_short():
    text = text_of(closure(), {"noise": random.Random(0).randbytes(5000).hex()})
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "header", ['Of "blend"', '"quoted"', '"""', "a\\nb \\", '""""', "tab\t nul\0 return\r", "é ✓ \ud800"]
)
def test_any_header_can_be_read_back(header, run):
    text = text_of(closure(), header=header)
    told = ast.get_docstring(ast.parse(text), clean=False)
    assert told is not None
    assert told.startswith(f"{header.strip()}\n\nEntry: mine.main\n")
    assert run(text).returncode == 0


def test_the_header_tells_the_digest_of_what_is_packed():
    text = text_of(closure(), {"a": 1})
    told = ast.get_docstring(ast.parse(text))
    assert told is not None
    found = re.search(r"Packed: 3 modules, [\d,]+ bytes, sha256 ([0-9a-f]{64})$", told)
    assert found is not None
    assert f"_start({found[1]!r}, " in text


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "foreign"])
def test_an_altered_file_is_refused_in_one_line(run, damage):
    before, start, rest = text_of(closure(), {"a": 1}).partition(', """\n')
    data, end, after = rest.partition('\n"""')
    other = "1" if data[5] == "0" else "0"
    data = {"changed": data[:5] + other + data[6:], "cut": data[:-7], "emptied": "", "foreign": data + '"é'}[
        damage
    ]
    done = run(before + start + data + end + after)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: kernel.py was altered or cut off: build it again\n"


@pytest.mark.parametrize(
    "left", ["\n\nimport base64", "\nclass _", "\ndef _install(", "\n_start(", "\n# the end of"]
)
def test_a_file_that_lost_its_end_is_refused_in_one_line(run, left):
    text = text_of(closure())
    done = run(text[: text.index(left) + 1])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: kernel.py was cut off: build it again\n"


def test_a_cut_behind_any_line_is_refused_or_leaves_no_python(tmp_path):
    path, text = tmp_path / "kernel.py", text_of(closure())
    begin = text.index("\ntry:") + 2
    refused = 0
    for end in (match.end() for match in re.finditer("\n", text[:-1]) if match.end() > begin):
        path.write_text(text[:end])
        try:
            code = compile(text[:end], path, "exec")
        except SyntaxError:
            continue
        with pytest.raises(SystemExit, match="cut off: build it again"):
            exec(code, {"__name__": "__main__", "__file__": str(path)})
        refused += 1
    assert refused > 50


@pytest.mark.parametrize("kept", [-30, -80])
def test_a_file_that_was_cut_off_in_its_content_does_not_run(run, kept):
    done = run(text_of(closure())[:kept])
    assert (done.returncode, done.stdout) == (1, "")
    assert "SyntaxError" in done.stderr


def stored(rng: random.Random) -> dict:
    return {"name": rng.randbytes(8).hex(), "sha256": rng.randbytes(32).hex(), "size": rng.randrange(10**10)}


def big_manifest() -> dict:
    """As large as for 35 encrypted checkpoints, 1,103 labels and a decoder for each prefix."""
    rng = random.Random(1)
    return {
        "label_ids": [str(label) for label in range(1103)],
        "prior": [rng.random() for _ in range(1103)],
        "weights": [{"plain": stored(rng), "stored": stored(rng)} for _ in range(35)],
        "prefixes": [
            {"weights": [rng.random() for _ in range(35)], "threshold": rng.random()} for _ in range(35)
        ],
    }


def test_a_kernel_of_35_checkpoints_is_below_1_MB():
    ours = {name: REPOSITORY / name for name in ("imet_ray", "kernel_builder")}
    made = import_closure("imet_ray.prediction.predict", ours)
    text = kernel_text(made, big_manifest(), entry="imet_ray.prediction.predict", header="A kernel.")
    assert len(text.encode()) < 300_000
