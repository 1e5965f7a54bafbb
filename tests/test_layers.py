"""What may import what."""

import subprocess
import sys
from pathlib import Path

CORE = [
    ".".join(path.with_suffix("").parts)
    for path in sorted(Path("imet_ray").rglob("*.py"))
    if "cluster" not in path.parts and path.name != "__init__.py"
]


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


def test_only_the_store_makes_artefact_paths():
    names = ("spec.json", "metrics.jsonl", "last.pt", "best.safetensors", "oof.npz", "result.json")
    for path in Path("imet_ray").rglob("*.py"):
        if path.name not in ("store.py", "writing.py"):  # which knows what an older writer must not touch
            code = "\n".join(
                line for line in path.read_text().splitlines() if not line.strip().startswith("#")
            )
            for name in names:
                assert f'"{name}"' not in code, f"{path} makes the path of {name}"
