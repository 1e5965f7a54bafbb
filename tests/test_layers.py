"""What may import what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import imports

ROOT = Path(__file__).parent.parent
MODULES = imports.modules(ROOT)
CORE = [name for name in MODULES if imports.folder(name) not in ("cluster", "commands")]


def test_imports_run_downwards_only():
    assert imports.upward(imports.imports(ROOT)) == []


def test_imports_have_no_circle():
    assert imports.circles(imports.imports(ROOT)) == []


def test_the_map_sees_imports_by_a_string_that_is_put_together(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "imet_ray" / "storage").mkdir(parents=True, exist_ok=True)
        other = "ab".replace(name, "")
        (tmp_path / "imet_ray" / "storage" / f"{name}.py").write_text(
            f"import importlib\nimportlib.import_module('imet_ray' + '.storage.{other}')\n"
        )
    assert imports.circles(imports.imports(tmp_path)) == [["imet_ray.storage.a", "imet_ray.storage.b"]]


def test_each_folder_lies_in_a_row_and_says_what_it_is_for():
    folders = [path for path in (ROOT / "imet_ray").iterdir() if path.is_dir() and list(path.glob("*.py"))]
    assert {path.name for path in folders} | {imports.PACKAGE} == set(imports.RANK)
    for path in folders:
        assert ast.get_docstring(ast.parse((path / "__init__.py").read_text())), path


def test_the_map_in_the_docs_has_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in ("imet_ray", "kernel_builder"):
        for path in (ROOT / package).rglob("*.py"):
            inside = path.relative_to(ROOT / package)
            parts = (
                inside.parts if package == "kernel_builder" or len(inside.parts) == 1 else inside.parts[1:]
            )
            if path.name != "__init__.py":
                assert f"| `{'/'.join(parts)}` |" in text, path


def test_every_file_that_the_docs_name_is_there():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for name in re.findall(
            r"`((?:imet_ray|kernel_builder|tests|search_spaces|docs)/[\w/.]*)`", page.read_text()
        ):
            assert (ROOT / name).exists() or name == "search_spaces/mine.yml", f"{page.name}: {name}"


def test_only_cluster_imports_ray_and_optuna():
    for name, path in MODULES.items():
        if imports.folder(name) == "cluster":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.partition(".")[0] for module in found} & {"ray", "optuna"}, name


def test_the_core_imports_with_ray_and_optuna_absent():
    assert "imet_ray.training.train_trial" in CORE
    code = (
        "import sys\n"
        "for absent in ('ray', 'optuna'):\n"
        "    sys.modules[absent] = None\n"
        f"import importlib\nfor name in {CORE!r}:\n    importlib.import_module(name)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_only_storage_makes_artefact_paths():
    names = ("spec.json", "metrics.jsonl", "last.pt", "best.safetensors", "oof.npz", "result.json")
    for module, path in MODULES.items():
        if imports.folder(module) != "storage":
            code = "\n".join(
                line for line in path.read_text().splitlines() if not line.strip().startswith("#")
            )
            for name in names:
                assert f'"{name}"' not in code, f"{path} makes the path of {name}"


def test_no_command_of_the_docs_ends_in_a_comment():
    """A terminal's zsh, unless told otherwise, takes it for arguments."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert not re.findall(r"^    (?:uv|pip|python|ray)\b.* #.*$", page.read_text(), re.MULTILINE), (
            page.name
        )
